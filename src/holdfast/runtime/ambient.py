"""What users call: the ambient scope, opened, read and kept within bounds."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.domain.budget import share_of
from holdfast.domain.cause import CauseKind
from holdfast.domain.context import Carried, Context
from holdfast.domain.errors import InsufficientBudget, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.runtime.clock import monotonic
from holdfast.runtime.hosted import seconds_of
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import AMBIENT, Scope, ambient
from holdfast.runtime.shield import Shield

__all__ = [
    "Split",
    "carried",
    "current",
    "deadline_at",
    "hop_reserve",
    "ledger",
    "now",
    "refuse_below",
    "remaining",
    "reserve",
    "scope",
    "shield",
    "split",
    "timeout",
    "use",
]


def timeout(seconds: Duration, *, name: str = "timeout", grace: Duration = 0.0) -> Scope:
    """A scope that ends after `seconds`, or with the scope around it, whichever is sooner.

    Args:
        seconds: the budget; infinite for none of its own.
        name: one segment of the scope's path in errors, logs and the live tree.
        grace: seconds of the budget that are kept for shields: the work is cancelled that much
            earlier, so that clean-up too is done by the deadline.

    Raises:
        TypeError: `seconds` or `grace` is not a number, for example the text "3s".
        ValueError: one of them is nan, `grace` is negative, or it leaves nothing for the work.
    """
    try:
        wish = seconds + 0.0  # `seconds_of` unrolled, as this runs for most scopes
    except TypeError:
        wish = seconds_of(seconds, "timeout()")
    made = Scope(name, wish)
    if grace or wish != wish:
        _check(made, grace)
        if 0 < wish <= made.grace:  # a budget that is spent already is refused at the entry
            raise ValueError(
                f"grace ({format_duration(made.grace)}) must be shorter than the "
                f"time-out ({format_duration(wish)}): it is a part of it"
            )
    return made


def deadline_at(at: Instant, *, name: str = "deadline", grace: Duration = 0.0) -> Scope:
    """A scope that ends at the monotonic instant `at`, or with the scope around it.

    Raises:
        TypeError: `at` or `grace` is not a number.
        ValueError: one of them is nan, or `grace` is negative.
    """
    made = Scope(name)
    made.at = seconds_of(at, "deadline_at()")
    _check(made, grace)
    return made


def scope(name: str) -> Scope:
    """A scope without a limit of its own: a name in the tree, and something to cancel."""
    return Scope(name)


def reserve(seconds: Duration, *, name: str = "reserve") -> Scope:
    """A scope that leaves `seconds` of the ambient budget unspent, for what comes after it.

    Raises:
        TypeError: `seconds` is not a number.
        ValueError: `seconds` is nan, or negative.
    """
    if not seconds_of(seconds, "reserve()") >= 0:
        raise ValueError(f"cannot reserve {seconds} seconds")
    made = Scope(name)
    made.keep = seconds
    made.special = True
    return made


def shield(grace: Duration, *, name: str = "shield") -> Shield:
    """Clean-up that a cancellation around it does not reach for `grace` seconds.

    Holds against every cancellation by Holdfast. A `task.cancel()` by somebody else is delivered by
    asyncio itself and cannot be held back inside the same task.

    Raises:
        TypeError: `grace` is not a number.
        ValueError: `grace` is negative, infinite, or nan: a shield without a bound would let work
            outlive its scope.
    """
    if not 0 <= seconds_of(grace, "shield()") < NEVER:
        raise ValueError(f"a shield needs a bound of zero or more seconds, got {grace}")
    return Shield(name, grace)


def _check(made: Scope, grace: Duration) -> None:
    if made.wish != made.wish or made.at != made.at:
        raise ValueError("a deadline must be a number, got nan")
    grace = seconds_of(grace, "grace")
    if not 0 <= grace < NEVER:
        raise ValueError(f"grace must be zero or more seconds, got {grace}")
    made.grace = grace
    made.special = True


def remaining() -> Duration:
    """Seconds until the ambient deadline: 0.0 when it is spent, infinite where there is none."""
    here = ambient()
    return NEVER if here is None else here.remaining()


def current() -> Context:
    """The ambient context, as a frozen view."""
    here = ambient()
    if here is None:
        return Context()
    identity, stage, baggage = here.carried
    return Context(here.limit, identity, stage, baggage, here.path)


def carried() -> Carried:
    """Identity, stage and baggage of the ambient scope (also of one that has just closed)."""
    here = AMBIENT.get()
    return Carried() if here is None else here.carried


def ledger() -> Ledger | None:
    """The ledger of the request that the ambient scope works for, or none."""
    here = AMBIENT.get()
    while here is not None and here.ledger is None:
        here = here.outer
    return None if here is None else here.ledger


def hop_reserve() -> Duration:
    """Seconds that this hop keeps back when it calls another; 0.0 where nothing is set."""
    here = AMBIENT.get()
    while here is not None and here.reserve is None:
        here = here.outer
    return 0.0 if here is None else here.reserve or 0.0


def use(given: Carried, *, name: str = "request") -> Scope:
    """A scope without a limit of its own that carries `given` instead of what it would inherit."""
    made = Scope(name)
    made.given = given
    return made


def refuse_below(seconds: Duration) -> None:
    """Refuse to begin work that needs at least `seconds`.

    Raises:
        InsufficientBudget: less than that is left; nothing was begun. It is counted as
            `refused.too_little`.
    """
    here = ambient()
    if here is None:
        return
    left = here.remaining()
    if left < seconds:
        here.driver.counts["refused.too_little"] += 1
        need = f"{format_duration(left)} left, {format_duration(seconds)} needed"
        raise InsufficientBudget(here.cause_of(CauseKind.DEADLINE, here.driver.now(), need))


class Split:
    """One budget over several steps; what a step does not use carries over to the later ones."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        share_of(1.0, weights, 0)  # refuses weights that make no sense now, not at the third step
        self.weights = weights
        self.taken = 0

    def step(self, name: str = "") -> Scope:
        """The scope of the next step.

        Raises:
            UsageError: all steps were taken.
        """
        if self.taken >= len(self.weights):
            raise UsageError(f"the budget was split over {len(self.weights)} steps; all are taken")
        share = share_of(remaining(), self.weights, self.taken)
        self.taken += 1
        return Scope(name or f"step-{self.taken}", share)

    def __iter__(self) -> Iterator[Scope]:
        while self.taken < len(self.weights):
            yield self.step()


def split(*weights: float) -> Split:
    """Split what is left over `len(weights)` steps in proportion to their weights.

    Raises:
        ValueError: no weights, or one that is not positive.
    """
    if not weights:
        raise ValueError("split needs one weight for each step")
    return Split(weights)


def now() -> Instant:
    """The clock that the ambient scope uses, for `deadline_at`."""
    here = AMBIENT.get()
    return monotonic() if here is None else here.driver.now()
