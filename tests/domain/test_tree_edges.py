"""Corners of the tree, of what it carries, and of what is said about it."""

from __future__ import annotations

import copy

import pytest

from holdfast.domain import laws
from holdfast.domain.budget import Purse
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Identity
from holdfast.domain.errors import Cancelled, ConfigError
from holdfast.domain.instant import NEVER, format_duration
from holdfast.domain.laws import Breach, Law
from holdfast.domain.tree import Node, Outcome, Refusal

CAUSE = Cause(CauseKind.CALLER, "a")


def opened(parent: Node, name: str, wish: float = NEVER) -> Node:
    node = Node(name)
    assert node.open(parent, 0.0, wish) is None
    return node


@pytest.fixture
def root() -> Node:
    node = Node("process")
    node.open_root(0.0)
    return node


def test_a_node_says_how_it_is(root: Node) -> None:
    above = opened(root, "above")
    node = opened(above, "node")
    assert repr(node) == "<Node 'above/node' open>"
    assert node.cancel(CAUSE)
    assert repr(node) == "<Node 'above/node' cancelled>"
    node.close(Outcome.EXPIRED)
    assert repr(node) == "<Node 'above/node' expired>"


def test_a_node_before_it_is_opened() -> None:
    node = Node("node")
    assert (node.opened_at, node.limit, node.tightens) == (0.0, NEVER, False)
    assert (node.parent, node.children, node.cause, node.outcome) == (None, None, None, None)
    assert (node.path, node.root, node.depth) == ("node", node, 0)


def test_a_root_remembers_when_it_was_opened() -> None:
    node = Node("process")
    node.open_root(7.0)
    assert node.opened_at == 7.0


def test_where_a_node_stands(root: Node) -> None:
    above = opened(root, "above")
    node = opened(above, "node")
    assert (root.path, above.path, node.path) == ("process", "above", "above/node")
    assert (root.depth, above.depth, node.depth) == (0, 1, 2)
    assert root.root is above.root is node.root is root


def test_the_budget_is_what_was_given_at_the_beginning(root: Node) -> None:
    node = Node("node")
    assert node.open(root, 4.0, 4.5, 0.25) is None
    assert (node.opened_at, node.limit, node.end, node.budget) == (4.0, 4.25, 4.5, 0.25)
    assert opened(root, "free").budget == NEVER
    node.limit = 3.0
    assert node.budget == 0.0


@pytest.mark.parametrize(
    ("wish", "grace", "limit", "tightens"),
    [
        (NEVER, 0.0, 10.0, False),
        (10.0, 0.0, 10.0, False),
        (9.0, 0.0, 9.0, True),
        (9.0, 1.0, 8.0, True),
        (NEVER, 1.0, 9.0, True),
    ],
)
def test_whose_limit_it_is(
    root: Node, wish: float, grace: float, limit: float, tightens: bool
) -> None:
    node = Node("node")
    assert node.open(opened(root, "above", 10.0), 0.0, wish, grace) is None
    assert (node.limit, node.tightens) == (limit, tightens)


def test_grace_without_a_limit_tightens_nothing(root: Node) -> None:
    node = Node("node")
    assert node.admit(root, 3.0, grace=1.0) is None
    assert (node.limit, node.tightens, node.opened_at) == (NEVER, False, 3.0)
    plain = Node("plain")
    assert plain.admit(root, 3.0) is None
    assert plain.kept == 0.0


def test_a_shield_ends_with_the_grace_of_a_scope_further_up(root: Node) -> None:
    outer = Node("outer")
    assert outer.open(root, 0.0, 10.0, 2.0) is None
    inner = opened(outer, "inner")
    shield = Node("shield")
    shield.open_shield(inner, 4.0, 5.0)
    assert (inner.limit, shield.limit) == (8.0, 10.0)


def test_a_walk_goes_to_the_leaves_and_not_into_shields(root: Node) -> None:
    middle = opened(root, "middle")
    leaf = opened(middle, "leaf")
    shield = Node("shield")
    shield.open_shield(middle, 0.0, 5.0)
    inside = opened(shield, "inside")
    assert set(root.below()) == {root, middle, leaf, shield}
    assert set(shield.below()) == {shield, inside}


def test_a_node_that_was_never_listed_closes_like_any_other(root: Node) -> None:
    opened(root, "other")
    node = Node("node")
    assert node.admit(root, 0.0) is None
    assert node.close(Outcome.DONE) == ()
    assert node.outcome is Outcome.DONE


def test_work_that_is_handed_over_keeps_its_cause_and_its_limit(root: Node) -> None:
    parent = opened(root, "parent", 10.0)
    tight, loose = opened(parent, "tight", 5.0), opened(parent, "loose")
    assert parent.cancel(CAUSE)
    assert parent.close(Outcome.CANCELLED) == (tight, loose)
    assert (tight.cause, loose.cause) == (CAUSE, CAUSE)
    assert (tight.tightens, loose.tightens) == (True, True)
    assert root.cancelled_open == 2
    assert not list(laws.breaches_of_closure(root))
    tight.close(Outcome.CANCELLED)
    loose.close(Outcome.CANCELLED)
    assert root.cancelled_open == 0


def test_work_that_is_handed_over_without_a_limit_has_none(root: Node) -> None:
    parent = opened(root, "parent")
    child = opened(parent, "child")
    assert parent.close(Outcome.DONE) == (child,)
    assert (child.cause, child.tightens, child.origin) == (None, False, "parent/child")


def test_a_spend_is_one_unless_told_otherwise(root: Node) -> None:
    assert root.endow(purses={"tries": 3.0}) is None
    assert root.spend("tries")
    purse = root.purse("tries")
    assert purse is not None
    assert purse.available == 2.0


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_a_purse_may_begin_empty(balance: float) -> None:
    assert Purse(3.0, balance=balance).balance == balance


def test_the_nearest_that_is_open(root: Node) -> None:
    above = opened(root, "above")
    node = opened(above, "node")
    assert node.nearest_open() is node
    node.close(Outcome.DONE)
    assert node.nearest_open() is above
    above.close(Outcome.DONE)
    assert node.nearest_open() is root
    root.close(Outcome.DONE)
    assert node.nearest_open() is root


def test_a_shield_remembers_when_it_opened_and_whether_it_has_a_limit(root: Node) -> None:
    parent = opened(root, "parent", 10.0)
    shield = Node("shield")
    shield.open_shield(parent, 4.0, 2.0)
    assert (shield.opened_at, shield.limit, shield.tightens) == (4.0, 12.0, True)
    endless = Node("endless")
    endless.open_shield(opened(root, "free"), 4.0, 2.0)
    assert (endless.limit, endless.tightens) == (NEVER, False)


def test_a_scope_that_closes_during_a_walk_does_not_end_it(root: Node) -> None:
    children = [opened(root, name) for name in "abc"]
    walk = root.below()
    assert next(walk) is root
    last = next(walk)
    assert last is children[-1]
    children[1].close(Outcome.DONE)
    assert list(walk) == [children[0]]


def test_nobody_is_false() -> None:
    assert not Identity()
    assert Identity("a" * 32)


def test_errors_can_be_copied_and_show_their_arguments() -> None:
    ended, wrong = Cancelled(CAUSE), ConfigError("a.b", "no")
    assert ended.args == (CAUSE,)
    assert wrong.args == ("a.b", "no")
    assert copy.copy(ended).cause == CAUSE
    assert str(copy.copy(wrong)) == "a.b: no"


def test_a_deadline_that_moved_on_the_wire() -> None:
    assert list(laws.breaches_on_the_wire(1.0, 2.0, 1.5, 2.5)) == [
        Breach(Law.CONTAINMENT, "wire", "the deadline moved 0.500000 s later")
    ]
    (breach,) = laws.breaches_on_the_wire(1.0, 2.0, 1.5, 2.5, "a hop")
    assert breach.where == "a hop"
    # As far as the tolerance goes is no breach.
    assert not list(laws.breaches_on_the_wire(0.0, 0.0, 0.0, 1e-9))


def test_three_digits_of_a_microsecond() -> None:
    assert format_duration(122.49995e-6) == "122 us"


def test_the_end_of_the_process_bounds_shields_and_its_limit_does_not() -> None:
    root = Node("process")
    root.open_root(0.0)
    root.limit, root.kept = 10.0, 4.0
    work = Node("work")
    assert work.open(root, 1.0, 100.0) is None
    assert (work.limit, work.tightens) == (10.0, False)
    for grace, limit in ((3.0, 13.0), (60.0, 14.0)):
        shield = Node("shield")
        shield.open_shield(work, 2.0, grace)
        assert shield.limit == limit
    late = Node("late")
    assert late.open(root, 10.0) is Refusal.EXPIRED
    alone = Node("clean up")
    alone.open_shield(root, 11.0, 60.0)
    assert alone.limit == 14.0
