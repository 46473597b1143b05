"""How a cancellation reaches the tasks.

Rule 1. Once per task: the outermost cancelled scope that a task hosts is the one that cancels it.
Rule 2. Not a task that somebody else is cancelling: a second cancel would break its clean-up.
Rule 3. A task never loses what it was given (a connection that a pool handed over). One that has
        got what it waited for, and has not run since, gets a few turns of the loop to move on. And
        a cancelled task runs at once, in the same callback: `task.cancel()` by itself only makes it
        ready, and what runs before it could still hand it something.
Rule 4. Not through an anyio shield: it waits until the shield ends, and no longer than a bound.
        A shield that guards a worker thread is waited for without a bound, since the thread cannot
        be stopped and its place must not be given away.
Rule 5. A scope that is still open a while after the delivery gets it again, three times at most,
        and is reported with the place where it waits.
Rule 6. On uvloop, not a task that has begun to wait in this very turn: what it has just begun may
        have callbacks of its own in the queue, and a transport that is closed before they have run
        is a null pointer to libuv (`create_connection` ends the process with SIGSEGV). One turn
        later, if it waits for the same, they have run.
Rule 7. A mass cancellation is cut into slices, one per turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from holdfast.domain.cause import Cause
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.tree import Node, Outcome
from holdfast.runtime.shields import anyio_is_loaded, frames_of, in_worker_thread, shielded_within

__all__ = ["CLEANUP_GRACE", "REDELIVERIES", "SHIELD_BOUND", "Delivery", "Hosted", "stack_of"]

CLEANUP_GRACE: Final[Duration] = 0.5
"""Seconds that a cancelled block may clean up before it is cancelled again (then twice, four times
as long)."""

REDELIVERIES: Final = 3
SHIELD_BOUND: Final[Duration] = 1.0
"""Seconds that a delivery waits for an anyio shield to end."""

_SLICE: Final = 500
_TURNS: Final = 32
_POLL_FIRST: Final[Duration] = 0.001
_POLL_LAST: Final[Duration] = 0.05


class Hosted(Protocol):
    """What a delivery needs to know of a scope.

    Attributes:
        task: the task that it cancels; none for a scope of a plain function.
        mark: the anyio scope around it; shields inside that are respected.
        baseline: what `task.cancelling()` was when it was entered.
        delivered: how often it has cancelled the task.
        shields: shields of ours that are open inside, in the same task.
        generator: code of the async generator that entered it; none for other scopes.
        deaf: it waits for its children and need not be told.
        outcome: how it ended; none while it is open.
    """

    delivered: int

    @property
    def task(self) -> asyncio.Task[Any] | None: ...
    @property
    def mark(self) -> object: ...
    @property
    def baseline(self) -> int: ...
    @property
    def shields(self) -> int: ...
    @property
    def deaf(self) -> bool: ...
    @property
    def generator(self) -> object: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def path(self) -> str: ...
    def reached(self) -> Cause | None: ...
    def below(self) -> Iterator[Node]: ...
    def cancel_node(self, cause: Cause) -> bool: ...
    def suspended_in_generator(self) -> bool: ...


class _Waiting:
    """One delivery under way."""

    __slots__ = ("begun", "poll", "scope", "seen", "turns")

    def __init__(self, scope: Hosted, begun: Instant) -> None:
        self.scope = scope
        self.begun = begun
        self.turns = 0
        self.poll = _POLL_FIRST
        self.seen: object = None
        """What the task waited for one turn ago (rule 6)."""


class Delivery:
    """The cancellations under way on one loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], Instant],
        alarm: Callable[[Instant, Callable[[], object]], object],
        swallowed: Callable[[Hosted, Duration, tuple[str, ...]], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._alarm = alarm
        self._swallowed = swallowed
        self._walks: deque[Iterator[Node]] = deque()
        self._again: deque[_Waiting] = deque()
        self._watched: deque[tuple[Instant, Hosted]] = deque()
        self._pumping = False
        # Whoever derives from uvloop's loop has the same transports.
        self._delicate = any(kind.__module__.startswith("uvloop") for kind in type(loop).__mro__)

    def reach(self, scope: Hosted) -> None:
        """Deliver the cancellation of `scope` to its own task and to all tasks below it."""
        # In the next turn, outside of any task, so that a task can be run at once, and a cancel by
        # somebody else in this turn is seen first. Only a task that has not begun is cancelled here
        # and now: in the next turn it would have begun.
        for node in islice(scope.below(), _SLICE):
            hosted: Any = node
            task = getattr(hosted, "task", None)
            if task is not None and not node.shielded and not _has_begun(task):
                self._deliver(hosted, self._now(), None)
        self._walks.append(scope.below())
        self._schedule()

    def owed(self, scope: Hosted) -> None:
        """Deliver to `scope` alone, soon: a cancellation had to wait and its time has come."""
        self._again.append(_Waiting(scope, self._now()))
        self._schedule()

    def _schedule(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        left = _SLICE
        for _ in range(min(len(self._again), left)):
            self._try(self._again.popleft())
            left -= 1
        now = self._now()
        while left > 0 and self._walks:
            for node in self._walks[0]:
                left -= 1
                self._visit(node, now)
                if left <= 0:
                    break
            else:
                self._walks.popleft()
        if self._walks or self._again:
            self._schedule()

    def _visit(self, node: Node, now: Instant) -> None:
        scope: Any = node
        if node.shielded and node.cause is None:
            scope.shorten(now)
            return
        task = scope.task
        # Rule 1: what its parent hosts in the same task is cancelled with it.
        if task is None or (node.cause is None and getattr(node.parent, "task", None) is task):
            return
        self._deliver(scope, now, None)

    def _try(self, waiting: _Waiting) -> None:
        scope = waiting.scope
        if scope.outcome is None and scope.delivered == 0:
            self._deliver(scope, self._now(), waiting)

    def _deliver(self, scope: Hosted, now: Instant, waiting: _Waiting | None) -> None:
        task = scope.task
        if task is None or task.done() or scope.deaf:
            return
        begun = now if waiting is None else waiting.begun
        if scope.shields or (scope.generator is not None and scope.suspended_in_generator()):
            return self._later(scope, waiting, now)
        if task.cancelling() > scope.baseline and now - begun < CLEANUP_GRACE:
            return self._later(scope, waiting, now)
        leaf, waiter = _leaf(task)
        if anyio_is_loaded() and shielded_within(task, scope.mark):
            if now - begun < SHIELD_BOUND or in_worker_thread(task):
                return self._later(scope, waiting, now)
        elif waiter is None and _has_begun(leaf) and (waiting is None or waiting.turns < _TURNS):
            again = waiting or _Waiting(scope, now)
            again.turns += 1
            self._again.append(again)
            return self._schedule()
        elif self._delicate and waiter is not None and _began_just_now(waiting, waiter):
            again = waiting or _Waiting(scope, now)
            again.turns += 1
            again.seen = waiter
            self._again.append(again)
            return self._schedule()
        scope.delivered += 1
        _cancel_at_once(task, leaf, waiter, scope.reached())
        if not task.done():
            self._watch(scope, now)
        return None

    def _later(self, scope: Hosted, waiting: _Waiting | None, now: Instant) -> None:
        again = waiting or _Waiting(scope, now)
        again.turns = 0
        again.poll = min(again.poll * 2, _POLL_LAST)
        self._alarm(now + again.poll, lambda: self._try(again))

    # -- rule 5 ----------------------------------------------------------------------------------

    def _watch(self, scope: Hosted, now: Instant) -> None:
        # The wait is the same for all, so a queue does: one alarm for its head.
        self._watched.append((now + CLEANUP_GRACE, scope))
        if len(self._watched) == 1:
            self._alarm(now + CLEANUP_GRACE, self._look)

    def _look(self) -> None:
        now = self._now()
        while self._watched and self._watched[0][0] <= now:
            _, scope = self._watched.popleft()
            if scope.outcome is None:
                self._remind(scope, now - CLEANUP_GRACE, 1)
        if self._watched:
            self._alarm(self._watched[0][0], self._look)

    def _remind(self, scope: Hosted, delivered_at: Instant, nth: int) -> None:
        task = scope.task
        if scope.outcome is not None or task is None or task.done() or scope.deaf:
            return
        now = self._now()
        if scope.shields or scope.suspended_in_generator() or shielded_within(task, scope.mark):
            # Clean-up under a shield is no breach, and a shield has a bound of its own.
            self._alarm(now + CLEANUP_GRACE, lambda: self._remind(scope, delivered_at, nth))
            return
        self._swallowed(scope, now - delivered_at, stack_of(task))
        scope.delivered += 1
        task.cancel(scope.reached())
        if nth < REDELIVERIES:
            wait = CLEANUP_GRACE * 2**nth
            self._alarm(now + wait, lambda: self._remind(scope, delivered_at, nth + 1))


def _began_just_now(waiting: _Waiting | None, waiter: object) -> bool:
    return waiting is None or (waiting.seen is not waiter and waiting.turns < _TURNS)


def _has_begun(task: asyncio.Task[Any]) -> bool:
    coro = task.get_coro()
    return getattr(coro, "cr_suspended", True) or getattr(coro, "cr_running", True)


def _leaf(task: asyncio.Task[Any]) -> tuple[asyncio.Task[Any], Any]:
    """The task at the end of a chain of tasks that wait for one another, and what it waits for.

    The latter is None when that has happened already, or when it waits for nothing.
    """
    for _ in range(16):
        waiter: Any = getattr(task, "_fut_waiter", None)
        if waiter is None or waiter.done():
            return task, None
        if not isinstance(waiter, asyncio.Task):
            return task, waiter
        task = waiter  # pyright: ignore[reportUnknownVariableType]
    return task, None


def _cancel_at_once(
    task: asyncio.Task[Any], leaf: asyncio.Task[Any], waiter: Any, cause: Cause | None
) -> None:
    """Cancel `task` and let it run until it waits again, where that can be done.

    It can when what is waited for in the end is a future of asyncio, among whose callbacks is the
    one that wakes the task; that is called here and now. What was to happen before it wakes happens
    before: a loop takes a descriptor out of its selector that way, and the task would close it.
    """
    callbacks: list[tuple[Any, Any]] = [*(getattr(waiter, "_callbacks", None) or ())]
    for place, (wakeup, _) in enumerate(callbacks):
        if getattr(wakeup, "__self__", None) is leaf:
            ours = callbacks[: place + 1]
            for call, _ in ours:
                waiter.remove_done_callback(call)
            task.cancel(cause)
            if waiter.done():
                _call(ours, leaf, waiter)
            else:  # it would not be cancelled: it wakes the task when it is done, as before
                for call, context in ours:
                    waiter.add_done_callback(call, context=context)
            return
    task.cancel(cause)


def _call(callbacks: list[tuple[Any, Any]], leaf: asyncio.Task[Any], waiter: Any) -> None:
    loop = leaf.get_loop()
    for call, context in callbacks:
        owner = getattr(call, "__self__", None)
        if owner is not leaf and isinstance(owner, asyncio.Task):
            loop.call_soon(call, waiter, context=context)  # another one that waits for the same
            continue
        try:
            context.run(call, waiter)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # as the loop itself does with callbacks
            message = f"Exception in callback {call!r}"
            loop.call_exception_handler({"message": message, "exception": error})


def stack_of(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """Where `task` waits, outermost frame first, as `file:line function`."""
    return tuple(
        f"{code.co_filename}:{line} {code.co_qualname}" for code, line in frames_of(task.get_coro())
    )
