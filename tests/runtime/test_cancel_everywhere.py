"""Cancel at every await: the same work again and again, each time interrupted one step later."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT017
from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import holdfast
from holdfast.testing import run_checked


@types.coroutine
def interrupted(
    coro: Coroutine[Any, Any, Any], at: int, act: Callable[[], object], steps: list[int]
) -> Generator[Any, Any, Any]:
    """Drive `coro` and call `act` from the loop when it is suspended for the `at`-th time."""
    loop = asyncio.get_running_loop()
    value: object = None
    error: BaseException | None = None
    while True:
        try:
            wait = coro.send(value) if error is None else coro.throw(error)
        except StopIteration as stop:
            return stop.value
        steps[0] += 1
        if steps[0] == at:
            loop.call_soon(act)
        value, error = None, None
        try:
            value = yield wait
        except BaseException as exc:
            error = exc


class World:
    """What the work takes hold of; all of it must be given back."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.taken = 0

    @asynccontextmanager
    async def resource(self, name: str) -> AsyncIterator[None]:
        await asyncio.sleep(0.01)
        self.held.append(name)
        self.taken += 1
        try:
            yield
        finally:
            self.held.remove(name)

    @asynccontextmanager
    async def careful(self, name: str) -> AsyncIterator[None]:
        await asyncio.sleep(0.01)
        self.held.append(name)
        try:
            yield
        finally:
            try:
                async with holdfast.shield(0.4):
                    await asyncio.sleep(0.2)  # only a stranger can cut this short
            finally:
                self.held.remove(name)

    async def child(self, name: str) -> str:
        async with self.resource(name), holdfast.timeout(1.0, name=name):
            await asyncio.sleep(0.03)
            await asyncio.sleep(0)
        return name


async def nested_scopes(world: World) -> None:
    async with holdfast.timeout(10, name="a"), world.resource("r1"):
        await asyncio.sleep(0)
        async with holdfast.timeout(5, name="b"):
            async with world.careful("c1"):
                await asyncio.sleep(0.1)
            async with holdfast.scope("c"), world.resource("r2"):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)


async def groups(world: World) -> None:
    async with holdfast.tasks("outer") as outer:
        outer.start(world.child("one"))
        async with holdfast.tasks("inner", seconds=5) as inner:
            inner.start(world.child("two"))
            inner.start(world.child("three"))
            await asyncio.sleep(0.01)
        outer.start(world.child("four"))
        await asyncio.sleep(0)


async def strangers(world: World) -> None:
    with anyio.move_on_after(50):
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            group.create_task(world.child("native"))
            async with holdfast.timeout(30), anyio.create_task_group() as other:
                other.start_soon(world.child, "foreign")
                async with world.careful("c"):
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)


async def waiters(world: World) -> None:
    lock = asyncio.Lock()
    queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for n in range(3):
            async with lock:
                await queue.put(n)

    async with holdfast.tasks() as group:
        group.start(produce())
        for _ in range(3):
            await queue.get()
            async with lock, world.resource("under lock"):
                await asyncio.sleep(0)
    assert not lock.locked()


async def generators(world: World) -> None:
    async def numbers() -> AsyncIterator[int]:
        async with world.resource("generator"):
            for n in range(3):
                await asyncio.sleep(0.01)
                yield n

    async with holdfast.timeout(3):
        stream = numbers()
        try:
            async for _ in stream:
                await asyncio.sleep(0.01)
        finally:
            async with holdfast.shield(0.1):
                await stream.aclose()  # type: ignore[attr-defined]


async def swallower(world: World) -> None:
    async with holdfast.timeout(10), world.resource("kept"):
        for _ in range(3):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)


async def middle_cleans_up(world: World) -> None:
    async with (
        holdfast.timeout(10, name="top"),
        holdfast.scope("middle"),
        world.careful("in the middle"),
        holdfast.scope("leaf"),
        world.careful("at the leaf"),
    ):
        await asyncio.sleep(0.1)


WORKS = [
    nested_scopes,
    groups,
    strangers,
    waiters,
    generators,
    swallower,
    middle_cleans_up,
]


def attempt(work: Callable[[World], Coroutine[Any, Any, None]], at: int, how: str) -> int:
    """Run `work`, cancelled at its step `at`; how many steps it took."""
    steps = [0]

    async def main() -> None:
        world = World()
        seen: list[BaseException | None] = []
        counted: list[int] = []

        async def victim() -> None:
            task = asyncio.current_task()
            assert task is not None
            scope = holdfast.scope("victim")

            def act() -> None:
                if scope.outcome is not None:
                    return
                if how != "task":
                    scope.cancel("at this step")
                if how != "scope":
                    task.cancel()

            try:
                async with scope:
                    await interrupted(work(world), at, act, steps)
            except BaseException as exc:
                seen.append(exc)
            counted.append(task.cancelling())

        task = asyncio.create_task(victim())
        async with asyncio.timeout(60):
            await asyncio.wait([task])
        await task
        hit = steps[0] >= at > 0
        foreign = how != "scope" and hit
        assert counted == [1 if foreign else 0], f"step {at}: {seen}"
        if hit:
            # A step may be the last one: then the work was done before the cancellation came.
            wanted = asyncio.CancelledError if foreign else holdfast.Cancelled
            if work is swallower:  # it swallowed the foreign one; the scope still says how it ended
                wanted = (asyncio.CancelledError, holdfast.Cancelled)
            assert all(isinstance(exc, wanted) for exc in seen), f"step {at}: {seen}"
            assert seen or work is swallower, f"step {at}"
        else:
            assert not seen
        assert world.held == [], f"step {at}"

    run_checked(main)
    return steps[0]


@pytest.mark.parametrize("how", ["scope", "task", "both"])
@pytest.mark.parametrize("work", WORKS)
def test_cancel_at_every_await(work, how: str) -> None:
    total = attempt(work, 0, how)
    assert total > 2
    for at in range(1, total + 1):
        attempt(work, at, how)


@pytest.mark.parametrize("work", WORKS)
def test_a_deadline_at_every_moment(work) -> None:
    async def main(limit: float) -> bool:
        world = World()
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        expired = False
        try:
            async with holdfast.timeout(limit, name="limit"):
                await work(world)
        except holdfast.DeadlineExceeded as exc:
            expired = True
            assert exc.cause.scope == "limit"
        assert task.cancelling() == 0
        assert world.held == []
        assert loop.time() - began <= limit + 2.0
        return expired

    outcomes = [run_checked(lambda n=n: main(n * 0.0125 + 0.001)) for n in range(60)]
    assert outcomes[0]
    assert not outcomes[-1]
