"""Nests of four foreign and own layers in every order: one owner converts, the others let pass."""

# The block under test is what raises, and it is never a single statement.
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import permutations
from typing import Any

import anyio
import pytest

import holdfast

LATE = 100.0
FIRES_AT = 1.0


class Boom(Exception):
    pass


async def fail_at(delay: float) -> None:
    await asyncio.sleep(delay)
    raise Boom


@asynccontextmanager
async def asyncio_group(fires: float) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(fail_at(fires))
        yield
        task.cancel()


@asynccontextmanager
async def anyio_group(fires: float) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(fail_at, fires)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def own_group(fires: float) -> AsyncIterator[None]:
    async with holdfast.tasks() as group:
        task = group.start(fail_at(fires))
        yield
        task.cancel()


@asynccontextmanager
async def anyio_move_on(fires: float) -> AsyncIterator[None]:
    with anyio.move_on_after(fires) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError


@asynccontextmanager
async def anyio_fail(fires: float) -> AsyncIterator[None]:
    with anyio.fail_after(fires):
        yield


@asynccontextmanager
async def own_scope(fires: float) -> AsyncIterator[None]:
    async with holdfast.scope("cancelled") as scope:
        handle = asyncio.get_running_loop().call_later(fires, scope.cancel)
        try:
            yield
        finally:
            handle.cancel()


Layer = Callable[[float], AbstractAsyncContextManager[Any]]
TIMEOUTS: dict[str, Layer] = {
    "asyncio_timeout": asyncio.timeout,
    "anyio_fail": anyio_fail,
    "anyio_move_on": anyio_move_on,
    "own_timeout": lambda fires: holdfast.timeout(fires),
}
LAYERS: dict[str, Layer] = {
    **TIMEOUTS,
    "asyncio_group": asyncio_group,
    "anyio_group": anyio_group,
    "own_group": own_group,
    "own_scope": own_scope,
    "own_shield": lambda fires: holdfast.shield(fires),
}
CONVERTED: dict[str, type[BaseException]] = {
    "asyncio_group": ExceptionGroup,
    "anyio_group": ExceptionGroup,
    "own_group": ExceptionGroup,
    "own_scope": holdfast.Cancelled,
    "own_timeout": holdfast.DeadlineExceeded,
    "own_shield": holdfast.DeadlineExceeded,
}
FOURS = [
    ("asyncio_timeout", "anyio_fail", "asyncio_group", "own_timeout"),
    ("asyncio_timeout", "anyio_group", "own_group", "own_timeout"),
    ("anyio_move_on", "asyncio_group", "own_group", "own_scope"),
]
ORDERS = [order for four in FOURS for order in permutations(four)]


class Nest:
    """Layers from the outside in; notes what comes out of each."""

    def __init__(self, order: tuple[str, ...], firing: dict[int, float]) -> None:
        self.order = order
        self.firing = firing
        self.came_out: dict[int, BaseException] = {}
        self.usable: list[int] = []

    async def run(self, at: int = 0) -> None:
        if at == len(self.order):
            await asyncio.sleep(LATE / 2)
            return
        try:
            async with LAYERS[self.order[at]](self.firing.get(at, LATE)):
                await self.run(at + 1)
        except BaseException as exc:
            self.came_out[at] = exc
            if at not in self.firing or isinstance(exc, asyncio.CancelledError):
                raise
        # Whoever is outside of the owner goes on as if nothing had been.
        await asyncio.sleep(0.25)
        self.usable.append(at)


def counters() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@pytest.mark.parametrize("firing", range(4))
@pytest.mark.parametrize("order", ORDERS, ids=">".join)
async def test_exactly_the_owner_converts(order: tuple[str, ...], firing: int) -> None:
    nest = Nest(order, {firing: FIRES_AT})
    loop = asyncio.get_running_loop()
    began = loop.time()
    await nest.run()
    assert counters() == 0
    wanted = CONVERTED.get(order[firing], TimeoutError)
    assert isinstance(nest.came_out[firing], wanted)
    inside = [exc for at, exc in nest.came_out.items() if at > firing]
    assert len(inside) == 3 - firing
    assert all(isinstance(exc, asyncio.CancelledError) for exc in inside)
    assert not [at for at in nest.came_out if at < firing]
    assert nest.usable == list(range(firing, -1, -1))
    took = loop.time() - began
    assert took == pytest.approx(FIRES_AT + 0.25 * (firing + 1), abs=0.1)


@pytest.mark.parametrize("order", ORDERS, ids=">".join)
async def test_nobody_converts_a_foreign_cancellation(order: tuple[str, ...]) -> None:
    nest = Nest(order, {})
    task = asyncio.create_task(nest.run())
    await asyncio.sleep(FIRES_AT)
    task.cancel("by hand")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1
    assert all(isinstance(exc, asyncio.CancelledError) for exc in nest.came_out.values())
    assert len(nest.came_out) == 4


@pytest.mark.parametrize("gap", [0.0, 1e-4, 0.2])
@pytest.mark.parametrize("order", list(permutations(TIMEOUTS)), ids=">".join)
async def test_all_deadlines_at_once_leave_no_trace(order: tuple[str, ...], gap: float) -> None:
    # The outer ones a little earlier: the inner cancellations are under way when they come.
    nest = Nest(order, {at: FIRES_AT + gap * at for at in range(4)})
    await nest.run()
    assert counters() == 0
    assert all(isinstance(e, TimeoutError | asyncio.CancelledError) for e in nest.came_out.values())
    assert isinstance(nest.came_out[0], TimeoutError)


@pytest.mark.parametrize("gap", [0.0, 1e-4])
@pytest.mark.parametrize("order", list(permutations(TIMEOUTS)), ids=">".join)
async def test_a_foreign_cancellation_beats_all_deadlines(
    order: tuple[str, ...], gap: float
) -> None:
    async def body() -> None:
        async def nest(at: int) -> None:
            if at == 4:
                await asyncio.sleep(LATE / 2)
            else:
                async with LAYERS[order[at]](FIRES_AT + gap):
                    await nest(at + 1)

        await nest(0)

    task = asyncio.create_task(body())
    asyncio.get_running_loop().call_later(FIRES_AT, task.cancel)
    await asyncio.wait([task])
    if gap:
        assert task.cancelled()
    else:  # whichever timer comes first decides, but nothing hangs and nothing is left
        assert task.done()
