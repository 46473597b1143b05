"""Every law has a breach that it reports, and says where."""

from __future__ import annotations

import pytest

from holdfast.domain import laws
from holdfast.domain.budget import Hold, Purse
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.laws import Law
from holdfast.domain.tree import Node, Outcome

CAUSE = Cause(CauseKind.CALLER, "a")


def family() -> tuple[Node, Node, Node]:
    root, above, below = Node("process"), Node("above"), Node("below")
    root.open_root(0.0)
    assert above.open(root, 0.0, 10.0) is None
    assert below.open(above, 0.0, 5.0) is None
    return root, above, below


def everything(root: Node) -> list[laws.Breach]:
    return [
        *laws.breaches_of_containment(root),
        *laws.breaches_of_reach(root),
        *laws.breaches_of_closure(root),
    ]


def only(root: Node) -> laws.Breach:
    (breach,) = everything(root)
    return breach


def test_an_untouched_tree_keeps_them_all() -> None:
    root, above, _ = family()
    above.endow(holds={"slots": 3}, purses={"tries": 3})
    assert not everything(root)


def test_a_child_that_ends_later() -> None:
    root, _, below = family()
    below.limit = 11.0
    breach = only(root)
    assert breach.law is Law.CONTAINMENT
    assert breach.where == "above/below"
    assert str(breach).startswith("containment broken at above/below: ends 1.000000 s after")


def test_a_grace_that_was_not_carved_out() -> None:
    root, _, below = family()
    below.limit, below.kept = 9.5, 1.0
    assert only(root).law is Law.CONTAINMENT


def test_more_is_lent_than_there_is() -> None:
    root, above, _ = family()
    above.holds = {"slots": Hold(2)}
    above.holds["slots"].lent = 3
    assert "slots" in only(root).what


def test_an_overdrawn_purse() -> None:
    root, above, _ = family()
    above.purses = {"tries": Purse(2)}
    above.purses["tries"].balance = -1
    assert "overdrawn" in only(root).what


def test_a_cause_that_does_not_go_down() -> None:
    class Deaf(Node):
        def reached(self) -> Cause | None:
            return None

    root, above, _ = family()
    deaf = Deaf("deaf")
    deaf.open(above, 0.0)
    above.cancel(CAUSE)
    breach = only(root)
    assert (breach.law, breach.where) == (Law.REACH, "above/deaf")


def test_a_shield_may_be_out_of_reach() -> None:
    root, above, _ = family()
    Node("shield").open_shield(above, 0.0, 1.0)
    above.cancel(CAUSE)
    assert not everything(root)


def test_a_closed_child_that_is_still_listed() -> None:
    root, _, below = family()
    below.outcome = Outcome.DONE
    breach = only(root)
    assert breach.law is Law.CLOSURE
    assert "still listed" in breach.what


def test_a_child_under_a_stranger() -> None:
    root, _, below = family()
    below.parent = root
    assert any("stranger" in breach.what for breach in everything(root))


def test_cancelled_nodes_are_miscounted() -> None:
    root, *_ = family()
    root.cancelled_open = 1
    assert "counted" in only(root).what


@pytest.mark.parametrize(
    ("leaf", "what"),
    [
        (Carried(Identity("b" * 32), "canary"), "trace id"),
        (Carried(Identity("a" * 32), "blue"), "stage"),
        (Carried(Identity("a" * 32, sampled=False), "canary"), "sampling"),
        (Carried(Identity("a" * 32, given_id="other"), "canary"), "request id"),
    ],
)
def test_a_leaf_that_is_somebody_else(leaf: Carried, what: str) -> None:
    root = Carried(Identity("a" * 32), "canary")
    assert not list(laws.breaches_of_identity(root, root))
    breaches = list(laws.breaches_of_identity(root, leaf, "there"))
    assert what in [breach.what.split(" was")[0] for breach in breaches]
    assert all(breach.where == "there" for breach in breaches)


def test_baggage_that_was_lost_on_the_way() -> None:
    root = Carried(Identity("a" * 32), "canary", {"tenant": "7"})
    leaf = Carried(Identity("a" * 32), "canary", {})
    assert list(laws.breaches_of_identity(root, leaf))


@pytest.mark.parametrize(
    ("sent", "left", "received", "read", "broken"),
    [
        (0.0, 1.0, 0.1, 0.9, False),
        (0.0, 1.0, 0.1, 0.95, False),  # the transit itself cannot be seen by the far side
        (0.0, 1.0, 0.1, 1.001, True),
        (0.0, 1.0, 0.1, 0.5, False),
        (0.0, 1.0, 0.0, 1.0, False),
        (0.0, 1.0, 0.0, 1.001, True),
        (0.0, float("inf"), 5.0, 2.0, False),
        (0.0, 1.0, 0.5, float("inf"), True),
        (0.0, float("inf"), 0.5, float("inf"), False),
    ],
)
def test_a_deadline_that_moved_on_the_wire(
    sent: float, left: float, received: float, read: float, broken: bool
) -> None:
    assert bool(list(laws.breaches_on_the_wire(sent, left, received, read))) is broken
