"""The live tree: every open scope with its age, what remains, its task, and where that waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.tree import Node
from holdfast.runtime.delivery import stack_of
from holdfast.runtime.driver import Driver, drivers
from holdfast.runtime.scope import Scope

__all__ = ["LiveScope", "LiveTree", "tree"]


@dataclass(frozen=True, slots=True)
class LiveScope:
    """One open scope at the moment of the snapshot.

    Attributes:
        name: its own segment of the path.
        path: names from the outermost scope, joined by `/`.
        age: seconds since it was opened.
        remaining: seconds until its deadline; infinite without one, negative when it is past.
        task: name of the task that hosts it; empty for the process.
        request_id: of the request it works for; empty without one.
        stage: release stage of that request.
        cancelled: the cause in force, as one line; empty when it is not cancelled.
        cancelled_for: seconds since that cause; 0.0 when it is not cancelled.
        origin: path of the scope that detached work came from.
        waits: where its task waits, outermost frame first, as `file:line function`.
        children: the open scopes below.
    """

    name: str
    path: str
    age: Duration
    remaining: Duration
    task: str
    request_id: str
    stage: str
    cancelled: str
    cancelled_for: Duration
    origin: str
    waits: tuple[str, ...]
    children: tuple[LiveScope, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a deadline that does not exist is null."""
        return {
            "name": self.name,
            "path": self.path,
            "age_s": round(self.age, 6),
            "remaining_s": None if self.remaining == NEVER else round(self.remaining, 6),
            "task": self.task,
            "request_id": self.request_id,
            "stage": self.stage,
            "cancelled": self.cancelled,
            "cancelled_for_s": round(self.cancelled_for, 6),
            "origin": self.origin,
            "waits": list(self.waits),
            "children": [child.as_dict() for child in self.children],
        }

    def lines(self, indent: str = "") -> list[str]:
        """The scope and everything below it as indented text."""
        left = (
            "no deadline" if self.remaining == NEVER else f"{format_duration(self.remaining)} left"
        )
        text = f"{indent}{self.name}  {format_duration(self.age)} old, {left}"
        if self.task:
            text += f", task {self.task}"
        if self.request_id:
            text += f", request {self.request_id}"
        if self.stage:
            text += f", stage {self.stage}"
        if self.origin:
            text += f", from {self.origin}"
        lines = [text]
        if self.cancelled:
            ago = format_duration(self.cancelled_for)
            lines.append(f"{indent}    ! cancelled {ago} ago, still open: {self.cancelled}")
        if self.waits:
            lines.append(f"{indent}    waits in {self.waits[-1]}")
        for child in self.children:
            lines += child.lines(indent + "  ")
        return lines


@dataclass(frozen=True, slots=True)
class LiveTree:
    """All open scopes of the process, one root for each event loop, and what was counted."""

    roots: tuple[LiveScope, ...]
    counts: dict[str, int]

    def __str__(self) -> str:
        return "\n".join(line for root in self.roots for line in root.lines())

    def __len__(self) -> int:
        """Number of open scopes, without the roots."""

        def size(node: LiveScope) -> int:
            return 1 + sum(map(size, node.children))

        return sum(map(size, self.roots)) - len(self.roots)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"roots": [root.as_dict() for root in self.roots], "counts": self.counts}


def tree() -> LiveTree:
    """A snapshot of every open scope in this process; may be called from any thread.

    It only reads. Where another thread runs the loop meanwhile, the parts of the snapshot may be of
    slightly different moments.
    """
    # So scopes are not settled for it: that would touch the timers of a loop that another thread
    # runs. What is read here is copied first, each by one call that no other thread cuts in two.
    counts: dict[str, int] = {}
    roots: list[LiveScope] = []
    for driver in drivers():
        for name, value in dict(driver.counts).items():
            counts[name] = counts.get(name, 0) + value
        roots.append(_snapshot(driver.root, _young(driver), driver.now(), ()))
    return LiveTree(tuple(roots), counts)


_Young: TypeAlias = dict[Node, list[Node]]
"""Open scopes that are not settled yet, by the one above."""


def _young(driver: Driver) -> _Young:
    found: _Young = {}
    for node in driver.young[:]:
        if node.outcome is None:
            above = node.parent
            if above is None or above.outcome is not None:
                above = driver.root
            found.setdefault(above, []).append(node)
    return found


def _snapshot(node: Node, young: _Young, now: Instant, above: tuple[str, ...]) -> LiveScope:
    scope = node if isinstance(node, Scope) else None
    task = scope.task if scope is not None else None
    stack = stack_of(task) if task is not None else ()
    cause = node.reached()
    # One that was settled between the two copies is in both.
    below = dict.fromkeys((*tuple(node.children or ()), *young.get(node, ())))
    children = tuple(_snapshot(child, young, now, stack) for child in below)
    return LiveScope(
        name=node.name,
        path=node.path,
        age=now - node.opened_at,
        remaining=node.limit - now,
        task=task.get_name() if task is not None else "",
        request_id=scope.carried.identity.request_id if scope is not None else "",
        stage=scope.carried.stage if scope is not None else "",
        cancelled=cause.line() if cause is not None else "",
        cancelled_for=now - cause.at if cause is not None else 0.0,
        origin=node.origin,
        waits=() if stack == above else stack,
        children=children,
    )
