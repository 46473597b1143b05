"""Which call a thread works for, from its place in the pool to the head of the response."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final

from holdfast.domain.errors import InsufficientBudget, PhaseTimeout
from holdfast.domain.instant import Instant
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime.net.resolver import Resolver
from holdfast.runtime.outbound import Call, Outbound

__all__ = ["WORKING", "PooledCall", "working_for"]

_LONGEST_NAME: Final = 96


class PooledCall(Call):
    """A call that is made in a thread, through a pool.

    A healthy one is asked for nothing, so what happens in it is noted and made a record of when
    somebody asks.

    Attributes:
        record: its record, which may lack what is only noted; for counting.
        until: monotonic instant by which the phase under way must be over.
        resolver: who looks names up for it.
    """

    __slots__ = ("_bounded", "_marks", "record", "resolver", "until")

    resolver: Resolver

    record: Trail

    def __init__(self, outbound: Outbound, method: str, host: str, path: str, target: str) -> None:
        self._marks: list[tuple[Phase, Instant]] | None = []
        super().__init__(outbound, method, host, path, target)
        self._bounded = outbound.options.shares.bounded
        self.until: Instant = self.limit

    @property
    def trail(self) -> Trail:
        """Its record, up to date."""
        marks, self._marks = self._marks, None
        for phase, at in marks or ():
            self.record.begin(phase, at)
        return self.record

    @trail.setter
    def trail(self, trail: Trail) -> None:
        self.record = trail

    def begin(self, phase: Phase) -> Instant:
        """`phase` begins; the monotonic instant by which it must be over."""
        marks = self._marks
        if marks is not None and phase not in self._bounded:
            marks.append((phase, self.now()))
            until = self.limit
        else:
            until = self.trail.begin(phase, self.now())
        self.until = until
        return until

    def done(self, error: BaseException | None = None) -> None:
        """The call is over: whoever watches calls is told, once.

        While a thread makes the call, what ends is one attempt or one redirect of it.
        """
        if self.outbound.options.observer is not None and WORKING.call is not self:
            super().done(error)

    def moved(self, method: str, host: str, path: str, target: str) -> None:
        """The call is sent elsewhere: what comes is that host's."""
        self.record.redirects += 1
        if host:  # no part of the same place
            self._host = self.outbound.options.service or host
            self.name = f"{method} {self._host}{path}"[:_LONGEST_NAME]
            self.record.target = f"{method} {target}"

    def paused(self, detail: str) -> None:
        """The library waits before another attempt, which is no part of any phase."""
        self.trail.end(self.now(), Ended.DONE, detail)

    def dial(self) -> Trail:
        """A dial begins, whose phases are bounded by itself; the record."""
        self.until = self.limit
        return self.trail

    def explained(self, exc: Exception, *, late: bool) -> Exception:
        """What is raised for `exc`; see `Call`."""
        if late and self.until <= self.now() < self.limit:
            return self.overdue()
        return super().explained(exc, late=late)

    def overdue(self) -> PhaseTimeout:
        """The error for a phase that has used up its share."""
        self.trail.end(self.now(), Ended.TIMEOUT)
        return self.outbound.errors.phase(self.trail)

    def too_little(self, detail: str) -> InsufficientBudget:
        """The error for what is not begun, since what is left cannot suffice."""
        self.trail.end(self.now(), Ended.FAILED, detail)
        error = self.outbound.errors.insufficient(self.cause(detail))
        error.trail = self.trail
        error.add_note(self.trail.line())
        return error


class _Working(threading.local):
    """What this thread is doing.

    Attributes:
        call: the call it works for.
        sending: whether that has reached a pool. A call that begins then is another one: of a body
            that is made while it is sent.
    """

    call: PooledCall | None = None
    sending: bool = False


WORKING: Final = _Working()


class working_for:
    """`with working_for(call): ...`: this thread makes `call` in the block."""

    __slots__ = ("_before", "_call")

    def __init__(self, call: PooledCall) -> None:
        self._call = call
        self._before: tuple[PooledCall | None, bool] = (None, False)

    def __enter__(self) -> None:
        self._before = (WORKING.call, WORKING.sending)
        WORKING.call, WORKING.sending = self._call, False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        WORKING.call, WORKING.sending = self._before
