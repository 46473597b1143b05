"""How every figure is measured and what it reports.

Two shared cores are noisy, so contestants never run one after the other: in each round all of them
run once, in shuffled order, for about the same time. The collector is off while a sample is taken
and runs between rounds. The minimum of all rounds is the cost without disturbance; the median is
printed beside it and tells how disturbed the run was.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Final

__all__ = [
    "LOOPS",
    "Case",
    "Cell",
    "Check",
    "Row",
    "Sheet",
    "Table",
    "Tell",
    "absent",
    "compare",
    "duel",
    "new_loop",
    "revived",
    "rounds",
    "sample",
    "size",
]

LOOPS: Final = tuple(name for name in ("asyncio", "uvloop") if find_spec(name))
"""The event loops that are installed."""

Tell = Callable[[float, str], None]
"""Reports progress: the fraction that is done, and what runs now."""

_SAMPLE: Final = 0.005
_SEED: Final = 20_240


@dataclass(frozen=True)
class Case:
    """One contestant: `run(n)` does its work `n` times."""

    name: str
    run: Callable[[int], Awaitable[object]]


@dataclass(frozen=True)
class Cell:
    """One measured value: the best and the median of all rounds."""

    best: float
    median: float

    @staticmethod
    def of(samples: Sequence[float]) -> Cell:
        return Cell(min(samples), statistics.median(samples))

    def less(self, other: Cell) -> Cell:
        """This without the cost of `other`."""
        return Cell(self.best - other.best, self.median - other.median)

    def per(self, count: float) -> Cell:
        return Cell(self.best / count, self.median / count)

    def over(self, base: Cell) -> Cell:
        """Ratio of minima and of medians."""
        return Cell(self.best / base.best, self.median / base.median)


@dataclass(frozen=True)
class Row:
    """One contestant at every point."""

    name: str
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Check:
    """A goal and what was measured. The ratio of minima decides."""

    what: str
    measured: Cell
    goal: float
    unit: str = "x"

    @property
    def ok(self) -> bool:
        return self.measured.best <= self.goal


@dataclass
class Table:
    """What one variant of a figure measured.

    Attributes:
        title: what was measured, and under which conditions.
        unit: of the values: "us", "ms" or "s". Values are kept in seconds.
        points: the columns.
        rows: the contestants, the base first.
        ratio: whether rows are shown as ratios to the first one.
        checks: the goals.
        notes: what a reader must know, among it which peers are absent.
    """

    title: str
    unit: str
    points: list[str]
    rows: list[Row] = field(default_factory=list[Row])
    ratio: bool = True
    checks: list[Check] = field(default_factory=list[Check])
    notes: list[str] = field(default_factory=list[str])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Table:
        rows = [Row(r["name"], {p: Cell(**c) for p, c in r["cells"].items()}) for r in data["rows"]]
        checks = [Check(**{**c, "measured": Cell(**c["measured"])}) for c in data["checks"]]
        return Table(**{**data, "rows": rows, "checks": checks})

    def cell(self, name: str, point: str) -> Cell:
        return next(row for row in self.rows if row.name == name).cells[point]

    def goal(self, name: str, point: str, goal: float) -> None:
        """Hold the row `name` at `point` to `goal` times the first row."""
        ratio = self.cell(name, point).over(self.rows[0].cells[point])
        self.checks.append(Check(f"{name}, {point}", ratio, goal))


@dataclass
class Sheet:
    """Words and counts, which have neither a best nor a ratio.

    Attributes:
        columns: their heads, the first is that of the names.
        data: what the rows were made from, for programs.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list[list[str]])
    checks: list[Check] = field(default_factory=list[Check])
    notes: list[str] = field(default_factory=list[str])
    data: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def revived(data: dict[str, Any]) -> Table | Sheet:
    """What `as_dict` was made from."""
    if "columns" not in data:
        return Table.from_dict(data)
    checks = [Check(**{**c, "measured": Cell(**c["measured"])}) for c in data["checks"]]
    return Sheet(**{**data, "checks": checks})


def rounds(quick: bool, full: int) -> int:
    """Number of rounds: a quarter of them, and at least three, when it must be quick."""
    return max(3, full // 4) if quick else full


def absent(*modules: str) -> list[str]:
    """Those of the optional peers that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop of the named kind: `asyncio` or `uvloop`."""
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


async def duel(cases: Sequence[Case], count: int, tell: Tell, what: str = "") -> dict[str, Cell]:
    """Seconds per unit of work of every case, in `count` shuffled rounds after a warm-up."""
    sizes = {case.name: await size(case) for case in cases}
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    order, dice = list(cases), random.Random(_SEED)
    for index in range(count):
        dice.shuffle(order)
        gc.collect()
        for case in order:
            samples[case.name].append(await sample(case, sizes[case.name]))
        tell((index + 1) / count, what)
    return {name: Cell.of(values) for name, values in samples.items()}


async def _timed(case: Case, n: int) -> float:
    gc.disable()
    try:
        begun = perf_counter()
        await case.run(n)
        return perf_counter() - begun
    finally:
        gc.enable()


async def sample(case: Case, n: int) -> float:
    """Seconds per unit of one sample of `n` units."""
    return await _timed(case, n) / n


async def size(case: Case) -> int:
    """How many units make one sample. To find out is the warm-up as well."""
    n = 1
    while (spent := await _timed(case, n)) < _SAMPLE / 2:
        n *= 2
    return max(1, round(n * _SAMPLE / spent))


def compare(table: Table, point: str, cells: dict[str, Cell]) -> None:
    """Add the column `point` to `table`."""
    known = {row.name: row for row in table.rows}
    for name, cell in cells.items():
        if name in known:
            known[name].cells[point] = cell
        else:
            table.rows.append(Row(name, {point: cell}))
