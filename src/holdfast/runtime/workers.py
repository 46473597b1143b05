"""A pool of workers over a queue, in a structured scope.

    async with holdfast.workers(8, order="deadline") as pool:
        await pool.put(write_audit, line)           # nobody waits for it
        size = await pool.run(resize, path)         # and here somebody does

Rule 1. An item is bounded by the pool and by the deadline of who submitted it, and has that one's
        identity, stage and context variables.
Rule 2. What expires in the queue is not begun, and who submitted it is told that it waited in vain
        (`InsufficientBudget`), which is another error than that of work that was too slow
        (`DeadlineExceeded`).
Rule 3. When the scope of who submitted it is cancelled, an item leaves the queue, or is cancelled.
Rule 4. An item that fails fails alone. Its error goes to who waits for it, and into the log where
        nobody does.
Rule 5. The block ends when all items have; one that fails or is cancelled takes them along.

There are no tasks that wait for work: each item is a task with a scope of its own, begun when there
is room. So there is nothing that could die, and nothing of one item is left for the next.

The trap: an item that waits for another item of the same pool takes two places. If all do, none of
them moves, until their deadlines end it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec, TypeVar

from holdfast.domain.cause import CauseKind
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.resilience.waiting import Order
from holdfast.runtime.hosted import seconds_of
from holdfast.runtime.scope import Scope
from holdfast.runtime.workers_floor import Floor
from holdfast.runtime.workers_items import WorkersFull, WorkersStats

__all__ = ["Workers", "WorkersFull", "WorkersStats", "workers"]

P = ParamSpec("P")
T = TypeVar("T")


class Workers(Floor):
    """A pool of workers; see `workers`."""

    # -- for users -------------------------------------------------------------------------------

    def submit(
        self, work: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Hand `work(*args, **kwargs)` over at once; await what is returned for its result.

        Cancelling what is returned takes the item out of the queue, or cancels it.

        Raises:
            WorkersFull: as many as may wait do wait; see `run` and `put`, which wait for a place.
            InsufficientBudget: the ambient deadline has passed already.
            ScopeEnded: the pool is cancelled, or its limit is spent.
            UsageError: the block of the pool has not begun or has ended, or this is another loop.
        """
        self._check()
        if self._full():
            detail = f"{len(self._waiting)} items wait already, and no more may"
            cause = self.scope.cause_of(CauseKind.OVERLOAD, self.scope.driver.now(), detail)
            raise WorkersFull(cause)
        return self._hand_over(partial(work, *args, **kwargs), work, self.scope.driver.now(), False)

    async def put(
        self, work: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Hand `work(*args, **kwargs)` over, as soon as there is a place; nobody waits for it.

        Its error is logged and counted.

        Raises:
            InsufficientBudget, ScopeEnded, UsageError: see `submit`; nothing was handed over.
        """
        self._check()
        since = self.scope.driver.now()
        if self._full():
            await self._place()
        self._hand_over(partial(work, *args, **kwargs), work, since, True)

    async def run(self, work: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Hand `work(*args, **kwargs)` over, as soon as there is a place, and wait for its result.

        Raises:
            InsufficientBudget: the deadline passed in the queue; it was not begun.
            DeadlineExceeded: the deadline passed while it ran.
            ScopeEnded, UsageError: see `submit`.
            Exception: whatever `work` raises.
        """
        self._check()
        since = self.scope.driver.now()
        if self._full():
            await self._place()
        handle: asyncio.Future[T] = self._hand_over(
            partial(work, *args, **kwargs), work, since, False
        )
        return await handle

    def cancel(self, detail: str = "") -> bool:
        """Cancel every item and the block itself; see `Scope.cancel`."""
        return self.scope.cancel(detail)

    def stats(self) -> WorkersStats:
        """What the pool does now, and did since it was opened."""
        waits = self._waits
        return WorkersStats(
            len(self._waiting),
            len(self._running),
            self._done,
            self._failed,
            self._cancelled,
            self._dropped,
            statistics.median(waits) if waits else 0.0,
            max(waits, default=0.0),
        )

    # -- the block -------------------------------------------------------------------------------

    async def __aenter__(self) -> Workers:
        await self.scope.__aenter__()
        self.scope.settle()
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._abort(exc)
        cancelled = await self._drain()
        self._open = False
        while self._putters:
            self._wake()
        if self._alarm is not None:
            self.scope.driver.drop(self._alarm)
        self.scope.leave(exc or cancelled)
        if exc is None and cancelled is not None:
            raise cancelled


def workers(
    count: int,
    /,
    *,
    name: str = "workers",
    order: Order = "fifo",
    most: int = 1000,
    seconds: Duration = NEVER,
    detached: bool = False,
) -> Workers:
    """A pool of `count` workers; enter it with `async with`.

    Args:
        count: items that are worked on at once.
        name: of its scope.
        order: `fifo`, or `deadline` for the item first whose deadline is the earliest.
        most: items that may wait; beyond that `put` and `run` wait, and `submit` refuses.
        seconds: budget of the whole block.
        detached: items keep identity and stage of who submitted them, and not the deadline: for
            work that must be done whoever waits. The pool bounds it.

    Raises:
        ValueError: `count` is not positive, `most` is negative, or another order.
        TypeError: `seconds` is not a number.
    """
    if count < 1 or most < 0:
        raise ValueError(
            f"a pool needs at least one worker and room for 0 or more, got {count}, {most}"
        )
    wish = seconds_of(seconds, "workers()")
    if wish != wish:
        raise ValueError("a deadline must be a number, got nan")
    return Workers(Scope(name, wish), count, order, most, detached)
