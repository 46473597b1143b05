"""The four laws, written once.

The runtime keeps them, the carrier suite proves them for every adapter, the linter, the doctor and
the chaos judge read them from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from holdfast.domain.context import Carried
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.tree import Node

__all__ = [
    "Breach",
    "Law",
    "breaches_of_closure",
    "breaches_of_containment",
    "breaches_of_identity",
    "breaches_of_reach",
    "breaches_on_the_wire",
]

_TOLERANCE: Final = 1e-9


class Law(Enum):
    """What must hold of every scope, whoever opened it and over whatever boundary."""

    CONTAINMENT = "A child's limit is never looser than its parent's."
    REACH = "Cancellation goes down the tree, never up, once per node; the first cause wins."
    CLOSURE = "Nothing outlives its scope; leaving always releases; one outcome."
    IDENTITY = "Request id, trace id and stage are the same at the leaf as at the root."


@dataclass(frozen=True, slots=True)
class Breach:
    """One law broken at one place.

    Attributes:
        law: which one.
        where: path of the scope.
        what: one line that says how.
    """

    law: Law
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.law.name.lower()} broken at {self.where}: {self.what}"


def _walk(root: Node) -> Iterator[Node]:
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children or ())


def breaches_of_containment(root: Node) -> Iterator[Breach]:
    """Limits shrink downwards, lent holds sum to at most the total, purses never go below zero."""
    for node in _walk(root):
        for child in node.children or ():
            if not child.shielded and child.end > node.limit + _TOLERANCE:
                what = f"ends {child.end - node.limit:.6f} s after its parent's limit"
                yield Breach(Law.CONTAINMENT, child.path, what)
            if child.limit > child.end + _TOLERANCE:
                yield Breach(Law.CONTAINMENT, child.path, "its limit is later than its end")
        for name, hold in (node.holds or {}).items():
            if hold.lent > hold.total + _TOLERANCE:
                what = f"{hold.lent} of hold '{name}' is lent, it has {hold.total}"
                yield Breach(Law.CONTAINMENT, node.path, what)
        for name, purse in (node.purses or {}).items():
            if purse.balance < -_TOLERANCE:
                yield Breach(Law.CONTAINMENT, node.path, f"purse '{name}' is overdrawn")


def breaches_of_reach(root: Node) -> Iterator[Breach]:
    """Every open node below a cancelled one reads a cause, except behind a shield."""
    for node in _walk(root):
        if node.reached() is None:
            continue
        for child in node.children or ():
            if not child.shielded and child.reached() is None:
                yield Breach(Law.REACH, child.path, "its parent is cancelled and it is not")


def breaches_of_closure(root: Node) -> Iterator[Breach]:
    """No closed node is still in the tree, and the root counts its cancelled nodes right."""
    cancelled = 0
    for node in _walk(root):
        cancelled += node.cause is not None and node.outcome is None
        for child in node.children or ():
            if child.outcome is not None:
                yield Breach(Law.CLOSURE, child.path, f"it is {child.outcome} and still listed")
            if child.parent is not node:
                yield Breach(Law.CLOSURE, child.path, "it is listed under a stranger")
    if cancelled != root.cancelled_open:
        what = f"{root.cancelled_open} cancelled nodes counted, {cancelled} found"
        yield Breach(Law.CLOSURE, root.path, what)


def breaches_of_identity(root: Carried, leaf: Carried, where: str = "leaf") -> Iterator[Breach]:
    """Trace id, request id, stage and baggage at the leaf are those of the root."""
    pairs = (
        ("trace id", root.identity.trace_id, leaf.identity.trace_id),
        ("request id", root.identity.echo_id, leaf.identity.echo_id),
        ("sampling", root.identity.sampled, leaf.identity.sampled),
        ("stage", root.stage, leaf.stage),
        ("baggage", dict(root.baggage), dict(leaf.baggage)),
    )
    for name, above, below in pairs:
        if above != below:
            yield Breach(Law.IDENTITY, where, f"{name} was {above!r} and became {below!r}")


def breaches_on_the_wire(
    sent_at: Instant, left: Duration, received_at: Instant, read: Duration, where: str = "wire"
) -> Iterator[Breach]:
    """A deadline that crossed a boundary is not later than it was, both instants on one clock."""
    drift = (received_at + read) - (max(sent_at, received_at) + left)
    if drift > _TOLERANCE:
        yield Breach(Law.CONTAINMENT, where, f"the deadline moved {drift:.6f} s later")
