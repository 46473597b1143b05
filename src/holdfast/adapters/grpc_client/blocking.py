"""One call of grpc without asyncio: its bounds, its record, its errors, and what the caller gets.

A thread cannot be cancelled. What ends a call in time is the time-out that grpc is given, which is
for the whole of it, however the answer trickles. Until the channel is ready there is the share of
the dial as well; a call waits for that in small steps, and ends it by cancelling the call of grpc.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeAlias

import grpc

from holdfast.adapters.grpc_client.ends import came, judged, late, note_times
from holdfast.adapters.grpc_client.outward import (
    DIAL,
    LATER,
    READY,
    SOON,
    Attempt,
    Line,
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

    Attributes:
        overdue: the error for a dial that has used up its share, for which it was cancelled.
    """

    __slots__ = ("_context", "_state", "_until", "overdue")

    def __init__(self, line: Line, state: State, own: Duration | None, waits: bool | None) -> None:
        super().__init__(line, own, waits)
        self._state = state
        self._until: Instant = NEVER
        self.overdue: PhaseTimeout | None = None

    def begin(self, metadata: Any) -> dict[str, Any]:
        """It begins; what grpc is told.

        Raises:
            InsufficientBudget: too little is left, nothing is sent.
        """
        if self.hopeless():
            raise self.refusal()
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
        error = self.overdue or self.call.outbound.errors.phase(trail)
        self.overdue = error
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
        error = self.explain(exc, detail)
        self.done(error)
        return error

    def explain(self, exc: Any, detail: str = "") -> Exception:
        """The same, while nobody is told yet."""
        now = self.call.now()
        if not self.ready and self._state() is READY:
            self.ready = True
            self.call.trail.begin(Phase.GRPC_HEADER, now)
        return judged(self, exc, detail, over=late(self, exc, now))


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
        self._rpc.asked = True
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
    """One answer, later.

    Both the thread of grpc that ends the call and those that ask may be the first to see its end.
    What became of it is settled under a lock, by whoever is first; whoever watches calls is told
    after that and outside of it, as that may take its time, and may ask here.
    """

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
        if not self._over():
            self._wait(timeout)
        error = self._error
        if isinstance(error, grpc.FutureCancelledError):
            raise grpc.FutureCancelledError
        return error

    def add_done_callback(self, fn: Any) -> None:
        """`fn` is called with this future when it is over."""

        def done(_: Any) -> None:
            fn(self)

        self._inner.add_done_callback(done)

    def _over(self) -> bool:
        with self._lock:
            return self._settled

    def _wait(self, timeout: float | None) -> None:
        rpc, inner = self._rpc, self._inner
        if not rpc.ready:
            before = rpc.call.now()
            try:
                rpc.dial(inner, timeout)
            except PhaseTimeout:  # it is kept, and cancels the call
                self._settle(inner)
                return
            if timeout is not None:
                timeout = max(0.0, timeout - (rpc.call.now() - before))
        with suppress(grpc.FutureCancelledError):  # which `_settle` sees as well
            inner.exception(timeout)
        self._settle(inner)

    def _settle(self, inner: Any) -> None:
        """It is over: settle what became of it, once, and say so."""
        rpc = self._rpc
        with self._lock:
            if self._settled:
                return
            error: Any = None
            if rpc.overdue is not None:
                error = rpc.overdue
            elif inner.cancelled():
                error = grpc.FutureCancelledError()
            elif (exc := inner.exception()) is not None:
                error = rpc.explain(exc)
            self._error = error
            self._settled = True
        if error is None:
            rpc.well(inner)
        elif isinstance(error, grpc.FutureCancelledError):
            rpc.cut(error)
        else:
            rpc.done(error)


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
        return came(self._count)
