"""One piece of work for somebody else's server: what it may spend, and how it is refused or ended.

What the carriers of calls, statements and commands have in common. The bounds are captured where it
is made, and hold wherever it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.phases import Ended, Trail
from holdfast.domain.shares import Phase
from holdfast.runtime.clock import monotonic
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.scope import ambient

__all__ = ["Bounded", "cut_by_scope"]


class Bounded:
    """See the module.

    Args:
        name: of the work, in errors: `GET orders/42`, `SELECT`, `BLPOP`.

    Attributes:
        name: of the work.
        begun: monotonic instant at which it began.
        here: the scope that it is done in; none outside of all.
        limit: monotonic instant at which it is over; infinite without a deadline.
        now: the clock of that scope.
    """

    __slots__ = ("begun", "here", "limit", "name", "now")

    client: ClassVar[str] = ""
    """The library that does it, as records of calls name it."""
    phase: ClassVar[Phase | None] = None
    """What it is when it waits; where that is known, errors have a record of it."""

    def __init__(self, name: str) -> None:
        here = ambient()
        self.name = name
        self.here = here
        if here is None:
            self.now: Callable[[], Instant] = monotonic
            self.limit = NEVER
        else:
            self.now = here.driver.now
            self.limit = here.limit
        self.begun = self.now()

    @property
    def left(self) -> Duration:
        """Seconds that are left; zero or negative when the limit is spent."""
        return self.limit - self.now()

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        """Makes the error of a spent limit; adapters make one that is their library's as well."""
        return DeadlineExceeded(cause)

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        """Makes the error of work that is refused; see `exceeded`."""
        return InsufficientBudget(cause)

    def admit(self, needed: Duration = 0.0) -> None:
        """Refuse the work when too little is left.

        Args:
            needed: seconds that it needs.

        Raises:
            InsufficientBudget: nothing was sent, no connection was opened or taken.
        """
        if self.limit == NEVER:
            return
        left = self.left
        if left <= 0 or left < needed:
            detail = f"not begun, {format_duration(max(0.0, left))} left"
            if needed > 0:
                detail += f", {format_duration(needed)} needed"
            # It was given nothing; the budget that is told is that of the scope around it.
            whole = NEVER if self.here is None else self.here.budget
            cause = replace(self.cause(detail), budget=whole, elapsed=max(0.0, whole - left))
            raise self.insufficient(cause)

    def cause(self, detail: str, *below: Cause, kind: CauseKind = CauseKind.DEADLINE) -> Cause:
        """A cause that begins with this work.

        Args:
            detail: what it was at.
            below: what servers further down are known to have said.
            kind: why it has ended.
        """
        now, here = self.now(), self.here
        if here is None:
            return Cause(kind, self.name, "", now, NEVER, now - self.begun, detail, below)
        of_parent = here.cause_of(kind, now)
        return replace(
            of_parent,
            scope=f"{of_parent.scope}/{self.name}",
            budget=self.limit - self.begun,
            elapsed=now - self.begun,
            detail=detail,
            below=below,
        )

    def over(self, detail: str = "") -> DeadlineExceeded:
        """The error for a limit that is spent at the point where the work is now.

        Args:
            detail: what it was at.
        """
        error = self.exceeded(self.cause(detail))
        if self.phase is not None:
            error.trail = self.lapse(detail)
        return error

    def lapse(self, detail: str = "") -> Trail:
        """The record of a wait that has just ended. Made only where something has gone wrong."""
        now = self.now()
        trail = Trail(self.name, self.begun, self.limit, client=self.client)
        if self.phase is not None:
            trail.begin(self.phase, self.begun)
            trail.end(now, Ended.TIMEOUT if trail.spent(now) else Ended.CANCELLED, detail)
        return trail

    def interrupted(self, detail: str = "") -> None:
        """It is cancelled where it waits: the error of the scope that has ended will name it."""
        if self.here is not None:
            self.here.blame(self.lapse(detail))


def cut_by_scope(cut: asyncio.CancelledError) -> Cause | None:
    """Why a scope of ours cancelled the current task; none where somebody else cancels it as well.

    For whoever would put an error of ours in the place of a cancellation. One of `task.cancel()`,
    of `asyncio.timeout` or of a `TaskGroup` has to arrive as it is: whoever sent it counts on that.

    Args:
        cut: what came; in a task that a scope only reaches by way of `gather`, it tells.
    """
    here, task = ambient(), asyncio.current_task()
    cause = None if here is None else here.reached()
    if here is None or task is None or cause is None:
        return None
    outermost: HostedNode | None = None
    ours = 0
    node: object = here
    while isinstance(node, HostedNode) and node.task is task:
        outermost, ours = node, ours + node.delivered
        node = node.parent
    if outermost is None:
        ours = 1 if cut.args and isinstance(cut.args[0], Cause) else 0
    baseline = 0 if outermost is None else outermost.baseline
    return cause if ours > 0 and task.cancelling() <= baseline + ours else None
