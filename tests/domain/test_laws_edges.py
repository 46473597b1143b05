"""What a broken law says, to the word: which one, where, and how."""

from __future__ import annotations

import pytest

from holdfast.domain import laws
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.laws import Breach, Law
from holdfast.domain.tree import Node, Outcome


@pytest.fixture
def family() -> tuple[Node, Node, Node]:
    root, above, below = Node("process"), Node("above"), Node("below")
    root.open_root(0.0)
    assert above.open(root, 0.0, 10.0) is None
    assert below.open(above, 0.0, 5.0) is None
    return root, above, below


def test_a_limit_after_the_end(family: tuple[Node, Node, Node]) -> None:
    root, _, below = family
    below.kept = -1.0
    assert list(laws.breaches_of_containment(root)) == [
        Breach(Law.CONTAINMENT, "above/below", "its limit is later than its end")
    ]


def test_a_hold_lent_twice(family: tuple[Node, Node, Node]) -> None:
    root, above, _ = family
    above.endow(holds={"slots": 1.0})
    assert above.holds is not None
    above.holds["slots"].lent = 1.0 + 1e-9
    assert not list(laws.breaches_of_containment(root))
    above.holds["slots"].lent = 2.0
    assert list(laws.breaches_of_containment(root)) == [
        Breach(Law.CONTAINMENT, "above", "2.0 of hold 'slots' is lent, it has 1.0")
    ]


def test_a_purse_below_zero(family: tuple[Node, Node, Node]) -> None:
    root, above, _ = family
    above.endow(purses={"tries": 1.0})
    assert above.purses is not None
    above.purses["tries"].balance = -1e-9
    assert not list(laws.breaches_of_containment(root))
    above.purses["tries"].balance = -1.0
    assert list(laws.breaches_of_containment(root)) == [
        Breach(Law.CONTAINMENT, "above", "purse 'tries' is overdrawn")
    ]


def test_a_cancellation_that_does_not_arrive(family: tuple[Node, Node, Node]) -> None:
    root, above, below = family
    assert above.cancel(Cause(CauseKind.CALLER, "above"))
    below.parent = root  # listed above, looking elsewhere
    assert list(laws.breaches_of_reach(root)) == [
        Breach(Law.REACH, "below", "its parent is cancelled and it is not")
    ]
    assert list(laws.breaches_of_closure(root)) == [
        Breach(Law.CLOSURE, "below", "it is listed under a stranger")
    ]


def test_a_closed_scope_that_is_listed(family: tuple[Node, Node, Node]) -> None:
    root, _, below = family
    below.outcome = Outcome.DONE
    assert list(laws.breaches_of_closure(root)) == [
        Breach(Law.CLOSURE, "above/below", "it is done and still listed")
    ]


def test_a_cancellation_that_was_not_counted(family: tuple[Node, Node, Node]) -> None:
    root, _, _ = family
    root.cancelled_open = 2
    assert list(laws.breaches_of_closure(root)) == [
        Breach(Law.CLOSURE, "process", "2 cancelled nodes counted, 0 found")
    ]


def test_what_changed_on_the_way_down() -> None:
    leaf = Carried(stage="canary", baggage={"a": "1"})
    assert list(laws.breaches_of_identity(ANONYMOUS, leaf)) == [
        Breach(Law.IDENTITY, "leaf", "stage was '' and became 'canary'"),
        Breach(Law.IDENTITY, "leaf", "baggage was {} and became {'a': '1'}"),
    ]
