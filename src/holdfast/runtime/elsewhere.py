"""What a scope is to a thread that does not run its loop.

A thread gets the ambient scope with its context, may read it, and cannot be cancelled. So when the
scope has been cancelled or has expired, the one who waited for the thread is gone, and the thread
is told so where it asks: nothing remains. A function that was bound to a scope (`carry.bind`) is
told whenever that has ended.

On the loop itself it is different: there a task that goes on after its scope has ended falls back
to what is open further out. The trap: such a task may use a thread, too. So a scope that has ended
in peace tells a thread nothing, unless the thread's work was bound to it. A thread may also outlive
the loop; it is told the same then.
"""

from __future__ import annotations

import asyncio
from threading import get_ident

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.tree import Node, Outcome
from holdfast.runtime.hosted import HostedNode

__all__ = ["Gone", "Stub", "ended_by", "on_its_loop", "seen_from_here"]


class Stub(Node):
    """Stands above the scope of a plain function, whose tree is its own.

    Attributes:
        bound: whether that function was bound to the scope around it.
    """

    bound: bool = False


class Gone(HostedNode):
    """A scope that has been cancelled or has ended, as a thread sees it: nothing remains of it."""

    def __init__(self, ended: HostedNode) -> None:
        super().__init__(ended.name)
        self.driver = ended.driver
        self.parent = ended.parent
        self.outer = ended
        self.opened_at = ended.opened_at
        self.limit = min(ended.limit, ended.driver.now())
        self.cause = ended_by(ended)


def ended_by(scope: HostedNode) -> Cause | None:
    """Why work for `scope` is in vain: its cause, or that it has ended; none while it goes on."""
    cause = scope.reached()
    if cause is None and scope.outcome is not None:
        detail = f"'{scope.name}' is {scope.outcome}, so nobody waits for this any more"
        cause = scope.cause_of(CauseKind.PARENT, scope.driver.now(), detail)
    return cause


def seen_from_here(scope: HostedNode | None) -> HostedNode | None:
    """`scope`, or the nearest around it that is open; what is left of it where it has ended.

    Args:
        scope: the innermost of the present context.
    """
    hosted, bound = scope, False
    while hosted is not None and isinstance(hosted.parent, Stub):
        bound = bound or hosted.parent.bound
        hosted = hosted.outer  # of plain functions, which the loop knows nothing of
    if hosted is not None and not on_its_loop(hosted) and _is_over(hosted, bound):
        return Gone(hosted)
    while scope is not None and scope.outcome is not None:
        scope = scope.outer
    return scope


def _is_over(scope: HostedNode, bound: bool) -> bool:
    if scope.outcome is None or scope.outcome in (Outcome.CANCELLED, Outcome.EXPIRED):
        return ended_by(scope) is not None
    return bound


def on_its_loop(scope: HostedNode) -> bool:
    """Whether this is the loop of `scope`, or the thread that ran it until it was closed."""
    driver = scope.driver
    try:
        return asyncio.get_running_loop() is driver.loop
    except RuntimeError:
        return driver.thread == get_ident() and driver.loop.is_closed()
