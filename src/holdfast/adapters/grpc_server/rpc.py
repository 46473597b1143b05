"""The scope of one call: what its caller gave, who it is, and why it has ended.

grpc.aio cancels the task of a handler by itself when the client goes away or the deadline is spent,
and says to nobody why. It is told here by where the call stands then: the task of grpc that listens
for the end of the call waits for the handler as soon as it has heard of it, and not before.

The handler ends a moment before gRPC would end the call on both sides, so that the answer that says
why is there in time: see `ahead`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

from holdfast.adapters.grpc_server.terms import MethodTerms
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.wire.ending import ended_by, is_late
from holdfast.domain.wire.timing import hop_timing
from holdfast.domain.wire.trace import identify
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id
from holdfast.runtime.driver import driver_of
from holdfast.runtime.hosted import NOT_ENTERED
from holdfast.runtime.idling import IdleWatch
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import AMBIENT, Scope, ambient, running_task

__all__ = ["Rpc", "ahead", "present"]

_MOST: Final[Duration] = 1e8
"""Seconds; gRPC tells of no deadline by one that is centuries away."""

_UNITS: Final = ((0.95, 0.001), (9.5, 0.01), (95.0, 0.1), (950.0, 1.0), (9_500.0, 10.0))
"""Seconds below which the core of gRPC in C writes a time-out in units of so many, rounded up."""

_REPEATS: Final = 0.03
"""Where it has sent a time-out that was longer by no more than this, it refers to that one, as that
is shorter to write (`TimeoutCompressor` in src/core/ext/transport/chttp2/transport)."""

_ANSWER: Final[Duration] = 0.01
"""Seconds that the handler has for its end, and the answer for its way to the client.

Measured over loopback on two cores that had nine times as much to do as they can: of calls with 0.3
s and 1 s that ran into it every 4 ms the answer was there in time for all of 300, with 2 ms for 98
in 100; of 50 at the same instant for all, and of 200 for a third to four fifths.
"""

_SHARE: Final = 0.1
"""What that may take of a short deadline at most."""

_ROUNDING: Final[Duration] = 0.002
"""Seconds that the clock of gRPC, which has whole milliseconds, may be off."""

_LISTENER: Final = "_schedule_rpc_coro"
"""The coroutine in which grpc.aio listens for the end of a call: it has been that in all versions
that are supported. A test of every kind of call fails when it is not."""

_one_identity: Final = Lock()


def ahead(told: Duration, rounds: bool, exact: bool) -> Duration:
    """Seconds by which a handler ends before the deadline that gRPC tells.

    Args:
        told: seconds that gRPC says are left.
        rounds: whether the caller rounds up what it tells.
        exact: whether it also says so in a header, to the millisecond.
    """
    margin = _ANSWER
    if rounds:
        for below, unit in _UNITS:
            if told < below:
                margin += unit
                break
        else:
            margin += 100.0
    most = told * _SHARE
    if margin > most:
        margin = most
    return margin + told * _REPEATS if rounds and not exact else margin


class Rpc(Scope):
    """The scope of one call.

    Args:
        terms: of its method.
        arrival: instant at which it came.
        metadata: that it brings.
        told: seconds that gRPC says are left; none without a deadline.
        now: instant at which it said so.

    Attributes:
        terms: as given.
        arrival: as given.
        touched: instant of the last message of a stream; at first that at which it was opened.
        end_of_caller: instant by which the caller wants its answer; infinite without a deadline.
        end_of_grpc: instant at which gRPC ends the call; infinite without one.
        refusal: why it was not begun.
    """

    __slots__ = (
        "_cause",
        "_given",
        "_ledger",
        "_ours",
        "arrival",
        "at",
        "end_of_caller",
        "end_of_grpc",
        "hop",
        "reserve",
        "terms",
        "touched",
    )

    refusal: str = ""
    _idling: IdleWatch | None = None

    def __init__(
        self,
        terms: MethodTerms,
        arrival: Instant,
        metadata: Sequence[tuple[str, str | bytes]],
        told: Duration | None,
        now: Instant,
    ) -> None:
        # Not super().__init__: as this runs for every call, and `cause` is more than a slot here.
        self.name = terms.name
        self.parent = self.children = self.outcome = None
        self._cause: Cause | None = None
        self.limit = self.wish = NEVER
        self.opened_at = 0.0
        self.driver = NOT_ENTERED
        self.outer = self.task = self.mark = self.done = None
        self.baseline = self.delivered = 0
        self.tightens = self.settled = False
        self.special = True
        self._given: Carried | None = None
        self._ledger: Ledger | None = None
        self.terms = terms
        self.arrival = arrival
        self.touched: Instant = now
        self.hop = terms.hop
        self.reserve = terms.reserve
        left, rounds, self._ours = terms.read(metadata)
        at = arrival + left
        if told is None or told >= _MOST:
            self.end_of_grpc = NEVER
        else:
            self.end_of_grpc = end = now + told
            margin = ahead(told, rounds, left != NEVER)
            at = (end if end < at else at) - margin
        self.end_of_caller = at
        if not terms.bounds:
            at = NEVER
        else:
            own = arrival + terms.total
            if own < at:
                at = own
        self.at = at
        if terms.grace:
            # Of a caller that gave little, half at most is kept for clean-up.
            self.grace = min(terms.grace, max(0.0, at - now) / 2)

    @property
    def cause(self) -> Cause | None:
        """Why it was cancelled, when the cancellation began here. Also when grpc has begun it."""
        found = self._cause
        if found is None:
            task = self.task
            if (
                task is not None
                and task.cancelling() > self.baseline + self.delivered
                and self.outcome is None
            ):
                self._adopt(task)
                return self._cause
        return found

    @cause.setter
    def cause(self, cause: Cause | None) -> None:
        self._cause = cause

    @property
    def ledger(self) -> Ledger:  # type: ignore[override]
        """What it learnt from hops below; made when a client first asks for it."""
        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger

    @property
    def given(self) -> Carried:  # type: ignore[override]
        """Who the call is; read from the metadata when somebody first asks."""
        if self._given is None:
            with _one_identity:  # a snapshot of the tree may ask from another thread
                if self._given is None:
                    self._given = self._identify()
        return self._given

    def _identify(self) -> Carried:
        terms = self.terms
        inbound = terms.codec.read(self._ours)
        identity = identify(
            inbound.trace,
            span_id=fresh_span_id(),
            new_trace=fresh_trace_id,
            sample=terms.sample,
        )
        return Carried(identity, inbound.stage, inbound.baggage)

    @property
    def named(self) -> bool:
        """Whether the caller says who it is, or what it has left: it may care for what is told."""
        return bool(self._ours)

    @property
    def echo_id(self) -> str:
        """What an answer shows as its request id."""
        return self.given.identity.echo_id

    # -- opening ---------------------------------------------------------------------------------

    def begin(self) -> Cause | None:
        """Open in the task that runs; the cause when it must not begin."""
        terms, now = self.terms, self.touched
        if terms.ending.closed:
            return self.turned_away()
        left = self.at - now
        if left <= 0 or left < terms.needed:
            return self.too_late(now)
        task = running_task()
        assert task is not None, "grpc.aio runs its handlers in tasks"
        driver = driver_of(task.get_loop())
        try:
            if (outer := AMBIENT.get()) is None or _over(outer):
                self.enter_first(task, driver, now)
            else:  # the server was started within a scope that is still open
                self.enter(task)
        except ScopeEnded as ended:
            self.refusal = "cancelled"
            return ended.cause
        if terms.idle != NEVER and terms.bounds:
            self._idling = IdleWatch(self, terms.idle, self._latest)
        return None

    def too_late(self, now: Instant) -> Cause | None:
        """Why it must not begin, if so."""
        left = self.at - now
        if left > 0 and left >= self.terms.needed:
            return None
        self.refusal = "expired" if left <= 0 else "too_little"
        self.terms.counts[f"refused.{self.refusal}"] += 1
        what = f"not begun: {format_duration(max(0.0, left))} left"
        budget = max(0.0, self.at - self.arrival)
        waited = now - self.arrival
        return Cause(CauseKind.DEADLINE, self.name, self.hop, now, budget, waited, what)

    def turned_away(self) -> Cause:
        """Why it must not begin, as the server stops."""
        now = self.touched
        self.terms.counts["refused.shutdown"] += 1
        spent = now - self.arrival
        return Cause(CauseKind.SHUTDOWN, self.name, self.hop, now, NEVER, spent, "not begun")

    @property
    def watched(self) -> bool:
        """Whether there is an idle limit, so that signs of life matter."""
        return self._idling is not None

    def _latest(self) -> Instant:
        return self.touched

    # -- cancelled by grpc -----------------------------------------------------------------------

    def _adopt(self, task: asyncio.Task[Any]) -> None:
        """If grpc has cancelled the task, take that for a cancellation of this scope.

        The task has been told already; all else below is told now.
        """
        if not _closed(task) or running_task() is not task:
            return
        now = self.driver.now()
        if self.terms.ending.cut:
            kind, what = CauseKind.SHUTDOWN, "the server has stopped"
        elif now >= self.end_of_grpc - _ROUNDING:
            kind, what = CauseKind.DEADLINE, "gRPC was first to notice"
        else:
            kind, what = CauseKind.DISCONNECT, ""
            self.terms.counts["disconnected"] += 1
        # Before the cause is made, which looks here again.
        self.delivered = task.cancelling() - self.baseline
        if not self.driver.begin(self, self.cause_of(kind, now, what)):
            self.delivered = 0

    @property
    def closed(self) -> bool:
        """Whether the call is over for gRPC, so that nobody can be answered."""
        return self.task is not None and _closed(self.task)

    # -- closing ---------------------------------------------------------------------------------

    def conclude(self, error: BaseException | None) -> Cause | None:
        """Close; the cause when that is what ended it, and not the handler itself."""
        if self._idling is None:
            if self.left_quietly(error):
                return None
        else:
            self._idling.stop()
        try:
            self.leave(error)
        except ScopeEnded as ended:
            return ended.cause
        return None if error is None else ended_by(error)

    def compare(self, now: Instant) -> None:
        """Count whether it would have been ended, where the policy only observes."""
        spent = now - self.arrival
        limit = min(self.end_of_caller - self.arrival, self.terms.total)
        self.terms.counts["would_exceed"] += spent > limit

    def is_late(self, cause: Cause, now: Instant) -> bool:
        """Whether what the caller gave is spent, so that another try is in vain for it."""
        if self.refusal == "too_little":
            now += self.terms.needed
        return is_late(cause, self.end_of_caller, now, self.kept)

    def timing(self, now: Instant) -> str:
        """What it spent, in the form of `Server-Timing`; empty where that is not told."""
        terms = self.terms
        if not terms.timing:
            return ""
        below = () if self._ledger is None else self._ledger.spent
        return hop_timing(terms.hop, terms.timing, now - self.arrival, below).decode("latin-1")


def _over(outer: Any) -> bool:
    """Whether what seems to be around is over: the task of the server was started within it."""
    while outer is not None:
        if outer.outcome is None:
            return False
        outer = outer.outer
    AMBIENT.set(None)
    return True


def _closed(task: asyncio.Task[Any]) -> bool:
    """Whether grpc has heard that the call of a handler's task is over.

    Others may wait for the task of a handler as well, or have a task cancelled when it is done.
    """
    for callback, _ in getattr(task, "_callbacks", None) or ():
        waiting: Any = getattr(callback, "__self__", None)
        if getattr(getattr(waiting, "get_coro", lambda: None)(), "__name__", "") == _LISTENER:
            return True
    return False


def present() -> Rpc | None:
    """The call that is served here, or none."""
    scope = ambient()
    while scope is not None and not isinstance(scope, Rpc):
        scope = scope.outer
    return scope
