"""Names to addresses: within the limit, cached as each record allows, never in the loop's threads.

    resolver = Resolver()                                   # getaddrinfo, in threads of our own
    resolver = Resolver(DnsLookup())                        # asks the servers, knows times to live
    addresses = await resolver.resolve("orders.local", 443, limit=now() + 0.5)
    resolver.stats()

One question at a time goes out for a name and a type, however many wait for it, in whatever loop or
thread; who gives up does not take the answer from the others. When nobody answers, what was known
last serves on, and says so.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from holdfast.domain.discovery.names import (
    Answer,
    CacheTerms,
    Found,
    Freshness,
    NameStats,
    canonical,
)
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.ports.lookup import Lookup
from holdfast.runtime.clock import monotonic
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.hosts import LOOKED_AT, Hosts, literal
from holdfast.runtime.net.lookups import SystemLookup, after_fork
from holdfast.runtime.net.questions import Flight, Questions
from holdfast.runtime.scope import ambient

__all__ = ["Address", "Addresses", "Resolver", "default_resolver"]

_LONGEST_NAME: Final = 253  # RFC 1035, section 2.3.4

_OTHER_FAMILY: Final[Duration] = 0.05
"""Seconds that the second family is waited for once the first is there (RFC 8305, section 3)."""

_STALE_AFTER: Final[Duration] = 1.8
"""Seconds after which what is stale serves, while the question goes on (RFC 8767, section 5)."""

_FAMILIES: Final = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}


class Address(NamedTuple):
    """Where to connect.

    Attributes:
        family: `AF_INET` or `AF_INET6`.
        sockaddr: for `socket.connect`.
    """

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.sockaddr[0], self.sockaddr[1]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"


class Addresses(tuple[Address, ...]):
    """What a name leads to, in the order of the answer.

    Attributes:
        stale: whether this has ended and serves on because nobody answers.
    """

    stale: bool = False


_NOT: Final = (-NEVER, Addresses())


class Resolver:
    """Looks names up. For any number of loops and threads.

    Args:
        lookup: who asks; getaddrinfo in threads of our own when none is given.
        terms: how long answers are kept.
        hosts: the hosts file.
        clock: of the times to live.
    """

    def __init__(
        self,
        lookup: Lookup | None = None,
        *,
        terms: CacheTerms | None = None,
        hosts: Hosts | None = None,
        clock: Callable[[], Instant] = monotonic,
    ) -> None:
        self.lookup: Lookup = SystemLookup() if lookup is None else lookup
        self._hosts = Hosts() if hosts is None else hosts
        self._terms = CacheTerms() if terms is None else terms
        self._clock = clock
        self._reset()
        after_fork(self._reset)

    def _reset(self) -> None:
        self._questions = Questions(self.lookup, self._terms, self._clock, self._spare)
        self._ready: dict[tuple[str, int, int], tuple[Instant, Addresses]] = {}
        """What was found a moment ago, as it was handed out, and until when that is right."""
        self._hits = 0
        """How often that was enough. Not locked, which would cost a third of the whole look-up: a
        thread without a global lock may miss one."""

    def _spare(self) -> bool:
        # Only threads are few: other look-ups have no more of them for more questions.
        return not isinstance(self.lookup, SystemLookup) or self.lookup.spare

    # -- for coroutines --------------------------------------------------------------------------

    async def resolve(
        self, host: str, port: int, *, family: int = socket.AF_UNSPEC, limit: Instant = NEVER
    ) -> Addresses:
        """Addresses of `host`, in the order of the answer.

        Args:
            host: a name, or an address. No search domain is put behind one that ends in a dot.
            port: becomes part of the addresses.
            family: `AF_INET` or `AF_INET6` for these alone.
            limit: monotonic instant by which it must be done.

        Raises:
            socket.gaierror: there is no such name, or it has no address (`EAI_NONAME`, final); or
                nobody could tell (`EAI_AGAIN`).
            TimeoutError: `limit` has passed; the question goes on, for whoever asks next.
        """
        ready = self._ready.get((host, port, family), _NOT)
        if self._clock() < ready[0]:
            self._hits += 1
            return ready[1]
        driver = driver_of(asyncio.get_running_loop())
        wanted = _Wanted(host, port, family, limit, driver.now())
        scope = ambient()
        if scope is not None:
            wanted.ends = min(limit, scope.limit)
        self._begin(wanted)
        loop = driver.loop
        while (until := wanted.wait_until(driver.now())) is not None:
            woken = loop.create_future()
            for flight in wanted.pending():
                self._questions.wake_with(flight, partial(_tell, loop, woken))
            alarm = None if until == NEVER else driver.alarm(until, partial(_set, woken))
            try:
                await woken
            finally:
                if alarm is not None:
                    driver.drop(alarm)
        return self._finish(wanted)

    # -- for threads -----------------------------------------------------------------------------

    def resolve_blocking(
        self, host: str, port: int, *, family: int = socket.AF_UNSPEC, limit: Instant = NEVER
    ) -> Addresses:
        """The same for plain functions; see `resolve`."""
        ready = self._ready.get((host, port, family), _NOT)
        if self._clock() < ready[0]:
            self._hits += 1
            return ready[1]
        wanted = _Wanted(host, port, family, limit, monotonic())
        self._begin(wanted)
        while (until := wanted.wait_until(monotonic())) is not None:
            changed = threading.Event()
            for flight in wanted.pending():
                self._questions.wake_with(flight, changed.set)
            left = min(until - monotonic(), threading.TIMEOUT_MAX)
            changed.wait(None if until == NEVER else max(0.0, left))
        return self._finish(wanted)

    # -- for everybody ---------------------------------------------------------------------------

    def stats(self) -> NameStats:
        """What happened so far; a copy."""
        stats = self._questions.stats()
        stats.hits += self._hits
        return stats

    def clear(self, host: str | None = None) -> None:
        """Forget every answer, or those of one name."""
        if host is None:
            self._questions.forget(None)
        else:
            name = canonical(host)
            self._questions.forget(name)
            self._questions.forget(f"{name}.")
        self._ready.clear()

    async def aclose(self) -> None:
        """Let threads and sockets go that are idle. It may be used again afterwards."""
        self.close()

    def close(self) -> None:
        """The same for plain functions."""
        self.lookup.close()

    @property
    def asks(self) -> str:
        """Who is asked, for people."""
        return self.lookup.asks

    # -- within ----------------------------------------------------------------------------------

    def _begin(self, wanted: _Wanted) -> None:
        """Find what is known already, and have asked what is not."""
        host, family = wanted.host, wanted.family
        address = literal(host)
        if address is not None:
            wanted.found = [_known((address,))]
            return
        name = canonical(host)
        if not name or len(name) > _LONGEST_NAME or "\0" in name:
            raise socket.gaierror(socket.EAI_NONAME, f"{host[:80]!r} is not the name of a host")
        local = self._hosts.look(name)
        if local:
            wanted.found = [_known(local)]
            if wanted.addresses():
                return
        kinds = [kind for kind in self.lookup.kinds if _FAMILIES.get(kind, family) == family]
        wanted.found, wanted.flights = self._questions.look(
            f"{name}." if host.endswith(".") else name,
            kinds if family else self.lookup.kinds,
            wanted.limit > wanted.began,
        )
        wanted.late = not wanted.found and not wanted.flights

    def _finish(self, wanted: _Wanted) -> Addresses:
        stale = wanted.land()
        for _ in range(stale):
            self._questions.served_stale()
        addresses = wanted.addresses()
        if not addresses:
            raise self._failure(wanted)
        if not wanted.flights and not addresses.stale:
            self._remember(wanted, addresses)
        return addresses

    def _remember(self, wanted: _Wanted, addresses: Addresses) -> None:
        if len(self._ready) >= self._terms.most:
            self._ready.clear()
        # The hosts file may change, and the cache has to see which names are in use.
        until = min(self._questions.until(wanted.found), self._clock() + LOOKED_AT)
        self._ready[wanted.host, wanted.port, wanted.family] = (until, addresses)

    def _failure(self, wanted: _Wanted) -> OSError:
        host = wanted.host
        if wanted.late:
            return TimeoutError(f"{host!r} was not resolved in time; asked: {self.asks}")
        if wanted.errors:
            error = wanted.errors[0]
            # One error may go to many who wait, and each of them adds its own notes.
            return type(error)(*error.args)
        exists = any(found.answer.exists for found in wanted.found)
        why = "has no address" if exists else "does not exist"
        return socket.gaierror(socket.EAI_NONAME, f"{host!r} {why}; asked: {self.asks}")


class _Wanted:
    """One look-up: what it is for, what is known of it, what it waits for."""

    def __init__(self, host: str, port: int, family: int, limit: Instant, now: Instant) -> None:
        self.host = host
        self.port = port
        self.family = family
        self.limit = limit
        self.ends = limit
        """When whoever waits goes: what is stale has to come before. The scope sees to the rest."""
        self.began = now
        self.found: list[Found] = []
        self.flights: list[Flight] = []
        self.errors: list[OSError] = []
        self.late = False
        self._settled: Instant = NEVER

    def pending(self) -> list[Flight]:
        """The questions that nothing has come of."""
        return [flight for flight in self.flights if not flight.done]

    def wait_until(self, now: Instant) -> Instant | None:
        """Until when to wait for them; none when there is nothing to wait for any more."""
        pending = self.pending()
        if not pending:
            return None
        until = self.limit
        if any(flight.stale is not None for flight in self.flights):
            patience = min(_STALE_AFTER, (self.ends - self.began) / 2)
            until = min(until, self.began + patience)
        if self._settled == NEVER and self._some():
            self._settled = now + _OTHER_FAMILY
        until = min(until, self._settled)
        return until if until > now else None

    def _some(self) -> bool:
        if any(found.answer.addresses for found in self.found):
            return True
        return any(flight.has_addresses for flight in self.flights)

    def land(self) -> int:
        """Take what has come; how many answers of that were stale."""
        stale = 0
        for flight in self.flights:
            result = flight.result
            if isinstance(result, Answer):
                self.found.append(_known(result.addresses, result.exists))
            elif flight.stale is not None:
                self.found.append(_known(flight.stale.addresses, stale=True))
                stale += 1
            elif result is not None:
                self.errors.append(result)
            else:
                self.late = True
        return stale

    def addresses(self) -> Addresses:
        """All that was found, for this port and family."""
        made = Addresses(
            address
            for found in self.found
            for address in (_address(text, self.port) for text in found.answer.addresses)
            if self.family in (socket.AF_UNSPEC, address.family)
        )
        made.stale = any(
            found.freshness is Freshness.STALE and found.answer.addresses for found in self.found
        )
        return made


def _known(addresses: Sequence[str], exists: bool = True, *, stale: bool = False) -> Found:
    answer = Answer(tuple(addresses), NEVER, exists)
    return Found(answer, Freshness.STALE if stale else Freshness.FRESH, NEVER)


def _address(text: str, port: int) -> Address:
    if ":" not in text:
        return Address(socket.AF_INET, (text, port))
    host, _, zone = text.partition("%")
    scope = 0
    if zone:
        scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return Address(socket.AF_INET6, (host, port, 0, scope))


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _tell(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    # A loop that has been closed meanwhile has nobody left who waits.
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(_set, woken)
        except RuntimeError:
            if not loop.is_closed():
                raise


_DEFAULT: Final[list[Resolver]] = []
_LOCK: Final = threading.Lock()


def default_resolver() -> Resolver:
    """The resolver of the process, for whoever has none of its own: getaddrinfo, cached."""
    if not _DEFAULT:
        with _LOCK:
            if not _DEFAULT:
                _DEFAULT.append(Resolver())
    return _DEFAULT[0]
