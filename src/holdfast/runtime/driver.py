"""What a loop keeps for its scopes: the root, the timers, the deliveries under way, the counters.

Most scopes live for microseconds, and nobody ever looks at them. So a scope that opens inside its
own task is only noted in `young`. A few milliseconds later, or when something is cancelled, those
that are still open are settled: listed in the tree and given to the timers. A scope whose limit
would pass before that is settled at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.tree import Node, Outcome
from holdfast.runtime.clock import clock_of
from holdfast.runtime.delivery import Delivery, Hosted
from holdfast.runtime.timers import Alarm, Entry, Timers

__all__ = ["Driver", "Hosted", "Last", "Swallow", "driver_of", "drivers"]

_KEPT_REPORTS: Final = 64
_SETTLE_AFTER: Final[Duration] = 0.005


@dataclass(frozen=True, slots=True)
class Swallow:
    """A cancellation that was delivered and did not end its scope in time (a breach of law 3).

    Attributes:
        scope: path of the scope.
        task: name of the task.
        cause: why it was cancelled.
        after: seconds between the first delivery and this report.
        stack: where the task waits, outermost frame first, as `file:line function`.
    """

    scope: str
    task: str
    cause: Cause
    after: Duration
    stack: tuple[str, ...]


class _Young(Protocol):
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def limit(self) -> Instant: ...
    def grow_up(self) -> None: ...


class Driver:
    """Performs on one loop what the tree decides.

    Attributes:
        loop: the loop.
        thread: of that loop.
        now: its clock.
        root: the scope of the process, as far as this loop goes.
        host: what starts and stops the process on this loop, if anything does.
        overdue: is called when somebody notices that the limit of the root is spent.
        closing: tasks of what was to be done at the end of a request, and is under way.
        counts: what was cancelled, by kind; what was swallowed; what escaped its parent.
        swallowed: the last reports of cancellations that did not end their scope.
        troubles: open scopes in which a cancellation began; while there is none, no scope needs to
            look up whether one has reached it.
        kept: strong references to detached tasks; the loop itself keeps weak ones.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread = threading.get_ident()
        self.now = clock_of(loop)
        self.root = Node("process")
        self.root.open_root(self.now())
        self.host: Any = None
        self.overdue: Callable[[], object] | None = None
        self.timers = Timers(loop, self.now, self._expire)
        self.delivery = Delivery(loop, self.now, self.alarm, self._report)
        self.counts: Counter[str] = Counter()
        self.swallowed: deque[Swallow] = deque(maxlen=_KEPT_REPORTS)
        self.kept: set[asyncio.Task[Any]] = set()
        self.closing: set[asyncio.Task[Any]] = set()
        self.troubles = 0
        self.young: list[Any] = []
        """Scopes (see the module) that nobody has looked at."""
        self.horizon: Instant = NEVER
        self._tick: asyncio.TimerHandle | None = None

    # -- settling --------------------------------------------------------------------------------

    def await_settling(self, scope: _Young, now: Instant) -> None:
        """`scope` may be due before the next time that young scopes are settled, or none is set."""
        if self._tick is None:
            self._tick = self.loop.call_later(_SETTLE_AFTER, self._settle_in_time)
            self.horizon = now + 2 * _SETTLE_AFTER
        if scope.limit < self.horizon:
            self.settle()

    def settle(self) -> None:
        """List every scope that is open in the tree, and give its limit to the timers."""
        young = self.young[:]
        self.young.clear()
        for scope in young:
            if scope.outcome is None:
                scope.grow_up()

    def _settle_in_time(self) -> None:
        self._tick = None
        self.horizon = NEVER
        self.settle()

    # -- cancelling ------------------------------------------------------------------------------

    def begin(self, scope: Hosted, cause: Cause) -> bool:
        """Cancel `scope` with `cause` and deliver it to every task below; false when too late."""
        self.settle()
        if not scope.cancel_node(cause):
            return False
        self.counts[f"cancelled.{cause.kind}"] += 1
        self.delivery.reach(scope)
        return True

    def bound_root(self, limit: Instant, kept: Duration) -> None:
        """The process ends: work by `limit`, clean-up in shields `kept` seconds later.

        Open scopes follow where theirs is later; nothing that is tighter is loosened.
        """
        self.settle()
        root = self.root
        root.limit, root.kept = limit, kept
        for node in tuple(root.children or ()):
            if node.end > limit or node.shielded:
                follow = getattr(node, "follow", None)
                if follow is not None:
                    follow()

    def cancel_root(self, cause: Cause, spare: Container[Node] = ()) -> tuple[Node, ...]:
        """Cancel everything that is open in the process; nothing opens in it any more.

        The scopes right below the root are cancelled themselves, so that each ends with an error
        that says why. Shields have their own time, which runs from now on.

        Returns the scopes right below the root that are hit; none when it was cancelled before.

        Args:
            cause: why.
            spare: scopes that are left alone.
        """
        self.settle()
        root = self.root
        if root.outcome is not None or root.cause is not None:
            return ()
        hit: list[Node] = []
        for node in tuple(root.children or ()):
            scope: Any = node
            if node.shielded:
                scope.shorten(cause.at)
            elif node not in spare and hasattr(node, "task") and self.begin(scope, cause):
                hit.append(node)
        root.cancel(cause)
        self.troubles += 1
        return tuple(hit)

    def close_root(self, outcome: Outcome) -> None:
        """The process is over: nothing opens here any more."""
        self.settle()
        root = self.root
        if root.outcome is None and root.cause is not None:
            self.troubles -= 1
        # What is open still (somebody who waited for this, what could not be ended) has nobody else
        # to be handed to. It stays listed here, and keeps its cause, or that it has none.
        children, root.children = root.children, None
        root.close(outcome)
        root.children = children
        root.limit, root.kept = min(root.limit, self.now()), 0.0

    def fresh_root(self) -> None:
        """Begin anew after a process that is over: for one loop that sees several of them."""
        self.root = Node("process")
        self.root.open_root(self.now())
        self.host = self.overdue = None

    def ending(self, scope: Node) -> CauseKind:
        """What ends a scope whose limit is spent: its own deadline, or that of the process."""
        return CauseKind.SHUTDOWN if scope.end >= self.root.limit else CauseKind.DEADLINE

    def alarm(self, at: Instant, call: Callable[[], object]) -> Alarm:
        """Call `call` at `at`, unless the alarm is dropped before."""
        entry = Alarm(at, call)
        self.timers.add(entry, at)
        return entry

    def drop(self, alarm: Alarm) -> None:
        """Forget an alarm; does nothing when it has rung."""
        self.timers.discard(alarm, alarm.limit)

    def _expire(self, due: Sequence[Entry], now: Instant) -> None:
        scopes: list[Any] = []
        for entry in due:
            if isinstance(entry, Alarm):
                entry.call()
            else:
                scopes.append(entry)
        # Where a scope and one above it are due at once, the outer one is what ended.
        if len(scopes) > 1:
            scopes.sort(key=_depth)
        for scope in scopes:
            if scope.outcome is None:
                self.begin(scope, scope.cause_of(self.ending(scope), now))

    def _report(self, scope: Hosted, after: Duration, stack: tuple[str, ...]) -> None:
        self.counts["swallowed"] += 1
        cause = scope.reached()
        if cause is not None:
            name = scope.task.get_name() if scope.task is not None else ""
            self.swallowed.append(Swallow(scope.path, name, cause, after, stack))


def _depth(node: Node) -> int:
    return node.depth


_drivers: Final[dict[asyncio.AbstractEventLoop, Driver]] = {}


class Last:
    """The driver that was asked for last: nearly every process has one loop."""

    driver: Driver | None = None


def driver_of(loop: asyncio.AbstractEventLoop) -> Driver:
    """The driver of `loop`, made at its first scope."""
    last = Last.driver
    if last is not None and last.loop is loop:
        return last
    driver = _drivers.get(loop)
    if driver is None:
        for old in [old for old in tuple(_drivers) if old.is_closed()]:
            _drivers.pop(old, None)
        driver = _drivers[loop] = Driver(loop)
    Last.driver = driver
    return driver


def drivers() -> tuple[Driver, ...]:
    """The drivers of all loops that had a scope and are not closed."""
    return tuple(driver for loop, driver in tuple(_drivers.items()) if not loop.is_closed())


def _forget() -> None:
    _drivers.clear()
    Last.driver = None


# The loops of the parent do not run in a forked child: their scopes are not its own.
os.register_at_fork(after_in_child=_forget)
