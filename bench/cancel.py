"""Figure 3: to cancel a group of tasks, and how long the loop stands still meanwhile.

Every task waits for a future that never comes. The limit is the plain loop: `task.cancel()` for
each, then `asyncio.wait`. The clock runs from the call that cancels to the end of the group's
block. A callback on every turn of the loop takes the time since the turn before.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

import holdfast
from bench._harness import LOOPS, Cell, Check, Table, Tell, absent, compare, new_loop, rounds

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Cancel a group"
VARIANTS: Final = [{"loop": loop} for loop in LOOPS]
SIZES: Final = {10: 200, 1_000: 40, 100_000: 7}
RAW: Final = "task.cancel() for each + asyncio.wait (limit)"
OURS: Final = "holdfast.tasks"
TOTAL_GOAL: Final = 1.25
STALL_GOAL: Final = 0.050

Took = tuple[float, float]
"""Seconds in total, and the longest time between two turns of the loop."""


class Heartbeat:
    """Notices how long a turn of the loop takes, at every turn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.longest = 0.0
        self.begun = self._last = perf_counter()
        self._beating = True
        self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        now = perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if self._beating:
            self._loop.call_soon(self._beat)

    def stop(self) -> Took:
        self._beating = False
        now = perf_counter()
        return now - self.begun, max(self.longest, now - self._last)


class _Stop(Exception):
    pass


async def _park() -> None:
    await asyncio.get_running_loop().create_future()


async def _begun() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def raw(count: int) -> Took:
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_park()) for _ in range(count)]
    await _begun()
    beat = Heartbeat()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return beat.stop()


async def with_holdfast(count: int) -> Took:
    beat: Heartbeat | None = None
    with suppress(holdfast.Cancelled):
        async with holdfast.tasks() as group:
            for _ in range(count):
                group.start(_park())
            await _begun()
            beat = Heartbeat()
            group.cancel()
    assert beat is not None
    return beat.stop()


async def with_task_group(count: int) -> Took:
    beat: Heartbeat | None = None
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(_park())
            await _begun()
            beat = Heartbeat()
            raise _Stop
    assert beat is not None
    return beat.stop()


async def with_anyio(count: int) -> Took:
    import anyio

    beat: Heartbeat | None = None
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(_park)
        await _begun()
        beat = Heartbeat()
        group.cancel_scope.cancel()
    assert beat is not None
    return beat.stop()


def _contestants() -> dict[str, Callable[[int], Awaitable[Took]]]:
    found: dict[str, Callable[[int], Awaitable[Took]]] = {
        RAW: raw,
        OURS: with_holdfast,
        "asyncio.TaskGroup": with_task_group,
    }
    if not absent("anyio"):
        found["anyio task group"] = with_anyio
    return found


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    points = [f"{n:,} tasks" for n in SIZES]
    total = Table(f"{TITLE}: total time, {variant['loop']}", "ms", points)
    stall = Table(
        f"{TITLE}: longest stall of the loop, {variant['loop']}", "ms", points, ratio=False
    )
    with asyncio.Runner(loop_factory=lambda: new_loop(variant["loop"])) as runner:
        for index, (count, turns) in enumerate(SIZES.items()):

            def part(done: float, index: int = index, count: int = count) -> None:
                tell((index + done) / len(SIZES), f"{count:,} tasks")

            took = runner.run(_duel(count, rounds(quick, turns), part))
            for table, which in ((total, 0), (stall, 1)):
                cells = {
                    name: Cell.of([pair[which] for pair in all_]) for name, all_ in took.items()
                }
                compare(table, points[index], cells)
    for point in points:
        total.goal(OURS, point, TOTAL_GOAL)
        # Of stalls the usual one counts, not the shortest of many runs.
        usual = stall.cell(OURS, point).median
        stall.checks.append(Check(f"{OURS}, {point}, median", Cell(usual, usual), STALL_GOAL, "ms"))
    return [total, stall]


async def _duel(count: int, turns: int, tell: Callable[[float], None]) -> dict[str, list[Took]]:
    contestants = _contestants()
    took: dict[str, list[Took]] = {name: [] for name in contestants}
    order, dice = list(contestants), random.Random(count)
    for turn in range(turns):
        dice.shuffle(order)
        for name in order:
            gc.collect()
            gc.disable()
            took[name].append(await contestants[name](count))
            gc.enable()
        tell((turn + 1) / turns)
    return took
