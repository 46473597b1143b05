"""The items of a pool of workers, and what is told of them. For `runtime.workers` alone."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast.domain.errors import Cancelled, UsageError
from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.scope import Scope

__all__ = ["Item", "WorkersFull", "WorkersStats", "awaited", "holdable"]

T = TypeVar("T")


class WorkersFull(Cancelled, asyncio.QueueFull):
    """An item was refused, because as many as may wait do wait already."""


@dataclass(frozen=True, slots=True)
class WorkersStats:
    """What a pool does, and did.

    Attributes:
        queued: items that wait for a worker.
        running: items that are worked on.
        done: items that ended well.
        failed: items that raised.
        cancelled: items that were cancelled or ran out of time while they ran.
        dropped: items that left the queue without having begun: expired, or nobody waited any more.
        waited_p50: seconds that the last 1024 items waited in the queue, the median; 0.0 if none.
        waited_max: the longest of those.
    """

    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    dropped: int
    waited_p50: Duration
    waited_max: Duration


class Item:
    """One piece of work.

    Attributes:
        begin: makes its coroutine.
        name: of its function, and so of its scope.
        since: instant at which it was handed over.
        limit: instant at which it is over.
        here: the scope of who submitted it; none where that is the pool's own, or none.
        quiet: whether nobody waits for it.
        number: in the queue; negative when it is not there.
        scope: its own, once it has begun.
        waited: seconds that it had waited when it began.
    """

    __slots__ = (
        "begin", "context", "handle", "here", "limit", "name", "number", "quiet", "scope", "since",
        "waited",
    )  # fmt: skip

    def __init__(
        self,
        begin: Callable[[], Awaitable[Any]],
        name: str,
        since: Instant,
        limit: Instant,
        handle: asyncio.Future[Any],
        quiet: bool,
    ) -> None:
        self.begin = begin
        self.name = name
        self.since = since
        self.limit = limit
        self.handle = handle
        self.quiet = quiet
        self.here: HostedNode | None = None
        self.context: contextvars.Context | None = None
        self.number = -1
        self.waited: Duration = 0.0
        self.scope: Scope | None = None


async def awaited(made: Awaitable[T], name: str) -> T:
    if not inspect.isawaitable(made):
        raise UsageError(
            f"'{name}' returned {made!r}; a pool takes coroutine functions, and for plain ones "
            "there is asyncio.to_thread"
        )
    return await made


def holdable(error: BaseException, name: str) -> BaseException:
    """`error` of an item, as its future can hold it and as who awaits that cannot mistake it.

    A future takes no `StopIteration`. A `CancelledError` would look to who awaits it as if that one
    had been cancelled, though only the item had to do with something that was; and a
    `GeneratorExit` as if its own coroutine were closed.
    """
    if not isinstance(error, StopIteration | GeneratorExit | asyncio.CancelledError):
        return error
    detail = f"'{name}' raised {type(error).__name__}"
    if isinstance(error, asyncio.CancelledError):
        detail += ", and nobody had cancelled it"
    made = RuntimeError(detail)
    made.__cause__ = error
    return made
