"""The three kinds of budget and their algebra (law 1).

=======  =============================================================  ==========================
kind     rule                                                           who uses it
=======  =============================================================  ==========================
limit    child = min(parent, wish)                                      deadlines
hold     lent while open; open children together never exceed parent    concurrency, exposure
purse    a spend debits every ancestor; only success refills it         retries, hedges, errors
=======  =============================================================  ==========================

Taking `min` for all three would bound each child but not their sum, and three tiers with three
tries each would make 27 calls instead of four.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.domain.instant import NEVER, Duration

__all__ = ["Hold", "Purse", "share_of"]


def share_of(left: Duration, weights: Sequence[float], step: int) -> Duration:
    """Seconds that step number `step` may take of `left` seconds.

    Shares are worked out when a step begins, from what is left then, so that time which an earlier
    step did not use carries over to the later ones.

    Raises:
        ValueError: `weights` holds something that is not positive.
        IndexError: there is no such step.
    """
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive, got {tuple(weights)}")
    if not 0 <= step < len(weights):
        raise IndexError(f"step {step} of {len(weights)}")
    if left == NEVER:
        return NEVER
    return max(0.0, left) * (weights[step] / sum(weights[step:]))


class Hold:
    """An amount that is lent while a scope is open.

    Attributes:
        total: what may be out at any time.
        lent: what is out, to children and to direct users together.
    """

    __slots__ = ("lent", "parent", "released", "total")

    def __init__(self, total: float, parent: Hold | None = None) -> None:
        if not total >= 0:
            raise ValueError(f"a hold must not be negative, got {total}")
        self.total = total
        self.lent = 0.0
        self.parent = parent
        self.released = False

    @property
    def free(self) -> float:
        """What may still be lent."""
        return self.total - self.lent

    def lend(self, amount: float) -> bool:
        """Lend `amount`; false, and nothing lent, when that is more than is free."""
        if not amount >= 0:
            raise ValueError(f"cannot lend {amount}")
        if self.released or amount > self.free:
            return False
        self.lent += amount
        return True

    def take_back(self, amount: float) -> None:
        """Return `amount`.

        Raises:
            ValueError: more is returned than was lent.
        """
        if not 0 <= amount <= self.lent:
            raise ValueError(f"cannot take back {amount}: {self.lent} is lent")
        self.lent -= amount
        if self.released:
            self.total -= amount
            if self.parent is not None:
                self.parent.take_back(amount)

    def carve(self, amount: float) -> Hold | None:
        """A child hold of `amount`, or none when that is more than is free."""
        return Hold(amount, self) if self.lend(amount) else None

    def release(self) -> None:
        """Give a carved hold back to its parent; what is still lent follows as it is returned."""
        if self.released:
            return
        self.released = True
        returned, self.total = self.free, self.lent
        if self.parent is not None:
            self.parent.take_back(returned)


class Purse:
    """An amount that is spent for good and refilled only by success.

    A spend is all or nothing: it debits this purse and every ancestor, or none of them.

    Attributes:
        balance: what can still be spent here (an ancestor may have less).
        capacity: what `balance` never exceeds.
    """

    __slots__ = ("balance", "capacity", "parent")

    def __init__(
        self, capacity: float, parent: Purse | None = None, *, balance: float | None = None
    ) -> None:
        if not capacity >= 0:
            raise ValueError(f"a purse must not be negative, got {capacity}")
        if balance is not None and not balance >= 0:
            raise ValueError(f"the balance of a purse must not be negative, got {balance}")
        self.capacity: float = capacity if parent is None else min(capacity, parent.capacity)
        self.balance: float = self.capacity if balance is None else min(balance, self.capacity)
        self.parent = parent

    @property
    def available(self) -> float:
        """What a spend may take now: the least balance on the way up."""
        least, purse = self.balance, self.parent
        while purse is not None:
            least = min(least, purse.balance)
            purse = purse.parent
        return least

    def spend(self, amount: float = 1.0) -> bool:
        """Debit every purse on the way up; false, and nothing debited, when one has too little."""
        if not amount >= 0:
            raise ValueError(f"cannot spend {amount}")
        if amount > self.available:
            return False
        purse: Purse | None = self
        while purse is not None:
            purse.balance -= amount
            purse = purse.parent
        return True

    def earn(self, amount: float) -> None:
        """Refill every purse on the way up, each to its capacity at most."""
        if not amount >= 0:
            raise ValueError(f"cannot earn {amount}")
        purse: Purse | None = self
        while purse is not None:
            purse.balance = min(purse.capacity, purse.balance + amount)
            purse = purse.parent
