"""The time that a stop has, and how it is shared out.

Rule 1. Law 1: lame duck, drain and clean-up together never exceed the grace, whatever is wished.
Rule 2. The clean-up is kept first, the lame duck comes next, the drain gets what is left at most.
Rule 3. A drain that failed lately gets longer, as failed tries do: half as much again for each of
        the failures among the last stops, up to a cap, and inside what rule 2 leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from holdfast.domain.instant import Duration, Instant, format_duration

__all__ = ["GROWTH", "StopBudget", "adaptive", "breaches", "stop_budget"]

GROWTH: Final = 1.5
"""What each failure multiplies the drain by."""
_ENOUGH: Final = 1000
"""Failures beyond which nothing grows any more; more would be too large for a number."""
_SHARE: Final = 3
"""A lame duck that nobody asked for takes one part in so many."""


@dataclass(frozen=True, slots=True)
class StopBudget:
    """The shares of one stop, in seconds.

    Attributes:
        lame_duck: the longest lame duck; it may end earlier.
        drain: what requests under way get after it.
        cleanup: kept for hooks and components after the drain.
    """

    lame_duck: Duration
    drain: Duration
    cleanup: Duration

    @property
    def total(self) -> Duration:
        """All of it; never more than the grace that it was made from."""
        return self.lame_duck + self.cleanup + self.drain

    def drain_deadline(self, begun: Instant) -> Instant:
        """When requests under way are cut at the latest, in a stop that began then."""
        return begun + self.lame_duck + self.drain

    def end(self, begun: Instant) -> Instant:
        """When everything has to be over, in a stop that began then."""
        return begun + self.total


def adaptive(base: Duration, failures: int, cap: Duration) -> Duration:
    """The drain after so many failures, in seconds: `base * 1.5**failures`, at most `cap`.

    Raises:
        ValueError: one of them is negative or not a number.
    """
    if not (base >= 0 and cap >= 0 and failures >= 0):
        raise ValueError("base, cap and failures are not negative")
    return min(base * GROWTH ** min(failures, _ENOUGH), cap)


def stop_budget(
    *,
    grace: Duration,
    cleanup: Duration,
    base: Duration,
    failures: int = 0,
    cap: Duration = 30.0,
    lame_duck: Duration | None = None,
    lame_duck_least: Duration = 0.0,
) -> StopBudget:
    """Share out the grace.

    Args:
        grace: what the platform gives until it kills; it has an end.
        cleanup: kept for after the drain.
        base: the drain without failures; may be without limit.
        failures: among the last stops.
        cap: what failures can raise the drain to.
        lame_duck: the longest lame duck; `None` for a third of what the clean-up leaves.
        lame_duck_least: what that third is at least.

    Raises:
        ValueError: a duration is negative or not a number, or the grace has no end.
    """
    wishes = (grace, cleanup, lame_duck_least, 0.0 if lame_duck is None else lame_duck)
    if not all(wish >= 0 for wish in wishes) or math.isinf(grace):
        raise ValueError("the grace has an end, and no share is negative")
    kept = min(cleanup, grace)
    if lame_duck is None:
        lame_duck = max((grace - kept) / _SHARE, lame_duck_least)
    duck = _fitting(lame_duck, kept, grace)
    return StopBudget(duck, _fitting(adaptive(base, failures, cap), duck + kept, grace), kept)


def _fitting(wish: Duration, taken: Duration, grace: Duration) -> Duration:
    """The wish, as far as the grace has room beside what is taken."""
    share = min(wish, grace - taken)
    if taken + share > grace:  # by a rounding error, and still the law
        share -= 2 * math.ulp(grace)
    return max(0.0, share)


def breaches(budget: StopBudget, *, grace: Duration, longest: Duration) -> tuple[str, ...]:
    """Where a budget breaks law 1, as sentences that say what to change; empty where it does not.

    A budget of `stop_budget` is never longer than its grace; one from a manifest may be.

    Args:
        budget: lame duck, drain and clean-up.
        grace: what the platform gives until it kills.
        longest: the longest limit that a request can have; infinite for none.
    """
    found: list[str] = []
    if budget.total > grace:
        found.append(
            f"lame duck {format_duration(budget.lame_duck)}, drain {format_duration(budget.drain)} "
            f"and clean-up {format_duration(budget.cleanup)} are longer than the grace of "
            f"{format_duration(grace)}: the platform kills before the stop is over; give it at "
            f"least {format_duration(_up(budget.total))}"
        )
    if math.isinf(longest):
        found.append(
            "some requests have no limit: those are cut when the drain of "
            f"{format_duration(budget.drain)} is over"
        )
    elif budget.drain < longest:
        # Enough also where the lame duck is a share of the grace and grows with it.
        needed = budget.cleanup + max(budget.lame_duck + longest, longest * _SHARE / (_SHARE - 1))
        found.append(
            f"requests may take {format_duration(longest)}, and the drain ends after "
            f"{format_duration(budget.drain)}: what is under way then is cut; shorten the limit, "
            f"or give a cap of {format_duration(_up(longest))} and a grace of "
            f"{format_duration(_up(needed))}"
        )
    return tuple(found)


def _up(seconds: Duration) -> Duration:
    """Rounded up to whole seconds: manifests know no others."""
    return float(math.ceil(seconds))
