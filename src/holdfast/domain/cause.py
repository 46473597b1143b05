"""Why a scope ended before its work did: who, why, when, on which hop.

A cause is written once, where the cancellation begins, and read everywhere below. When the hop
below reports a cause of its own, it is kept in `below`, so that the one at the edge can see who
spent the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from holdfast.domain.instant import NEVER, Duration, Instant, format_duration

__all__ = ["Cause", "CauseKind"]


class CauseKind(StrEnum):
    """What began a cancellation. The values are stable: they are on the wire and in metrics."""

    DEADLINE = "deadline"
    CALLER = "cancelled_by_caller"
    DISCONNECT = "client_disconnected"
    PARENT = "parent_cancelled"
    SIBLING = "sibling_failed"
    SHUTDOWN = "shutdown"
    OVERLOAD = "overload"
    HEDGE_LOST = "hedge_lost"
    CHAOS = "chaos"


_SITUATION: Final = {
    CauseKind.DEADLINE: "deadline exceeded",
    CauseKind.CALLER: "cancelled by the caller",
    CauseKind.DISCONNECT: "the client disconnected",
    CauseKind.PARENT: "the parent scope ended",
    CauseKind.SIBLING: "a sibling failed",
    CauseKind.SHUTDOWN: "the process is shutting down",
    CauseKind.OVERLOAD: "refused under overload",
    CauseKind.HEDGE_LOST: "another attempt was faster",
    CauseKind.CHAOS: "cancelled by a chaos experiment",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """The first reason why a scope ended early.

    Attributes:
        kind: what began it.
        scope: path of the scope where it began, outermost first, joined by `/`.
        hop: name of the service where it began; empty when the service has no name.
        at: monotonic instant of this process at which it began; 0.0 for a cause from another hop.
        budget: seconds that the scope had been given; infinite without a deadline.
        elapsed: seconds that it had run.
        detail: one line for people; may be empty.
        below: causes that hops further down reported, nearest first.
    """

    kind: CauseKind
    scope: str
    hop: str = ""
    at: Instant = 0.0
    budget: Duration = NEVER
    elapsed: Duration = 0.0
    detail: str = ""
    below: tuple[Cause, ...] = ()

    @property
    def origin(self) -> Cause:
        """The cause at the deepest hop that reported one: the one that spent the budget."""
        cause = self
        while cause.below:
            cause = cause.below[0]
        return cause

    def with_below(self, *causes: Cause) -> Cause:
        """The same cause with what hops further down said, after what is already known."""
        return replace(self, below=(*self.below, *causes))

    def line(self) -> str:
        """Everything in one readable line."""
        where = f"{self.hop}:{self.scope}" if self.hop else self.scope
        text = f"{_SITUATION[self.kind]} in scope '{where}'"
        if self.budget != NEVER:
            text += f" (budget {format_duration(self.budget)}, ran {format_duration(self.elapsed)})"
        else:
            text += f" (ran {format_duration(self.elapsed)})"
        if self.detail:
            text += f": {self.detail}"
        for cause in self.below:
            text += f" <- {cause.line()}"
        return text
