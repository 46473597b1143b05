"""Figure 6: what `import holdfast` costs a process that starts.

Each sample is a process of its own; interpreters that import nothing run in between and are taken
off.
"""

from __future__ import annotations

import random
import subprocess
import sys
from time import perf_counter
from typing import Any, Final

from bench._harness import Cell, Check, Row, Table, Tell, absent

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Import"
VARIANTS: Final[list[dict[str, Any]]] = [{}]
RUNS: Final = 15
GOAL: Final = 0.015
OURS: Final = "import holdfast"
STATEMENTS: Final = {
    "bare": "pass",
    OURS: "import holdfast",
    "import holdfast; holdfast.timeout": "import holdfast; holdfast.timeout",
    "import asyncio": "import asyncio",
    "import anyio": "import anyio",
    "import httpx": "import httpx",
}


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    table = Table(TITLE, "ms", ["over a bare interpreter"], ratio=False)
    missing = absent("anyio", "httpx")
    wanted = {k: v for k, v in STATEMENTS.items() if k.removeprefix("import ") not in missing}
    samples: dict[str, list[float]] = {name: [] for name in wanted}
    order, dice = list(wanted), random.Random(RUNS)
    for index in range(RUNS + 1):
        dice.shuffle(order)
        for name in order:
            took = _start(wanted[name])
            if index:  # the first round fills the caches of the disk
                samples[name].append(took)
        tell(index / RUNS, "")
    cells = {name: Cell.of(values) for name, values in samples.items()}
    base = cells.pop("bare")
    table.rows = [Row(name, {table.points[0]: cell.less(base)}) for name, cell in cells.items()]
    median = cells[OURS].less(base).median
    table.checks.append(Check(f"{OURS}, median", Cell(median, median), GOAL, "ms"))
    loaded = float(_loads_asyncio())
    table.checks.append(Check("modules named asyncio after it", Cell(loaded, loaded), 0.0))
    table.notes = [f"absent: {name}" for name in missing]
    return [table]


def _start(statement: str) -> float:
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return perf_counter() - begun


def _loads_asyncio() -> bool:
    code = "import sys, holdfast; raise SystemExit('asyncio' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0
