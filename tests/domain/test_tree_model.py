"""Random walks over the scope tree, next to a second implementation that shares no code with it.

The model keeps plain records and derives everything from them by definition: what is lent is added
up anew each time, a cause is looked for anew each time. It is slow and obvious.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from holdfast.domain import laws
from holdfast.domain.budget import Hold, Purse
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.tree import Node, Outcome, Refusal

NAMES = ("slots", "tries")
REQUEST = Carried(Identity("a" * 32, "b" * 16), "canary")


@dataclass(eq=False)
class Lent:
    """A hold: `direct` is what its users took, `below` are the holds carved out of it."""

    total: int
    above: Lent | None = None
    direct: int = 0
    below: list[Lent] = field(default_factory=list)
    given_back: bool = False

    def out(self) -> int:
        return self.direct + sum(hold.charge() for hold in self.below)

    def charge(self) -> int:
        return self.out() if self.given_back else self.total

    def free(self) -> int:
        return 0 if self.given_back else self.total - self.out()


@dataclass(eq=False)
class Money:
    capacity: int
    balance: int
    above: Money | None = None

    def chain(self) -> list[Money]:
        return [self, *(self.above.chain() if self.above else [])]


@dataclass(eq=False)
class Record:
    """A scope, as the model sees it."""

    name: str
    above: Record | None
    limit: float = inf
    end: float = inf
    own_cause: Cause | None = None
    outcome: str = ""
    shield: bool = False
    origin: str = ""
    grace: float = 0
    below: list[Record] = field(default_factory=list)
    lent: dict[str, list[Lent]] = field(default_factory=dict)
    money: dict[str, Money] = field(default_factory=dict)

    def cause(self) -> Cause | None:
        if self.own_cause or self.shield or self.above is None:
            return self.own_cause
        return self.above.cause()

    def path(self) -> str:
        if self.above is None:
            return self.name
        return self.name if self.above.above is None else f"{self.above.path()}/{self.name}"

    def nearest_hold(self, name: str) -> Lent | None:
        if self.lent.get(name):
            return self.lent[name][-1]
        return self.above.nearest_hold(name) if self.above else None

    def nearest_purse(self, name: str) -> Money | None:
        return self.money.get(name) or (self.above.nearest_purse(name) if self.above else None)

    def hit_by_its_cancellation(self) -> list[Record]:
        found = [self]
        for child in self.below:
            if child.own_cause is None:
                found += [child] if child.shield else child.hit_by_its_cancellation()
        return found


class ScopeNode(Node):
    carried: Carried = REQUEST


amounts = st.integers(0, 5)
budgets = st.dictionaries(st.sampled_from(NAMES), amounts, min_size=1, max_size=2)


class Walk(RuleBasedStateMachine):
    """Opening and closing, and what must be true whatever else is done."""

    scopes: Bundle[tuple[ScopeNode, Record]] = Bundle("scopes")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.count = 0
        root = ScopeNode("process")
        root.open_root(self.now)
        self.root, self.model_root = root, Record("process", None)
        self.pairs: list[tuple[ScopeNode, Record]] = [(root, self.model_root)]
        self.all_holds: list[tuple[Hold, Lent]] = []
        self.all_purses: list[tuple[Purse, Money]] = []

    @initialize(target=scopes)
    def start(self) -> tuple[ScopeNode, Record]:
        return self.root, self.model_root

    @rule(target=scopes, which=st.integers(0, 3))
    def look_at(self, which):
        """Make scopes that other rules opened known to all rules."""
        return self.pairs[min(which, len(self.pairs) - 1)]

    def name(self) -> str:
        self.count += 1
        return f"s{self.count}"

    # -- opening ---------------------------------------------------------------------------------

    @rule(
        target=scopes,
        under=scopes,
        budget=st.sampled_from([inf, 0.0, -1.0, 1.0, 2.0, 5.0, 20.0]),
        grace=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
    )
    def open(self, under, budget, grace):
        parent, above = under
        node, record = ScopeNode(self.name()), Record("", above, grace=grace)
        record.name = node.name
        node.carried = parent.carried
        refusal = node.open(parent, self.now, self.now + budget, grace)
        record.end = min(above.limit, self.now + budget)
        record.limit = record.end - grace
        wanted = None
        if record.limit <= self.now:
            wanted = Refusal.EXPIRED
        elif above.outcome:
            wanted = Refusal.PARENT_CLOSED
        elif above.cause() is not None:
            wanted = Refusal.PARENT_CANCELLED
        assert refusal is wanted
        if wanted is not None:
            assert node.outcome is Outcome.REFUSED
            record.outcome = "refused"
            self.pairs.append((node, record))
            return multiple()
        above.below.append(record)
        self.pairs.append((node, record))
        return node, record

    # -- ending ----------------------------------------------------------------------------------

    @rule(scope=scopes, outcome=st.sampled_from([o for o in Outcome if o is not Outcome.REFUSED]))
    def close(self, scope, outcome):
        node, record = scope
        if record.above is None:
            return
        orphans = [] if record.outcome else list(record.below)
        assert set(node.close(outcome)) == {self.node_of(each) for each in orphans}
        if record.outcome:
            return
        cause = record.cause()
        for child in orphans:
            child.origin = child.origin or child.path()
            if cause is not None and not child.shield and child.own_cause is None:
                child.own_cause = cause
        for child in orphans:
            child.above = self.model_root
            self.model_root.below.append(child)
        record.below = []
        record.outcome = str(outcome)
        record.above.below.remove(record)
        for each in record.lent.values():
            for hold in each:
                hold.given_back = True

    # -- what must always be true ----------------------------------------------------------------

    def node_of(self, record: Record) -> ScopeNode:
        return next(node for node, each in self.pairs if each is record)

    @invariant()
    def tree_and_model_agree(self):
        for node, record in self.pairs:
            assert str(node.outcome or "") == record.outcome
            assert node.limit == record.limit
            assert node.end == record.end
            assert node.shielded == record.shield
            if not record.outcome:
                assert node.reached() is record.cause()
                assert node.path == record.path()
                assert node.origin == record.origin
                children = set(node.children or ())
                assert children == {self.node_of(child) for child in record.below}
                above = None if record.above is None else self.node_of(record.above)
                assert node.parent is above

    @invariant()
    def budgets_agree(self):
        for hold, model in self.all_holds:
            assert hold.lent == model.out()
            assert hold.free == model.free()
        for purse, model in self.all_purses:
            assert purse.balance == model.balance
            assert purse.available == min(each.balance for each in model.chain())

    @invariant()
    def the_root_counts_what_is_cancelled(self):
        cancelled = sum(not r.outcome and r.own_cause is not None for _, r in self.pairs)
        assert self.root.cancelled_open == cancelled

    @invariant()
    def the_laws_hold(self):
        found = [
            *laws.breaches_of_containment(self.root),
            *laws.breaches_of_reach(self.root),
            *laws.breaches_of_closure(self.root),
        ]
        for node, record in self.pairs:
            if not record.outcome:
                found += laws.breaches_of_identity(self.root.carried, node.carried, node.path)
        assert not found, [str(breach) for breach in found]


class TreeMachine(Walk):
    """Limits, causes, shields, orphans."""

    scopes = Walk.scopes

    @rule(target=scopes, under=scopes, grace=st.sampled_from([0.0, 0.5, 2.0]))
    def open_shield(self, under, grace):
        parent, above = under
        if above.outcome:
            return multiple()
        node, record = ScopeNode(self.name()), Record("", above, shield=True)
        record.name = node.name
        node.carried = parent.carried
        node.open_shield(parent, self.now, grace)
        begins = self.now if above.cause() or above.limit <= self.now else above.limit
        ends = [begins + grace]
        around: Record | None = above
        while around is not None:
            if around.grace:
                ends.append(around.end)
            around = around.above
        record.limit = record.end = min(ends)
        above.below.append(record)
        self.pairs.append((node, record))
        return node, record

    @rule(scope=scopes, kind=st.sampled_from(list(CauseKind)))
    def cancel(self, scope, kind):
        node, record = scope
        if record.above is None:
            return
        cause = Cause(kind, node.path, at=self.now, detail=str(len(self.pairs)))
        possible = not record.outcome and record.cause() is None
        assert node.cancel(cause) is possible
        if possible:
            record.own_cause = cause
            hit = {self.node_of(each) for each in record.hit_by_its_cancellation()}
            walked = list(node.below())
            assert len(walked) == len(set(walked))
            assert set(walked) == hit
            assert walked[0] is node

    @rule(by=st.sampled_from([0.5, 1.0, 3.0, 30.0]))
    def pass_time(self, by):
        self.now += by

    @precondition(lambda self: any(r.limit <= self.now and not r.outcome for _, r in self.pairs))
    @rule()
    def expire(self):
        """What the driver does with everything that is due, outermost first."""
        due = [(n, r) for n, r in self.pairs if r.limit <= self.now and not r.outcome and r.above]
        for node, record in sorted(due, key=lambda pair: pair[0].depth):
            cause = Cause(CauseKind.DEADLINE, node.path, at=self.now)
            fresh = record.cause() is None
            assert node.cancel(cause) is fresh
            if fresh:
                record.own_cause = cause


class BudgetMachine(Walk):
    """Holds and purses, also of scopes that are closed while something is out."""

    scopes = Walk.scopes
    holds: Bundle[tuple[Hold, Lent]] = Bundle("holds")
    purses: Bundle[tuple[Purse, Money]] = Bundle("purses")

    @initialize(target=holds, amounts=st.tuples(amounts, amounts, amounts))
    def nested(self, amounts):
        """Begin with three levels, for that is where stories become interesting."""
        level, made = (self.root, self.model_root), []
        for amount in sorted(amounts, reverse=True):
            self.open(level, inf, 0.0)
            level = self.pairs[-1]
            self.endow_holds(level, {"slots": amount})
            self.endow_purses(level, {"tries": amount})
            made.append(self.all_holds[-1])
        return multiple(*made)

    @rule(target=holds, scope=scopes, wanted=budgets)
    def endow_holds(self, scope, wanted):
        node, record = scope
        if record.outcome:
            return multiple()
        if set(wanted) & {*record.lent, *record.money}:
            with pytest.raises(ValueError, match="already"):
                node.endow(holds=wanted)
            return multiple()
        fits = all(
            amount <= above.free()
            for name, amount in wanted.items()
            if (above := record.nearest_hold(name)) is not None
        )
        assert node.endow(holds=wanted) is (None if fits else Refusal.HOLD_EXHAUSTED)
        if not fits:
            return multiple()
        made = []
        for name, amount in wanted.items():
            above = record.nearest_hold(name)
            hold = Lent(amount, above)
            if above is not None:
                above.below.append(hold)
            record.lent.setdefault(name, []).append(hold)
            real = node.hold(name)
            assert real is not None
            made.append((real, hold))
        self.all_holds += made
        return multiple(*made)

    @rule(target=purses, scope=scopes, wanted=budgets)
    def endow_purses(self, scope, wanted):
        node, record = scope
        if record.outcome:
            return multiple()
        if set(wanted) & {*record.lent, *record.money}:
            with pytest.raises(ValueError, match="already"):
                node.endow(purses=wanted)
            return multiple()
        assert node.endow(purses=wanted) is None
        made = []
        for name, amount in wanted.items():
            above = record.nearest_purse(name)
            capacity = amount if above is None else min(amount, above.capacity)
            record.money[name] = Money(capacity, capacity, above)
            real = node.purse(name)
            assert real is not None
            made.append((real, record.money[name]))
        self.all_purses += made
        return multiple(*made)

    @rule(hold=holds, amount=amounts)
    def lend(self, hold, amount):
        real, model = hold
        amount = min(amount, model.free() + 1)  # as a rule it fits, or is just too much
        fits = not model.given_back and amount <= model.free()
        assert real.lend(amount) is fits
        if fits:
            model.direct += amount

    @rule(hold=holds, amount=amounts)
    def take_back(self, hold, amount):
        real, model = hold
        amount = min(amount, model.direct)
        model.direct -= amount
        real.take_back(amount)

    @rule(scope=scopes, name=st.sampled_from(NAMES), amount=amounts)
    def spend(self, scope, name, amount):
        node, record = scope
        purse = record.nearest_purse(name)
        fits = purse is None or all(amount <= each.balance for each in purse.chain())
        assert node.spend(name, amount) is fits
        if purse is not None and fits:
            for each in purse.chain():
                each.balance -= amount

    @rule(purse=purses, amount=amounts)
    def earn(self, purse, amount):
        real, model = purse
        real.earn(amount)
        for each in model.chain():
            each.balance = min(each.capacity, each.balance + amount)


WALKS = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTree = TreeMachine.TestCase
TestTree.settings = WALKS
TestBudgets = BudgetMachine.TestCase
TestBudgets.settings = WALKS
