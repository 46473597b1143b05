"""What a loop keeps for its scopes: the root, the timers, the deliveries under way, the counters."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Instant
from holdfast.domain.tree import Node
from holdfast.runtime.clock import clock_of
from holdfast.runtime.delivery import Delivery
from holdfast.runtime.timers import Alarm, Entry, Timers

if TYPE_CHECKING:
    from holdfast.runtime.scope import Scope

__all__ = ["Driver", "Swallow", "driver_of", "drivers"]

_KEPT_REPORTS: Final = 64


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
    after: float
    stack: tuple[str, ...]


class Driver:
    """Performs on one loop what the tree decides."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.now = clock_of(loop)
        self.root = Node("process")
        self.root.open_root(self.now())
        self.timers = Timers(loop, self.now, self._expire)
        self.delivery = Delivery(loop, self.now, self._alarm, self._swallowed)
        self.counts: Counter[str] = Counter()
        self.swallowed: deque[Swallow] = deque(maxlen=_KEPT_REPORTS)
        self.kept: set[asyncio.Task[Any]] = set()
        """Strong references to detached tasks; the loop itself keeps weak ones."""

    def begin(self, scope: Scope, cause: Cause) -> bool:
        """Cancel `scope` with `cause` and deliver that to every task below. False when it is too late."""
        if not scope.cancel_node(cause):
            return False
        self.counts[f"cancelled.{cause.kind}"] += 1
        self.delivery.reach(scope)
        return True

    def alarm(self, at: Instant, call: Any) -> Alarm:
        """Call `call` at `at`, unless the alarm is dropped before."""
        entry = Alarm(at, call)
        self.timers.add(entry, at)
        return entry

    def drop(self, alarm: Alarm) -> None:
        """Forget an alarm; does nothing when it has rung."""
        self.timers.discard(alarm, alarm.limit)

    def _alarm(self, at: Instant, call: Any) -> None:
        self.alarm(at, call)

    def _expire(self, due: Sequence[Entry], now: Instant) -> None:
        scopes: list[Scope] = []
        for entry in due:
            if isinstance(entry, Alarm):
                entry.call()
            else:
                scopes.append(entry)  # type: ignore[arg-type] - timers hold alarms and scopes only
        # Where a scope and one above it are due at once, the outer one is what ended.
        if len(scopes) > 1:
            scopes.sort(key=_depth)
        for scope in scopes:
            self.begin(scope, scope.cause_of(CauseKind.DEADLINE, now))

    def _swallowed(self, scope: Scope, after: float, stack: tuple[str, ...]) -> None:
        self.counts["swallowed"] += 1
        cause = scope.reached()
        if cause is not None:
            name = scope.task.get_name() if scope.task is not None else ""
            self.swallowed.append(Swallow(scope.path, name, cause, after, stack))


def _depth(node: Node) -> int:
    return node.depth


_drivers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Driver] = (
    weakref.WeakKeyDictionary()
)


class _Last:
    # One slot in front of the weak dictionary: nearly every process has one loop.
    driver: Driver | None = None


def driver_of(loop: asyncio.AbstractEventLoop) -> Driver:
    """The driver of `loop`, made at its first scope."""
    last = _Last.driver
    if last is not None and last.loop is loop:
        return last
    driver = _drivers.get(loop)
    if driver is None:
        driver = _drivers[loop] = Driver(loop)
    _Last.driver = driver
    return driver


def drivers() -> tuple[Driver, ...]:
    """The drivers of all loops that had a scope and are not closed."""
    return tuple(driver for driver in tuple(_drivers.values()) if not driver.loop.is_closed())
