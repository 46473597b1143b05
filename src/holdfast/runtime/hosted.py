"""A node of the tree that a task hosts: how it is read, steered and closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import Cancelled, DeadlineExceeded, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.phases import Trail
from holdfast.domain.tree import Node, Outcome, Refusal
from holdfast.runtime.driver import Driver
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.shields import frames_of

__all__ = ["NOT_ENTERED", "HostedNode", "error_for", "outcome_of", "seconds_of"]

NOT_ENTERED: Final[Any] = None


class HostedNode(Node):
    """All of a scope but how it is entered and left."""

    __slots__ = (
        "baseline",
        "delivered",
        "done",
        "driver",
        "mark",
        "outer",
        "settled",
        "special",
        "task",
        "wish",
    )

    driver: Driver
    outer: HostedNode | None
    task: asyncio.Task[Any] | None
    mark: object
    baseline: int
    delivered: int
    done: Callable[[asyncio.Task[Any]], None] | None
    settled: bool
    special: bool
    wish: Duration

    # See `Node` for what is a slot and what is a default of the class.
    given: Carried | None = None
    hop: str = ""
    shields: int = 0
    deaf: bool = False
    at: Instant = NEVER
    keep: Duration = 0.0
    grace: Duration = 0.0
    generator: CodeType | None = None
    ledger: Ledger | None = None
    reserve: Duration | None = None
    trail: Trail | None = None
    closers: list[Callable[[HostedNode], object]] | None = None
    bounds: bool = False
    """Whether what is right below it is a request of its own, as with the scope of a worker."""

    def __init__(self, name: str, seconds: Duration = NEVER) -> None:
        # Not super().__init__(name): unrolled, as this runs for every scope.
        self.name = name
        self.parent = self.children = self.cause = self.outcome = None
        self.limit = NEVER
        self.opened_at = 0.0
        self.wish = seconds
        self.driver = NOT_ENTERED
        self.outer = self.task = self.mark = self.done = None
        self.baseline = self.delivered = 0
        self.tightens = self.settled = self.special = False

    # -- reading ---------------------------------------------------------------------------------

    @property
    def deadline(self) -> Instant:
        """Monotonic instant at which the work is cancelled; infinite without one."""
        return self.limit

    @property
    def carried(self) -> Carried:
        """Identity, stage and baggage: what it was given, else those of the scope around."""
        scope: HostedNode | None = self
        while scope is not None:
            if scope.given is not None:
                return scope.given
            scope = scope.outer
        return ANONYMOUS

    def remaining(self) -> Duration:
        """Seconds until the deadline, 0.0 when it is spent, infinite without one.

        Raises:
            UsageError: the scope was not entered.
        """
        if self.driver is NOT_ENTERED:
            raise self._not_entered("remaining")
        return max(0.0, self.limit - self.driver.now())

    def age(self) -> Duration:
        """Seconds since the scope was opened.

        Raises:
            UsageError: the scope was not entered.
        """
        if self.driver is NOT_ENTERED:
            raise self._not_entered("age")
        return self.driver.now() - self.opened_at

    def cause_of(self, kind: CauseKind, now: Instant, detail: str = "") -> Cause:
        """A cause that begins here and now."""
        hop, node = self.hop, self.parent
        while not hop and node is not None:
            hop, node = getattr(node, "hop", ""), node.parent
        return Cause(kind, self.path, hop, now, self.budget, now - self.opened_at, detail)

    # -- steering --------------------------------------------------------------------------------

    def cancel(self, detail: str = "", *, kind: CauseKind = CauseKind.CALLER) -> bool:  # type: ignore[override]
        """Cancel the work of this scope and everything below it.

        Returns false when the scope is closed or a cancellation had reached it already: the first
        cause wins. The block ends with `Cancelled`.

        Raises:
            UsageError: called from a thread that does not run the loop of the scope.
        """
        self._check_loop("cancel")
        if self.outcome is not None:
            return False
        return self.driver.begin(self, self.cause_of(kind, self.driver.now(), detail))

    def blame(self, trail: Trail) -> None:
        """A call over the network was under way here when the cancellation came.

        The error of the scope where that began will say so, and in which phase the call was. The
        first one to be blamed stays.
        """
        node: Node | None = self
        while node is not None and node.cause is None:
            node = node.parent
        if isinstance(node, HostedNode) and node.trail is None:
            node.trail = trail

    def cancel_node(self, cause: Cause) -> bool:
        """Record `cause` in the tree without delivering it; for the driver."""
        won = Node.cancel(self, cause)
        self.driver.troubles += won
        return won

    def move_deadline(self, at: Instant) -> Instant:
        """Move the deadline to the monotonic instant `at`, no later than the parent's; the new one.

        Grace that is kept for shields stays kept. Scopes below follow, none beyond its own wish.

        Raises:
            UsageError: the scope is not open, or the call comes from another thread.
            TypeError: `at` is not a number.
            ValueError: `at` is nan.
        """
        self._check_loop("move_deadline")
        at = seconds_of(at, "move_deadline()")
        if at != at:
            raise ValueError("a deadline must be a number, got nan")
        if self.outcome is not None or self.parent is None:
            raise UsageError(f"scope '{self.name}' is not open, so its deadline cannot move")
        self.at, self.wish = at, NEVER
        self.driver.settle()
        self.follow()
        return self.limit

    def follow(self) -> None:
        """Take the limit that the parent's, or the own wish, has become."""
        assert self.parent is not None
        wished = min(self.at, self.opened_at + self.wish)
        if self.keep:
            wished = min(wished, self.parent.limit - self.keep)
        limit = min(wished, self.parent.limit) - self.kept
        self.retime(limit, limit < self.parent.limit)
        for node in tuple(self.children or ()):
            if isinstance(node, HostedNode):
                node.follow()

    def retime(self, limit: Instant, tightens: bool) -> None:
        """Have another limit, and tell the timers."""
        if self.tightens and self.settled:
            self.driver.timers.discard(self, self.limit)
        self.limit, self.tightens = limit, tightens
        if tightens and limit != NEVER:
            if self.settled:
                self.driver.timers.add(self, limit)
            elif limit < self.driver.horizon:
                self.driver.settle()

    def lift(self) -> None:
        """Take away the deadline: what it was for is there, and the rest is not bounded by it.

        Scopes below that had no tighter one follow.
        """
        self.at = self.wish = NEVER
        if self.parent is not None and not self.settled and not self.children:
            # Nobody has looked at it yet, neither the timers nor a child.
            self.limit, self.tightens = self.parent.limit, False
            return
        self.retime(self.parent.limit if self.parent is not None else NEVER, False)
        for node in tuple(self.children or ()):
            if isinstance(node, HostedNode):
                node.follow()

    def _check_loop(self, call: str) -> None:
        if self.driver is NOT_ENTERED:
            raise self._not_entered(call)
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self.driver.loop:
            raise UsageError(
                f"{call}() of scope '{self.name}' was called from another thread or loop; "
                f"use loop.call_soon_threadsafe(scope.{call}) with the loop of the scope"
            )

    def _not_entered(self, call: str) -> UsageError:
        return UsageError(
            f"{call}() of scope '{self.name}' was called, but it is not entered; "
            "enter it first: async with ..."
        )

    # -- opening and closing ---------------------------------------------------------------------

    def grow_up(self) -> None:
        """It has been open for a while; for the driver."""
        self.settle()

    def settle(self) -> None:
        """Be listed in the tree, and known to the timers."""
        if not self.settled:
            self.settled = True
            if self.parent is not None and self.parent.outcome is not None:
                self._escape(self.parent)  # left in the wrong order
            self.link()
            if self.tightens:
                self.driver.timers.add(self, self.limit)

    def _escape(self, parent: Node) -> None:
        self.origin = self.path
        self.parent = self.driver.root
        self.tightens = self.limit != NEVER
        self.driver.counts["escaped"] += 1

    def used_before(self) -> UsageError:
        return UsageError(f"scope '{self.name}' was entered before; make a new one for each use")

    def refused(self, refusal: Refusal, now: Instant) -> ScopeEnded:
        """The error for a scope that was not opened: the cause that is in force above, if any."""
        self.outcome = Outcome.REFUSED
        if self.driver.overdue is not None and self.driver.root.limit <= now:
            self.driver.overdue()  # nobody gave the loop a chance to notice
        cause = self.parent.reached() if self.parent is not None else None
        if cause is not None:
            return error_for(cause)
        spent: HostedNode = self
        while not spent.tightens and isinstance(spent.parent, HostedNode):
            spent = spent.parent
        ago = now - spent.limit
        late = f" {format_duration(ago)}" if 0 <= ago < NEVER else ""
        detail = f"spent{late} before '{self.name}' was entered, so its body did not run"
        cause = spent.cause_of(CauseKind.DEADLINE, now, detail)
        if spent is not self:
            # Nobody gave the loop a chance to notice: the one whose limit it is ends now.
            spent.driver.begin(spent, cause)
        return error_for(spent.cause or cause)

    def shut(self, outcome: Outcome) -> None:
        """Close the node, and see to children that are still open."""
        if self.children:
            self.driver.settle()
        if self.cause is not None and self.outcome is None:
            self.driver.troubles -= 1
        if self.children:
            self._shut_above(outcome)
        else:
            self.close(outcome)
        if self.closers is not None:
            closers, self.closers = self.closers, None
            for closer in reversed(closers):
                closer(self)

    def _shut_above(self, outcome: Outcome) -> None:
        reached = self.reached()
        for node in self.close(outcome):
            self.driver.troubles += reached is not None and node.cause is reached
            self.driver.counts["escaped"] += 1
            if not isinstance(node, HostedNode):
                continue
            if node.tightens:
                node.driver.timers.add(node, node.limit)
            if reached is not None and node.cause is reached:
                # What was on its way to it began above, and the way is cut: it begins here again.
                node.driver.delivery.reach(node)

    def disown(self) -> None:
        """Go on under the process: whoever opened this leaves, and it still has to clean up.

        It keeps its limit, and the cause that has reached it.
        """
        parent, driver = self.parent, self.driver
        if parent is None or parent is driver.root or self.outcome is not None:
            return
        self.settle()
        cause = self.reached()
        if cause is not None and self.cause is None:
            self.cause = cause
            driver.troubles += 1
            driver.root.cancelled_open += 1
        if parent.children is not None:
            parent.children.pop(self, None)
        self.origin = self.origin or self.path
        self.parent = driver.root
        self.link()
        self.retime(self.limit, self.limit != NEVER)

    def task_done(self, task: asyncio.Task[Any]) -> None:
        """Close with the task that the scope was made for."""
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
        if task.cancelled():
            expired = self.cause is not None and self.cause.kind is CauseKind.DEADLINE
            self.shut(Outcome.EXPIRED if expired else Outcome.CANCELLED)
        else:
            # Not `task.exception()`: asyncio would take the error for retrieved, and not report it.
            failed = getattr(task, "_exception", None) is not None
            self.shut(Outcome.FAILED if failed else Outcome.DONE)
        self.task = None  # the task holds the scope, by its context: no circle to be collected
        done, self.done = self.done, None
        if done is not None:
            done(task)

    # -- async generators ------------------------------------------------------------------------

    def entered_in_generator(self, frame: FrameType) -> None:
        back = frame.f_back
        if back is None or back.f_globals.get("__name__") != "contextlib":
            self.generator = frame.f_code
        # else an @asynccontextmanager: what runs while it is suspended is its body

    def suspended_in_generator(self) -> bool:
        """Whether the generator that entered this scope is suspended, so that its consumer runs."""
        if self.generator is None or self.task is None:
            return False
        chain = frames_of(self.task.get_coro())
        return all(code is not self.generator for code, _ in chain)


def error_for(cause: Cause, trail: Trail | None = None) -> ScopeEnded:
    """The error of a scope that ended because of `cause`, in the midst of the call of `trail`."""
    if cause.kind is not CauseKind.DEADLINE:
        return Cancelled(cause)
    error = DeadlineExceeded(cause)
    if trail is not None:
        error.trail = trail
        error.add_note(trail.line())
    return error


def seconds_of(value: Duration, call: str) -> Duration:
    """`value` as a float; for the faces, so that what is no number is told where it was written.

    Raises:
        TypeError: it is no number, for example the text "3s".
    """
    try:
        return value + 0.0
    except TypeError:
        raise TypeError(
            f"{call} takes a number of seconds, got {value!r}; for text use "
            "holdfast.domain.instant.parse_duration, for no limit math.inf"
        ) from None


def outcome_of(exc: BaseException) -> Outcome:
    """How a scope ended that `exc` left."""
    return Outcome.CANCELLED if isinstance(exc, asyncio.CancelledError) else Outcome.FAILED
