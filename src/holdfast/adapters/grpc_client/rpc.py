"""One call of grpc.aio, from the interceptor to the end of its answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final

import grpc
import grpc.aio
from grpc.aio import AioRpcError

from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Ended, Phase
from holdfast.domain.wire.problem import CAUSE_HEADER
from holdfast.runtime.ambient import hop_reserve
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.outbound import Call, Outbound
from holdfast.runtime.scope import ambient
from holdfast.runtime.timers import Alarm

__all__ = ["Requests", "Rpc", "rounded"]

ROUTE: Final = (Phase.CONNECT, Phase.GRPC_HEADER, Phase.GRPC_MESSAGE)
READY: Final = grpc.ChannelConnectivity.READY
_DIAL: Final = "look-up and TLS are in it"

_SOON: Final[Duration] = 0.001
_LATER: Final[Duration] = 0.02
"""Seconds between two looks at a channel that is not ready, at first and later on."""

_EARLY: Final[Duration] = 0.005
"""Seconds that grpc may be ahead of the deadline that it was given: it goes by the wall clock."""

_SLACK: Final[Duration] = 0.002
"""Seconds that it may add on top, as it goes by whole milliseconds of the wall clock."""

_PATIENCE: Final[Duration] = 0.1
"""Seconds after its limit that a scope has for cancelling what is in it."""

# Below so many seconds grpc writes a time-out down in units of so many, rounded up
# (src/core/lib/transport/timeout_encoding.cc).
_UNITS: Final = ((0.9, 0.001), (9.9, 0.01), (99.0, 0.1), (990.0, 1.0), (9_900.0, 10.0))
_LONGEST_TEXT: Final = 200


def rounded(left: Duration) -> Duration:
    """A time-out for grpc that tells the server no more than `left` seconds.

    grpc rounds up what it tells: 12.34 s would be 12.4 s there, and a deadline would move later
    from hop to hop.
    """
    if left == NEVER:
        return NEVER
    unit = next((unit for below, unit in _UNITS if left < below), 100.0)
    return max(0.0, math.floor(left / unit) * unit - _SLACK)


class Rpc:
    """One call and its record.

    Args:
        outbound: options of the channel.
        channel: the channel, or none when nobody has it any more.
        host: what it leads to.
        details: what the caller asked for.

    Attributes:
        call: its bounds.
        inner: the call of grpc, once it has begun.
        overdue: whether the dial has used up its share, for which `inner` was cancelled.
        waited_for: whether somebody waits for the server, and tells of the end.
        requests: what it sends, where that is a stream.
    """

    def __init__(
        self,
        outbound: Outbound,
        channel: grpc.aio.Channel | None,
        host: str,
        details: Any,
    ) -> None:
        method: bytes | str = details.method
        path = method.decode("ascii", "replace") if isinstance(method, bytes) else str(method)
        self.call = call = Call(outbound, "grpc", host, path, f"{host}{path}")
        self.inner: Any = None
        self.overdue = self.waited_for = False
        self.requests: Requests | None = None
        self._dial: _Dial | None = None
        self._context = copy_context()
        self._channel = channel
        self._details: Any = details
        # The time-out that the caller gave to grpc: where it is spent, that is grpc's own error.
        self._own: Instant = NEVER if details.timeout is None else call.begun + details.timeout
        self._given: Instant = NEVER
        self._kept: Duration = 0.0
        trail = call.trail
        trail.route = ROUTE
        trail.limit = min(call.limit, self._own)
        if details.wait_for_ready:  # to wait is what was asked for
            bounded = tuple(phase for phase in trail.shares.bounded if phase is not Phase.CONNECT)
            trail.shares = replace(trail.shares, bounded=bounded)

    # -- until it is sent ------------------------------------------------------------------------

    async def begin(self, proceed: Callable[[Any, Any], Awaitable[Any]], request: Any) -> Any:
        """Start; the call of grpc.

        Raises:
            InsufficientBudget: too little is left, nothing was sent.
        """
        call, channel = self.call, self._channel
        try:
            call.admit()
            ready = channel is None or channel.get_state() is READY
            phase = Phase.GRPC_HEADER if ready else Phase.CONNECT
            until = call.trail.begin(phase, call.now())
            if isinstance(request, Requests):
                self.requests = request
            self.inner = inner = await proceed(self._filled(), request)
        except asyncio.CancelledError as exc:
            self.cut(exc)
            raise
        except Exception as exc:
            call.trail.end(call.now(), Ended.FAILED, type(exc).__name__)
            call.done(exc)
            raise
        inner.add_done_callback(self._left)
        if channel is not None and not ready:
            self._dial = _Dial(self, channel, until)
        return inner

    def _filled(self) -> Any:
        """What the caller asked for, with what is left and who this is."""
        call, details = self.call, self._details
        now = call.now()
        timeout = details.timeout
        if call.limit != NEVER:
            self._kept = max(call.outbound.options.reserve, hop_reserve())
            left = rounded(call.left - self._kept)
            self._given = now + left
            timeout = left if timeout is None else min(left, self._own - now)
        elif timeout is not None:
            timeout = self._own - now
        return details._replace(
            timeout=None if timeout is None else max(0.0, timeout),
            metadata=self._metadata(),
        )

    def _metadata(self) -> grpc.aio.Metadata:
        theirs: list[tuple[str, str | bytes]] = list(self._details.metadata or ())
        texts = {key: value for key, value in theirs if isinstance(value, str)}
        # The time left goes in a header of grpc's own, which it writes itself.
        ours = {
            key: value
            for key, value in self.call.joined(texts).items()
            if not key.startswith("grpc-")
        }
        kept = [(key, value) for key, value in theirs if key.lower() not in ours]
        return grpc.aio.Metadata(*kept, *ours.items())

    # -- while it is answered --------------------------------------------------------------------

    def answered(self) -> None:
        """The server has answered; the channel is ready, then."""
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.over()
            self.connected()

    def connected(self) -> None:
        """The channel is ready."""
        trail = self.call.trail
        if trail.current is Phase.CONNECT:
            trail.begin(Phase.GRPC_HEADER, self.call.now())

    async def head(self) -> None:
        """Wait for its initial metadata, or for its end."""
        metadata = await self.inner.initial_metadata()
        if metadata or not self.inner.done():
            self.answered()
            self.call.trail.begin(Phase.GRPC_MESSAGE, self.call.now())

    def done(self) -> None:
        """All has gone well."""
        self.answered()
        self.call.done()

    def cut(self, exc: asyncio.CancelledError, detail: str = "") -> None:
        """It is cancelled where it is."""
        self._settle()
        blamed(self.call.trail, self.call.now(), detail)
        self.call.done(exc)
        if self.inner is not None:
            self.inner.cancel()

    def late(self) -> PhaseTimeout | None:
        """The error for a dial that has used up its share, which is why we cancelled; else none."""
        if not self.overdue:
            return None
        trail = self.call.trail
        trail.end(self.call.now(), Ended.TIMEOUT, _DIAL)
        error = self.call.outbound.errors.phase(trail)
        self.call.done(error)
        return error

    def _left(self, inner: Any) -> None:
        """grpc is done with it; somebody may have cancelled it without waiting for it."""
        if self.requests is not None:
            self.requests.end()
        if inner.cancelled() and not self.waited_for and not self.overdue:
            self._settle()
            self.call.trail.end(self.call.now(), Ended.CANCELLED)
            self._context.run(self.call.done)  # grpc calls this from nowhere

    def _settle(self) -> None:
        """Look for a last time whether the channel is ready: it has ended."""
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.over()
            if dial.ready():
                self.connected()

    async def explained(self, exc: AioRpcError, detail: str = "") -> Exception:
        """What is raised for an error of grpc."""
        self._settle()
        error = await self._explain(exc, detail)
        self.call.done(error)
        return error

    async def _explain(self, exc: AioRpcError, detail: str) -> Exception:
        call, trail, now = self.call, self.call.trail, self.call.now()
        late = exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if late and self._given <= self._own and self._given - _EARLY <= now:
            if not self._kept:
                await self._wait_for_the_end()
            trail.end(call.now(), Ended.TIMEOUT, detail)
            return call.over()
        late = late and self._own - _EARLY <= now
        said = f"{exc.code().name}: {exc.details() or ''}"[:_LONGEST_TEXT]
        trail.end(now, Ended.TIMEOUT if late else Ended.FAILED, detail or said)
        exc.add_note(trail.line())
        if late:
            exc.trail = trail  # type: ignore[attr-defined]
            return exc
        return self._hop(exc)

    async def _wait_for_the_end(self) -> None:
        """Let the scope around end the call: what grpc was given is over a moment before it is."""
        call, here = self.call, ambient()
        inside = here is not None and here.limit <= call.limit
        await Bell().wait(call.limit + (_PATIENCE if inside else 0.0))

    def _hop(self, exc: AioRpcError) -> Exception:
        """The error of a server that says that its part of the deadline is spent."""
        texts = {k: v for k, v in exc.trailing_metadata() or () if isinstance(v, str)}
        if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED and CAUSE_HEADER in texts:
            try:
                self.call.observe(504, texts)
            except DeadlineExceeded as error:
                error.__cause__ = exc
                return error
        return exc


class Requests:
    """The requests of a stream, until the call is over.

    grpc takes them in a task of its own. Where a call ends before they do, it would leave that task
    waiting for the next one.

    Args:
        source: of the caller, asynchronous or not.
    """

    def __init__(self, source: Any) -> None:
        self._next = source.__aiter__().__anext__ if hasattr(source, "__aiter__") else None
        self._plain = iter(()) if self._next is not None else iter(source)
        self._task: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        if self._next is None:
            for request in self._plain:
                return request
            raise StopAsyncIteration
        self._task = asyncio.current_task()
        try:
            return await self._next()
        finally:
            self._task = None

    def end(self) -> None:
        """The call is over."""
        if self._task is not None:
            self._task.cancel()


class _Dial:
    """Looks whether the channel is ready, while a call waits for that.

    The call itself is under way: grpc sends it as soon as it can, or fails it. To be told of a
    change of the state would leave a waiter in the channel for each call that was given up.
    """

    def __init__(self, rpc: Rpc, channel: grpc.aio.Channel, until: Instant) -> None:
        self._rpc = rpc
        self._channel = channel
        self._until = until
        self._pace = _SOON
        self._driver = driver_of(asyncio.get_running_loop())
        self._alarm: Alarm | None = None
        self._again(self._driver.now())

    def ready(self) -> bool:
        return self._channel.get_state() is READY

    def over(self) -> None:
        """It need not be looked at any more."""
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._driver.drop(alarm)

    def _again(self, now: Instant) -> None:
        self._alarm = self._driver.alarm(min(now + self._pace, self._until), self._look)
        self._pace = min(2 * self._pace, _LATER)

    def _look(self) -> None:
        self._alarm = None
        rpc, now = self._rpc, self._driver.now()
        if rpc.inner.done():
            return
        if self.ready():
            rpc.connected()
        elif self._until > now:
            self._again(now)
        elif not rpc.call.trail.spent(now):
            rpc.overdue = True
            rpc.inner.cancel()
