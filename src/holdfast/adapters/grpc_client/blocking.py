"""One call of grpc without asyncio: its bounds, its record, its errors, and what the caller gets.

A thread cannot be cancelled. What ends a call in time is the time-out that grpc is given, which is
for the whole of it, however the answer trickles. Until the channel is ready there is the share of
the dial as well; a call waits for that in small steps, and ends it by cancelling the call of grpc.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, TypeAlias

import grpc

from holdfast.adapters.grpc_client.outward import (
    DIAL,
    LATER,
    READY,
    SOON,
    Attempt,
    Line,
    hop_error,
    note_times,
    said_below,
    spoken,
)
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Ended, Phase

__all__ = ["BlockingRpc", "FutureAnswer", "State", "StreamedAnswers"]

State: TypeAlias = Callable[[], grpc.ChannelConnectivity | None]
"""Of a channel; none where it cannot be told."""


class BlockingRpc(Attempt):
    """One call and its record.

    Args:
        line: the method.
        state: of the channel.
        own: seconds that the caller allows; none without.
        waits: whether the call waits for the channel to be ready.

    """

    __slots__ = ("_context", "_state", "_until")

    def __init__(self, line: Line, state: State, own: Duration | None, waits: bool | None) -> None:
        super().__init__(line, own, waits)
        self._state = state
        self._until: Instant = NEVER

    def begin(self, metadata: Any) -> dict[str, Any]:
        """It begins; what grpc is told.

        Raises:
            InsufficientBudget: too little is left, nothing is sent.
        """
        if self.left != NEVER and self.hopeless():
            self._refuse()
        state = self._state()
        if state is not READY and state is not None:
            self.ready = False
            self._until = self.call.trail.begin(Phase.CONNECT, self.begun)
        if self.line.watched:
            self._context = copy_context()
        return {
            "timeout": self.seconds(),
            "metadata": self.line.metadata(self, metadata),
            "wait_for_ready": self.waits,
        }

    def _refuse(self) -> None:
        try:
            self.ready = False  # so that nothing is said to have begun
            self.call.admit()
        except Exception as exc:
            self.call.done(exc)
            raise

    def dial(self, inner: Any, patience: Duration | None = None) -> None:
        """Wait until the channel is ready, or the call is over.

        Args:
            inner: the call of grpc.
            patience: seconds; none for as long as it may take.

        Raises:
            PhaseTimeout: the share of the dial is spent, and the whole is not; it is cancelled.
            grpc.FutureTimeoutError: `patience` is over.
        """
        if self.ready:
            return
        call, over, pace = self.call, threading.Event(), SOON
        enough = NEVER if patience is None else call.now() + patience
        if not inner.add_callback(over.set):
            return
        while not over.wait(pace):
            state, now = self._state(), call.now()
            if state is READY:
                self.ready = True
                call.trail.begin(Phase.GRPC_HEADER, now)
                return
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not self.waits:
                return  # grpc fails it now
            if now >= self._until:
                if not call.trail.spent(now):
                    self._give_up(inner, now)
                return
            if now >= enough:
                raise grpc.FutureTimeoutError
            pace = max(0.0, min(2 * pace, LATER, self._until - now, enough - now))

    def _give_up(self, inner: Any, now: Instant) -> None:
        trail = self.call.trail
        trail.end(now, Ended.TIMEOUT, DIAL)
        error = self.call.outbound.errors.phase(trail)
        self.done(error)
        inner.cancel()  # after it is told: whoever is called back by grpc would tell it otherwise
        raise error

    def head(self, inner: Any) -> None:
        """Wait for its initial metadata, or for its end."""
        if inner.initial_metadata() or inner.is_active():
            self.message()

    def message(self) -> None:
        """The server has begun to answer; the channel is ready, then."""
        trail, now = self.call.trail, self.call.now()
        if not self.ready:
            self.ready = True
            trail.begin(Phase.GRPC_HEADER, now)
        trail.begin(Phase.GRPC_MESSAGE, now)

    def well(self, inner: Any) -> None:
        """All has gone well."""
        if (ledger := self.ledger) is not None:
            note_times(ledger, inner.trailing_metadata())
        self.done()

    def done(self, error: BaseException | None = None) -> None:
        """It is over; whoever watches calls is told, in the context that it began in."""
        if self.line.watched:
            self._context.copy().run(self.call.done, error)
        elif self.recorded:
            self.call.done(error)

    def cut(self, exc: BaseException, detail: str = "") -> None:
        """It ends for a reason that is none of grpc's."""
        self.call.trail.end(self.call.now(), Ended.CANCELLED, detail)
        self.done(exc)

    def explained(self, exc: Any, detail: str = "") -> Exception:
        """What is raised for an error of grpc."""
        if not self.ready and self._state() is READY:
            self.ready = True
            self.call.trail.begin(Phase.GRPC_HEADER, self.call.now())
        error = self._explain(exc, detail)
        self.done(error)
        return error

    def _explain(self, exc: Any, detail: str) -> Exception:
        call, trail, now = self.call, self.call.trail, self.call.now()
        below = said_below(self, exc.trailing_metadata())
        code = exc.code()
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        if late and self.late(now):
            trail.end(now, Ended.TIMEOUT, detail)
            return call.over()
        late = late and self.late_for_caller(now)
        ended = Ended.CANCELLED if code is grpc.StatusCode.CANCELLED else Ended.FAILED
        trail.end(now, Ended.TIMEOUT if late else ended, detail or spoken(exc))
        exc.add_note(trail.line())
        if below is not None:
            exc.add_note(f"the server said: {below.line()}")
        if late:
            exc.trail = trail
        error = None if late else hop_error(call, exc, below)
        if error is None:
            found: Exception = exc
            return found
        error.__cause__ = exc
        return error


class _Delegating(grpc.Call):
    """A call. Everything but the waiting is the call of grpc itself."""

    def __init__(self, rpc: BlockingRpc, inner: Any) -> None:
        self._rpc = rpc
        self._inner = inner

    def is_active(self) -> bool:
        return bool(self._inner.is_active())

    def time_remaining(self) -> Any:
        return self._inner.time_remaining()

    def cancel(self) -> Any:
        return self._inner.cancel()

    def add_callback(self, callback: Any) -> Any:
        return self._inner.add_callback(callback)

    def initial_metadata(self) -> Any:
        return self._inner.initial_metadata()

    def trailing_metadata(self) -> Any:
        return self._inner.trailing_metadata()

    def code(self) -> Any:
        return self._inner.code()

    def details(self) -> Any:
        return self._inner.details()

    def cancelled(self) -> bool:
        return bool(self._inner.cancelled())

    def running(self) -> bool:
        return bool(self._inner.running())

    def done(self) -> bool:
        return bool(self._inner.done())

    def traceback(self, timeout: float | None = None) -> Any:
        return self._inner.traceback(timeout)

    def __getattr__(self, name: str) -> Any:
        # grpc asks its calls for more than it promises.
        return getattr(self._inner, name)


class FutureAnswer(_Delegating, grpc.Future):  # type: ignore[type-arg]
    """One answer, later."""

    def __init__(self, rpc: BlockingRpc, inner: Any) -> None:
        super().__init__(rpc, inner)
        self._lock = threading.Lock()
        self._settled = False
        self._error: Exception | None = None
        inner.add_done_callback(self._settle)

    def result(self, timeout: float | None = None) -> Any:
        """The answer.

        Args:
            timeout: seconds to wait for it here; the call goes on after that.

        Raises:
            grpc.FutureTimeoutError: `timeout` is over.
            grpc.FutureCancelledError: it was cancelled.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._inner.result()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """What `result` raises, or none; see there."""
        rpc, before = self._rpc, self._rpc.call.now()
        if not self._settled and not rpc.ready:
            try:
                rpc.dial(self._inner, timeout)
            except PhaseTimeout as exc:
                with self._lock:
                    self._settled, self._error = True, self._error or exc
            if timeout is not None:
                timeout = max(0.0, timeout - (rpc.call.now() - before))
        if not self._settled:
            self._inner.exception(timeout)
            self._settle(self._inner)
        return self._error

    def add_done_callback(self, fn: Any) -> None:
        """`fn` is called with this future when it is over."""

        def done(_: Any) -> None:
            fn(self)

        self._inner.add_done_callback(done)

    def _settle(self, inner: Any) -> None:
        """It is over: say so, once; in whichever thread sees it first."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
            if inner.cancelled():
                self._rpc.cut(grpc.FutureCancelledError())
                return
            exc: Any = inner.exception()
            if exc is None:
                self._rpc.well(inner)
            else:
                self._error = self._rpc.explained(exc)


class StreamedAnswers(_Delegating):
    """The answers of a stream."""

    def __init__(self, rpc: BlockingRpc, inner: Any) -> None:
        super().__init__(rpc, inner)
        self._begun = False
        self._count = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        rpc, inner = self._rpc, self._inner
        try:
            if not self._begun:
                rpc.dial(inner)
                rpc.head(inner)
                self._begun = True
            message = next(inner)
        except StopIteration:
            rpc.well(inner)
            raise
        except PhaseTimeout:
            raise
        except grpc.RpcError as exc:
            error = rpc.explained(exc, self._detail)
            if error is exc:
                raise
            raise error from exc
        except BaseException as exc:
            inner.cancel()
            rpc.cut(exc, self._detail)
            raise
        self._count += 1
        return message

    next = __next__

    @property
    def _detail(self) -> str:
        if not self._count:
            return ""
        return "1 message came" if self._count == 1 else f"{self._count} messages came"
