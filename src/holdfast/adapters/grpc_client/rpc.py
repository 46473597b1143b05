"""One call of grpc.aio, from its beginning to the end of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import copy_context
from typing import Any

import grpc
import grpc.aio
from grpc.aio import AioRpcError

from holdfast.adapters.grpc_client.ends import judged, late, note_times
from holdfast.adapters.grpc_client.outward import (
    DIAL,
    LATER,
    READY,
    SOON,
    Attempt,
    Line,
)
from holdfast.domain.errors import InsufficientBudget, PhaseTimeout
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Ended, Phase
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.scope import ambient
from holdfast.runtime.timers import Alarm

__all__ = ["Requests", "Rpc"]

_PATIENCE: Duration = 0.1
"""Seconds after its limit that a scope has for cancelling what is in it."""


class Rpc(Attempt):
    """One call and its record.

    Args:
        line: the method.
        channel: of grpc.
        own: seconds that the caller allows; none without.
        waits: whether the call waits for the channel to be ready.

    Attributes:
        dial: what looks whether the channel is ready, where it was not yet.
        inner: the call of grpc, once it has begun.
        overdue: whether the dial has used up its share, for which `inner` was cancelled.
        waiters: how many wait for the server, and tell of the end.
        requests: what it sends, where that is a stream.
    """

    __slots__ = ("_channel", "_context", "dial", "inner", "overdue", "requests", "waiters")

    def __init__(
        self, line: Line, channel: grpc.aio.Channel, own: Duration | None, waits: bool | None
    ) -> None:
        super().__init__(line, own, waits)
        self.inner: Any = None
        self.overdue = False
        self.waiters = 0
        self.requests: Requests | None = None
        self.dial: _Dial | None = None
        self._channel = channel

    # -- until it is sent ------------------------------------------------------------------------

    def begin(
        self,
        start: Callable[..., Any],
        request: Any,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        compression: grpc.Compression | None,
    ) -> Any:
        """Start; the call of grpc, or what stands for it where too little is left."""
        if self.hopeless():
            self.inner = refusal = Refusal(self.refusal())
            return refusal
        self.ready = ready = self._channel.get_state() is READY
        until = NEVER if ready else self.call.trail.begin(Phase.CONNECT, self.begun)
        try:
            self.inner = inner = start(
                request,
                timeout=self.seconds(),
                metadata=self.line.metadata(self, metadata),
                credentials=credentials,
                wait_for_ready=self.waits,
                compression=compression,
            )
        except Exception as exc:
            call = self.call
            call.trail.end(call.now(), Ended.FAILED, type(exc).__name__)
            call.done(exc)
            raise
        if isinstance(request, Requests):
            self.requests = request
            inner.add_done_callback(self._left)
        if self.line.watched:
            self._watch(inner)
        if not ready:
            self.dial = _Dial(self, self._channel, until)
        return inner

    def _watch(self, inner: Any) -> None:
        """Somebody is told of it, whatever becomes of it."""
        self._context = copy_context()
        if self.requests is None:
            inner.add_done_callback(self._left)

    # -- while it is answered --------------------------------------------------------------------

    def answered(self) -> None:
        """The server has answered; the channel is ready, then."""
        dial, self.dial = self.dial, None
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

    async def told(self) -> None:
        """All has gone well, and somebody notes what the server has spent."""
        if (ledger := self.ledger) is not None:
            note_times(ledger, await self.inner.trailing_metadata())
        self.done()

    def done(self) -> None:
        """All has gone well."""
        if self.dial is not None:
            self.answered()
        if self.line.watched or self.recorded:
            self.call.done()

    def cut(self, exc: asyncio.CancelledError, detail: str = "") -> None:
        """It is cancelled where it is."""
        self._settle()
        blamed(self.call.trail, self.call.now(), detail)
        self.call.done(exc)
        self.inner.cancel()

    def undialled(self) -> PhaseTimeout | None:
        """The error for a dial that has used up its share, which is why we cancelled; else none."""
        if not self.overdue:
            return None
        trail = self.call.trail
        trail.end(self.call.now(), Ended.TIMEOUT, DIAL)
        error = self.call.outbound.errors.phase(trail)
        self.call.done(error)
        return error

    def _left(self, inner: Any) -> None:
        """grpc is done with it; somebody may have cancelled it without waiting for it."""
        if self.requests is not None:
            self.requests.end()
        if inner.cancelled() and not self.waiters and not self.overdue:
            self._settle()
            call = self.call
            call.trail.end(call.now(), Ended.CANCELLED)
            if self.line.watched:
                self._context.run(call.done)  # grpc calls this from nowhere

    def _settle(self) -> None:
        """Look for a last time whether the channel is ready: it has ended."""
        dial, self.dial = self.dial, None
        if dial is not None:
            dial.over()
            if dial.ready():
                self.connected()

    async def explained(self, exc: AioRpcError, detail: str = "") -> Exception:
        """What is raised for an error of grpc."""
        if isinstance(exc, InsufficientBudget):
            return exc
        self._settle()
        call = self.call
        over = late(self, exc, call.now())
        if over and not self.kept:
            await self._wait_for_the_end()
        error = judged(self, exc, detail, over=over)
        call.done(error)
        return error

    async def _wait_for_the_end(self) -> None:
        """Let the scope around end the call: what grpc was given is over a moment before it is."""
        call, here = self.call, ambient()
        inside = here is not None and here.limit <= call.limit
        await Bell().wait(call.limit + (_PATIENCE if inside else 0.0))


class Refusal:
    """Stands for the call of grpc where none was made."""

    def __init__(self, error: Any) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        return self.read().__await__()

    def __aiter__(self) -> Refusal:
        return self

    async def __anext__(self) -> Any:
        raise self._error

    async def read(self) -> Any:
        raise self._error

    async def write(self, request: Any) -> None:
        raise self._error

    async def done_writing(self) -> None:
        """As of a call that is over."""

    def cancel(self) -> bool:
        return False

    cancelled = cancel

    def done(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return 0.0

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._error.code()
        return code

    async def details(self) -> str:
        return str(self._error)

    async def wait_for_connection(self) -> None:
        raise self._error


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
        self._pace = SOON
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
        self._pace = min(2 * self._pace, LATER)

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
