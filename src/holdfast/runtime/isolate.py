"""Work in a task of its own, for libraries that break when a cancellation hits them anywhere.

The caller is free at once when it is cancelled, by whomever. The work is cancelled too, but with
the care of `delivery`: not in the middle of a hand-over, not inside a shield. What it still needs
to clean up it does under the process; a result that nobody waits for any more is disposed of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import Cancelled
from holdfast.domain.instant import Duration
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import Scope, ambient
from holdfast.runtime.tasks import detach, spawn

__all__ = ["isolate"]

T = TypeVar("T")


async def isolate(
    coro: Coroutine[Any, Any, T],
    *,
    name: str,
    dispose: Callable[[T], Awaitable[object]] | None = None,
    patience: Duration = 0.02,
) -> T:
    """The result of `coro`, which runs in a task and a scope of its own below the ambient one.

    Args:
        coro: the work.
        name: the name of its scope.
        dispose: called with the result when the caller has gone before it was there.
        patience: seconds that a cancelled caller waits for the work to end.

    Raises:
        Cancelled: the work was cancelled, and not because its caller was.
    """
    driver = driver_of(asyncio.get_running_loop())
    here = ambient()
    local = here is not None and here.driver is driver
    parent = here if here is not None and local else driver.root
    task, scope = spawn(coro, name=name, parent=parent, driver=driver)
    try:
        await _settled(task)
    except asyncio.CancelledError:
        scope.cancel("its caller was cancelled", kind=CauseKind.PARENT)
        try:
            if not task.done():
                await _give_up(task, patience)
        finally:  # a second cancellation may come while we wait, as it always does from anyio
            _let_go(task, scope, dispose)
        raise
    if task.cancelled():
        cause = scope.reached() or scope.cause_of(CauseKind.CALLER, driver.now())
        raise Cancelled(cause)
    return task.result()


async def _settled(task: asyncio.Task[Any]) -> None:
    # Not `await task`: a cancel of the caller would be handed on to it, without any care.
    if not task.done():
        waiter = task.get_loop().create_future()

        def wake(_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        task.add_done_callback(wake)
        try:
            await waiter
        finally:
            task.remove_done_callback(wake)


async def _give_up(task: asyncio.Task[Any], patience: Duration) -> None:
    await asyncio.wait([task], timeout=patience)


def _let_go(
    task: asyncio.Task[T], scope: Scope, dispose: Callable[[T], Awaitable[object]] | None
) -> None:
    kept = scope.driver.kept
    scope.disown()

    def finish(done: asyncio.Task[T]) -> None:
        kept.discard(done)
        if done.cancelled() or done.exception() is not None:
            return  # the caller has its own reason; what came of the work is no news to anybody
        if dispose is not None:
            detach(_run(dispose, done.result()), name=f"dispose {scope.name}")

    if task.done():
        finish(task)
    else:
        kept.add(task)
        task.add_done_callback(finish)


async def _run(dispose: Callable[[T], Awaitable[object]], result: T) -> None:
    await dispose(result)
