"""Names to addresses: within the limit, cached as each record allows, never in the loop's threads.

    resolver = Resolver()                                   # getaddrinfo, in threads of our own
    resolver = Resolver(CaresLookup())                      # c-ares, which knows times to live
    addresses = await resolver.resolve("orders.local", 443, limit=now() + 0.5)
    resolver.stats()

One question at a time goes out for a name and a type, however many wait for it, in whatever loop or
thread; who gives up does not take the answer from the others. When nobody answers, what was known
last serves on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from holdfast.domain.discovery.names import (
    Answer,
    CacheTerms,
    Freshness,
    NameCache,
    NameStats,
    canonical,
)
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.ports.lookup import Lookup
from holdfast.runtime.clock import monotonic
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.hosts import Hosts, literal
from holdfast.runtime.net.lookups import SystemLookup

__all__ = ["Address", "Resolver", "default_resolver"]

_LONGEST_NAME: Final = 253  # RFC 1035, section 2.3.4
_JOIN_FOR: Final[Duration] = 2.0
"""Seconds that later callers join a question. One that is older may be stuck, so a new one goes
out."""

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


class _Flight:
    """A question under way, and who waits for it."""

    def __init__(self, begun: Instant) -> None:
        self.begun = begun
        self.done = threading.Event()
        self.result: Answer | OSError | None = None
        self.stale: Answer | None = None
        self.wakers: list[Callable[[], object]] = []

    @property
    def answer(self) -> Answer | OSError | None:
        """What came; what is stale when nobody answered and that is there."""
        if isinstance(self.result, OSError) and self.stale is not None:
            return self.stale
        return self.result


class Resolver:
    """Looks names up. For any number of loops and threads.

    Args:
        lookup: who asks; getaddrinfo in threads of our own when none is given.
        terms: how long answers are kept.
        hosts: the hosts file.
    """

    def __init__(
        self,
        lookup: Lookup | None = None,
        *,
        terms: CacheTerms | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.lookup: Lookup = SystemLookup() if lookup is None else lookup
        self._hosts = Hosts() if hosts is None else hosts
        self._terms = CacheTerms() if terms is None else terms
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cache = NameCache(self._terms)
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._stats = NameStats()

    # -- for coroutines --------------------------------------------------------------------------

    async def resolve(
        self, host: str, port: int, *, family: int = socket.AF_UNSPEC, limit: Instant = NEVER
    ) -> tuple[Address, ...]:
        """Addresses of `host`, in the order of the answer.

        Args:
            host: a name, or an address.
            port: becomes part of the addresses.
            family: `AF_INET` or `AF_INET6` for these alone.
            limit: monotonic instant by which it must be done.

        Raises:
            socket.gaierror: there is no such name (`EAI_NONAME`, final), or nobody answered
                (`EAI_AGAIN`).
            TimeoutError: `limit` has passed; the question goes on, for whoever asks next.
        """
        found, flights = self._begin(host, family)
        if flights:
            driver = driver_of(asyncio.get_running_loop())
            loop = driver.loop
            limit, patience = self._patience(flights, limit, driver.now())
            settled = NEVER
            while pending := [flight for flight in flights if not flight.done.is_set()]:
                settled = self._settled(flights, pending, settled, driver.now())
                until = min(limit, patience, settled)
                if until <= driver.now():
                    break
                woken = loop.create_future()
                for flight in pending:
                    self._wake_with(flight, partial(_tell, loop, woken))
                alarm = None if until == NEVER else driver.alarm(until, partial(_set, woken))
                try:
                    await woken
                finally:
                    if alarm is not None:
                        driver.drop(alarm)
        return self._finish(host, port, family, found, flights)

    # -- for threads -----------------------------------------------------------------------------

    def resolve_blocking(
        self, host: str, port: int, *, family: int = socket.AF_UNSPEC, limit: Instant = NEVER
    ) -> tuple[Address, ...]:
        """The same for plain functions; see `resolve`."""
        found, flights = self._begin(host, family)
        if flights:
            limit, patience = self._patience(flights, limit, monotonic())
            settled = NEVER
            changed = threading.Event()
            while pending := [flight for flight in flights if not flight.done.is_set()]:
                settled = self._settled(flights, pending, settled, monotonic())
                until = min(limit, patience, settled)
                left = until - monotonic()
                if left <= 0:
                    break
                for flight in pending:
                    self._wake_with(flight, changed.set)
                changed.wait(None if left == NEVER else left)
                changed.clear()
        return self._finish(host, port, family, found, flights)

    # -- for everybody ---------------------------------------------------------------------------

    def stats(self) -> NameStats:
        """What happened so far; a copy."""
        with self._lock:
            return replace(self._stats, evicted=self._cache.evicted, size=len(self._cache))

    def clear(self, host: str | None = None) -> None:
        """Forget every answer, or those of one name."""
        with self._lock:
            self._cache.forget(None if host is None else canonical(host))

    @property
    def asks(self) -> str:
        """Who is asked, for people."""
        return self.lookup.asks

    # -- within ----------------------------------------------------------------------------------

    def _begin(self, host: str, family: int) -> tuple[list[Answer], list[_Flight]]:
        """What is known of `host` already, and the questions that have to be waited for."""
        address = literal(host)
        if address is not None:
            return [Answer((address,), NEVER)], []
        name = canonical(host)
        if not name or len(name) > _LONGEST_NAME or "\0" in name:
            raise socket.gaierror(socket.EAI_NONAME, f"{host[:80]!r} is not the name of a host")
        found: list[Answer] = []
        flights: list[_Flight] = []
        now = monotonic()
        with self._lock:
            local = self._hosts.look(name)
            if local:
                return [Answer(local, NEVER)], []
            for kind in self.lookup.kinds:
                if family and _FAMILIES.get(kind, family) != family:
                    continue
                flight = self._look(name, kind, now, found)
                if flight is not None:
                    flights.append(flight)
        return found, flights

    def _look(self, name: str, kind: str, now: Instant, found: list[Answer]) -> _Flight | None:
        kept = self._cache.look(name, kind, now)
        if kept is not None and kept.freshness is not Freshness.STALE:
            self._stats.hits += 1
            self._stats.negative_hits += not kept.answer.addresses
            found.append(kept.answer)
            if kept.freshness is Freshness.AGING:
                self._fly(name, kind, now, None)
            return None
        if kept is not None and kept.hold:
            self._stats.stale += 1
            found.append(kept.answer)
            return None
        self._stats.misses += 1
        return self._fly(name, kind, now, None if kept is None else kept.answer)

    def _fly(self, name: str, kind: str, now: Instant, stale: Answer | None) -> _Flight:
        key = (name, kind)
        flight = self._flights.get(key)
        if flight is not None and now - flight.begun < _JOIN_FOR:
            self._stats.shared += 1
            return flight
        flight = _Flight(now)
        flight.stale = stale
        self._flights[key] = flight
        self._stats.asked += 1
        self.lookup.start(name, kind, lambda result: self._landed(key, flight, result))
        return flight

    def _landed(self, key: tuple[str, str], flight: _Flight, result: Answer | OSError) -> None:
        now = monotonic()
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if isinstance(result, OSError):
                self._stats.failed += 1
                self._cache.failed(*key, now)
            else:
                self._cache.store(*key, result, now)
            flight.result = result
            flight.done.set()
            wakers, flight.wakers = flight.wakers, []
        for wake in wakers:
            wake()

    def _wake_with(self, flight: _Flight, wake: Callable[[], object]) -> None:
        with self._lock:
            if not flight.done.is_set():
                flight.wakers.append(wake)
                return
        wake()

    @staticmethod
    def _patience(flights: list[_Flight], limit: Instant, now: Instant) -> tuple[Instant, Instant]:
        """Until when to wait, and until when if there is something stale to fall back on."""
        if all(flight.stale is None for flight in flights):
            return limit, NEVER
        return limit, min(now + _STALE_AFTER, now + (limit - now) / 2)

    @staticmethod
    def _settled(
        flights: list[_Flight], pending: list[_Flight], settled: Instant, now: Instant
    ) -> Instant:
        """When one family has addresses, the other one is not waited for much longer."""
        if settled != NEVER or len(pending) == len(flights):
            return settled
        some = any(
            isinstance(flight.answer, Answer) and flight.answer.addresses
            for flight in flights
            if flight.done.is_set()
        )
        return now + _OTHER_FAMILY if some else NEVER

    def _finish(
        self, host: str, port: int, family: int, found: list[Answer], flights: list[_Flight]
    ) -> tuple[Address, ...]:
        errors: list[OSError] = []
        late = False
        for flight in flights:
            answer = flight.answer
            if answer is None:
                late = flight.stale is None or late
                answer = flight.stale
            if isinstance(answer, OSError):
                errors.append(answer)
            elif answer is not None:
                if answer is flight.stale:
                    with self._lock:
                        self._stats.stale += 1
                found.append(answer)
        addresses = tuple(
            address
            for answer in found
            for address in (_address(text, port) for text in answer.addresses)
            if family in (socket.AF_UNSPEC, address.family)
        )
        if addresses:
            return addresses
        if errors and not late:
            raise errors[0]
        if late:
            raise TimeoutError(f"{host!r} was not resolved in time; asked: {self.asks}")
        why = "has no address" if any(a.exists for a in found) else "does not exist"
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} {why}; asked: {self.asks}")


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


def default_resolver() -> Resolver:
    """The resolver of the process, for whoever has none of its own: getaddrinfo, cached."""
    if not _DEFAULT:
        _DEFAULT.append(Resolver())
    return _DEFAULT[0]
