"""What holds for the calls of a server, and for those of one method of it.

A carrier of coroutines and one of threads have this in common: the policy, what was counted, and
whether the server stops. What a policy says of one method is looked up once, and kept until the
policy changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from holdfast.domain.cause import Cause
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.domain.wire.ending import request_name
from holdfast.runtime.terms import Terms

__all__ = ["MethodTerms", "Rules", "Stop"]

_log: Final = logging.getLogger("holdfast.grpc")
_AGENT: Final = b"user-agent"
_ROUNDS: Final = "grpc-c/"
"""Clients on the core in C (Python, C++, Ruby) round up the time that they tell; those in Go, Java
and Rust do not."""


class Stop:
    """Whether the server stops, for those who serve and those who wait for it. Once for ever.

    Attributes:
        begun: whether the stop has begun.
        closed: whether new calls are turned away.
        cut: whether what is still served has been cut.
    """

    def __init__(self) -> None:
        self.begun = self.closed = self.cut = False
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def begin(self) -> None:
        """The stop has begun."""
        self.begun = True
        for waiter, loop in tuple(self._waiting.items()):
            try:
                loop.call_soon_threadsafe(_done, waiter)
            except RuntimeError:  # its loop is closed, so nobody waits there any more
                self._waiting.pop(waiter, None)

    async def wait(self) -> None:
        """Wait until it has begun; from then on return at once."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting[waiter] = loop
        try:
            if not self.begun:
                await waiter
        finally:
            self._waiting.pop(waiter, None)


def _done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Rules:
    """What a carrier has of its own, whatever the kind of its server.

    Args:
        policy: limits by route, which is the path of a method, `/shop.Orders/Get` or
            `/shop.Orders/*`; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        timings: see the carriers.

    Attributes:
        counts: calls by what became of them.
        ending: whether the server stops.
        threads: calls whose handlers run in threads.
    """

    ending: Stop

    def __init__(
        self, policy: Policy | None = None, *, service: str = "", timings: bool = True
    ) -> None:
        self.timings = timings
        self.counts: Counter[str] = Counter()
        self.threads: set[object] = set()
        self._service = service
        self.policy = DEFAULT_POLICY if policy is None else policy

    @property
    def policy(self) -> Policy:
        """The policy in force. It may be replaced at any time; calls under way keep theirs."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy.for_service(self._service) if self._service else policy
        self.terms = Terms(self._policy, self.counts)
        self.names = {name.decode("latin-1"): name for name in (*self.terms.codec.names, _AGENT)}
        self._renew()

    def _renew(self) -> None:
        """The policy is another one."""

    def thread_done(self, call: object) -> None:
        """A handler in a thread has ended; is called there."""
        self.threads.discard(call)

    def note(self, name: str, request_id: str, status: str, cause: Cause) -> None:
        """A call was ended by `cause`."""
        self.counts[f"ended.{cause.kind}"] += 1
        _log.info("%s %s request_id=%s: %s", status, name, request_id, cause.line())


class MethodTerms:
    """What holds for the calls of one method; see the module.

    Args:
        rules: of the carrier.
        path: of the method, `/shop.Orders/Get`.
        streams: whether one of its sides is a stream.

    Attributes:
        bounds: whether the policy cuts; in the modes `observe` and `off` it does not.
        needed: seconds below which a call is refused.
        total: seconds that the policy gives a call; infinite for streams.
        idle: seconds that may pass without a message; infinite where a total limit holds instead.
    """

    __slots__ = (
        "_names", "bounds", "codec", "counts", "details", "ending", "grace", "hop", "idle", "name",
        "needed", "observing", "reserve", "sample", "timing", "total",
    )  # fmt: skip

    def __init__(self, rules: Rules, path: str, streams: bool) -> None:
        terms = rules.terms
        self.ending = rules.ending
        self._names = rules.names
        self.name = request_name("grpc", path)
        self.codec = terms.codec
        self.counts = terms.counts
        self.details = terms.details
        self.timing = terms.timing
        self.hop = terms.hop
        self.observing = terms.observing
        self.bounds = terms.policy.mode == "enforce"
        self.sample = terms.sample
        resolved = terms.policy.limits(path, "POST")  # what a call is, seen from HTTP
        limits = resolved.limits
        self.grace, self.reserve = limits.grace, limits.reserve
        self.needed = limits.refuse_below
        if resolved.stream or (streams and resolved.stream is None):
            self.total: Duration = NEVER
            self.idle: Duration = limits.idle
        else:
            self.total, self.idle = limits.request, NEVER

    def read(self, metadata: Sequence[Any]) -> tuple[Duration, bool, list[tuple[bytes, bytes]]]:
        """What the metadata of a call say to us.

        Seconds left (infinite where they do not say), whether the caller may have rounded up what
        gRPC says, and those that are ours.
        """
        names = self._names
        ours: list[tuple[bytes, bytes]] = []
        rounds = False
        for key, value in metadata:
            name = names.get(key)
            if name is None:
                continue
            if name == _AGENT:
                rounds = isinstance(value, str) and _ROUNDS in value
            else:
                raw = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
                ours.append((name, raw))
        if not ours:
            return NEVER, rounds, ours
        left, malformed, ours = self.codec.glance(ours)
        if malformed:
            self.counts["malformed_header"] += malformed
        return left, rounds, ours
