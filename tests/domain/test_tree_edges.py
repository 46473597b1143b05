"""Corners of the tree, of what it carries, and of what is said about it."""

from __future__ import annotations

import copy

import pytest

from holdfast.domain import laws
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Identity
from holdfast.domain.errors import Cancelled, ConfigError
from holdfast.domain.instant import NEVER, format_duration
from holdfast.domain.laws import Breach, Law
from holdfast.domain.tree import Node, Outcome

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
