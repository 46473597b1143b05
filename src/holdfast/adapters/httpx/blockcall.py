"""A call that is made in a thread: which one it is, and how long the thread may wait for it."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any, Final

from holdfast.adapters.httpx.call import Call, Compiled
from holdfast.adapters.httpx.events import tighter
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Phase, Trail
from holdfast.runtime.net.blocking import move_bound, within_limit

__all__ = ["WORKING", "BlockingCall", "Step", "working_for"]

_STALE: Final[Duration] = 0.001
"""Seconds after which what was left is worked out again: the unit of what is told."""


class Step(IntEnum):
    """What the network has seen of a call."""

    NONE = 0
    SENDS = 1
    AWAITS = 2


class BlockingCall(Call):
    """A call that is made in a thread.

    Attributes:
        until: monotonic instant by which the phase under way must be over.
        watched: whether the pool tells how far it is. Where it does not, the network knows.
        told: monotonic instant at which what is left was worked out for the headers.
        step: what the network has seen of it.
    """

    __slots__ = ("step", "told", "until", "watched")

    def __init__(self, compiled: Compiled, request: Any, *, watched: bool = True) -> None:
        super().__init__(compiled, request)
        self.until: Instant = self._limit
        self.watched = watched
        self.told: Instant = self.begun
        self.step = Step.NONE

    def enter(self, phase: Phase) -> None:
        """`phase` begins, and what this thread waits for ends with its share, where it has one."""
        if phase in self.compiled.bounded:
            self.until = self.trail.begin(phase, self.now())
        else:
            self.progress.note(phase)
            if self.until == self._limit:
                return
            self.until = self._limit
        move_bound(self.until)

    def dial(self) -> Trail:
        """The pool dials, and bounds are those of the dial; the record."""
        self.until = self.limit
        move_bound(self.until)
        self.step = Step.NONE
        return self.trail

    def writes(self, data: bytes) -> bytes:
        """The first bytes of the request go out; they, with what is left now."""
        self.step = Step.SENDS
        self.enter(Phase.REQUEST)
        late = self._limit != NEVER and self.now() - self.told >= _STALE
        return _refreshed(self, data) if late else data

    def reads(self) -> None:
        """The request is sent, and its answer is waited for."""
        self.step = Step.AWAITS
        self.enter(Phase.HEADER)

    def explained(self, exc: Exception, *, late: bool | None = None) -> Exception:
        """What is raised for `exc`; see `Call`."""
        if isinstance(exc, self.library.api.TimeoutException):
            now = self.now()
            self.overdue = self.until <= now < self.limit
        return super().explained(exc, late=late)


def _refreshed(call: BlockingCall, data: bytes) -> bytes:
    """The head of a request of HTTP/1.1, with what is left now in place of what was left before."""
    head, end, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = call.outbound.codec.headers(call.left, reserve=call.reserve)
    fresh = {name.encode(): value.encode() for name, value in headers}
    for at, line in enumerate(lines[1:], 1):
        name, colon, value = line.partition(b":")
        if name.lower() in fresh:
            decode = call.outbound.budgets.get(name.lower())
            tight = tighter(value.strip(), fresh[name.lower()], decode)
            lines[at] = name + colon + b" " + tight
    return b"\r\n".join(lines) + end + rest


class _Working(threading.local):
    call: BlockingCall | None = None


WORKING: Final = _Working()


class working_for(within_limit):
    """`with working_for(call): ...`: this thread works for `call`, and waits no longer than it."""

    __slots__ = ("_call", "_other")

    _other: BlockingCall | None

    def __init__(self, call: BlockingCall) -> None:
        super().__init__(call.limit)
        self._call = call

    def __enter__(self) -> None:
        self._other, WORKING.call = WORKING.call, self._call
        super().__enter__()
        if self._call.until < self._limit:
            move_bound(self._call.until)

    def __exit__(self, *_: object) -> None:
        WORKING.call = self._other
        super().__exit__()
