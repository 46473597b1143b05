"""Figure 2: to enter and leave one scope while many others are open.

Every population lives on a loop of its own and the loops take turns, so that a disturbance of the
machine hits all columns alike. Each open scope is in a task of its own, under a limit of its own;
the same number of plain loop timers is armed beside them for the peers that use the loop's heap.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import holdfast
from bench._harness import (
    LOOPS,
    Case,
    Cell,
    Check,
    Table,
    Tell,
    compare,
    new_loop,
    rounds,
    sample,
    size,
)
from bench.scope import BATCH, LIMIT, OURS, SECONDS, flat, nested

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Enter and leave one scope among many"
VARIANTS: Final = [{"loop": loop} for loop in LOOPS]
CROWDS: Final = (1, 100, 10_000, 100_000)
GOAL: Final = 1.3

T = TypeVar("T")


class Crowd:
    """One loop with `count` scopes open in tasks, and as many loop timers."""

    def __init__(self, kind: str, count: int) -> None:
        self.count = count
        self.loop = new_loop(kind)
        self.tasks: list[asyncio.Task[None]] = []
        self.sizes: dict[str, int] = {}
        self.cases: list[Case] = []
        self.run(self._gather())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def _gather(self) -> None:
        dice = random.Random(self.count)
        opened = 0

        async def hold(seconds: float) -> None:
            nonlocal opened
            async with holdfast.timeout(seconds):
                opened += 1
                await asyncio.Event().wait()

        for _ in range(self.count):
            seconds = dice.uniform(600, 1200)
            self.tasks.append(self.loop.create_task(hold(seconds)))
            self.loop.call_at(self.loop.time() + seconds, _nothing)
        while opened < self.count:  # noqa: ASYNC110 - once, before anything is measured
            await asyncio.sleep(0)
        self.cases = _contestants(self.loop)
        self.sizes = {case.name: await size(case) for case in self.cases}

    async def measure(self, case: Case) -> float:
        return await sample(case, self.sizes[case.name])


def _contestants(loop: asyncio.AbstractEventLoop) -> list[Case]:
    handles = {"call_at": loop.call_at, "time": loop.time, "nothing": _nothing}
    arm = f"h{{level}} = call_at(time() + {SECONDS}, nothing)"
    return [
        Case(LIMIT, flat(handles, arm, "h{level}.cancel()", 1)),
        Case("empty", nested({}, "if True:", 1)),
        Case(OURS, nested({"open": holdfast.timeout}, f"async with open({SECONDS}):", 1)),
        Case(
            "asyncio.timeout", nested({"open": asyncio.timeout}, f"async with open({SECONDS}):", 1)
        ),
    ]


def _nothing() -> None: ...


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    title = f"{TITLE}: {variant['loop']}"
    table = Table(title, "us", [f"{count:,} open" for count in CROWDS], ratio=False)
    crowds = []
    for count in CROWDS:
        tell(0.0, f"opening {count:,}")
        crowds.append(Crowd(variant["loop"], count))
    gc.collect()
    gc.freeze()
    for crowd, cells in zip(crowds, _turns(crowds, rounds(quick, 40), tell), strict=True):
        empty = cells.pop("empty")
        cells = {name: cell.less(empty).per(BATCH) for name, cell in cells.items()}
        compare(table, f"{crowd.count:,} open", cells)
    own = next(row for row in table.rows if row.name == OURS).cells
    for point in table.points[1:]:
        grown = own[point].over(own[table.points[0]])
        table.checks.append(Check(f"{OURS}, {point}, against 1 open", grown, GOAL))
    return [table]


def _turns(crowds: list[Crowd], count: int, tell: Tell) -> list[dict[str, Cell]]:
    samples: list[dict[str, list[float]]] = [{c.name: [] for c in crowd.cases} for crowd in crowds]
    turns = [(index, case) for index, crowd in enumerate(crowds) for case in crowd.cases]
    dice = random.Random(count)
    for done in range(count):
        dice.shuffle(turns)
        gc.collect()
        for index, case in turns:
            samples[index][case.name].append(crowds[index].run(crowds[index].measure(case)))
        tell((done + 1) / count, "")
    return [{name: Cell.of(values) for name, values in each.items()} for each in samples]
