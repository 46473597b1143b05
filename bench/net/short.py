"""For the README and the page of figures: `python -m bench.net.short [--write] FILE`.

FILE is what `python -m bench net --json FILE` wrote. With `--write` they replace what is between
the marks `<!-- net: begin -->` and `<!-- net: end -->`, in whichever of the two has them; otherwise
they are printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench._harness import Check, Row, Sheet, Table, revived
from bench._report import text
from bench.net.arena import CAP, CLIENTS
from bench.net.bad import SCENARIOS
from bench.net.cell import Left, Result
from bench.net.scenarios import QUICK, shown

__all__ = ["readme", "whole"]

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = ROOT / "README.md"
PAGE: Final = ROOT / "docs" / "explanation" / "network-figures.md"
BEGIN: Final = "<!-- net: begin -->"
END: Final = "<!-- net: end -->"
BRIEF: Final = ("requests", "httpx, sync", "httpx", "httpx2, outer", "aiohttp", "aiohttp, phases")
"""The plain clients that the README shows."""


def readme(tables: Sequence[Table | Sheet], cap: float = CAP) -> str:
    """Bad servers in columns: one row for all of ours, at its worst, and the plain clients."""
    data = next(t.data for t in tables if isinstance(t, Sheet) and "bad servers" in t.title)
    found = {(one["client"], one["scenario"]): _result(one) for one in data}
    names = list(dict.fromkeys(one["client"] for one in data))
    ours = [name for name in names if CLIENTS[name].ours]
    lines = ["| seconds | " + " | ".join(SCENARIOS) + " |", "|---" * (len(SCENARIOS) + 1) + "|"]
    worst = [max((found[name, one] for name in ours), key=_took) for one in SCENARIOS]
    lines.append(_row("any client in `holdfast.timeout(1)`, the slowest", worst, cap))
    for name in names:
        if name in BRIEF:
            mine = [found[name, one] for one in SCENARIOS]
            lines.append(_row(f"{name}: {CLIENTS[name].how}", mine, cap))
    return "\n".join(lines)


def _result(one: dict[str, Any]) -> Result:
    return Result(**{**one, "called": Left(**one["called"]), "closed": Left(**one["closed"])})


def _took(one: Result) -> float:
    return CAP if one.took is None else one.took


def _row(name: str, results: Sequence[Result], cap: float) -> str:
    return "| " + " | ".join([name, *(shown(one, cap) for one in results)]) + " |"


def whole(heading: str, tables: Sequence[Table | Sheet]) -> str:
    """Everything that was measured, tables of the same kind in one."""
    parts = [heading, ""]
    merged: dict[str, Table | Sheet] = {}
    for table in tables:
        title, _, point = table.title.partition(": ")
        known = merged.setdefault(title, _emptied(table, title))
        if isinstance(table, Sheet) and isinstance(known, Sheet):
            known.rows += table.rows
            known.checks += table.checks
            known.notes += [note for note in table.notes if note not in known.notes]
        elif isinstance(table, Table) and isinstance(known, Table):
            _turned(known, table, point)
    parts += [text(table) for table in merged.values()]
    return "\n".join(parts)


def _emptied(table: Table | Sheet, title: str) -> Table | Sheet:
    if isinstance(table, Sheet):
        return Sheet(title, table.columns)
    return Table(title, table.unit, [], ratio=table.ratio)


def _turned(known: Table, table: Table, point: str) -> None:
    """Add the only column of `table`, under the name of what it was about."""
    point = point or table.points[0]
    known.points.append(point)
    for row in table.rows:
        there = next((one for one in known.rows if one.name == row.name), None)
        if there is None:
            there = Row(row.name, {})
            known.rows.append(there)
        there.cells[point] = row.cells[table.points[0]]
    for check in table.checks:
        what = check.what.replace(f", {table.points[0]}", f", {point}")
        known.checks.append(Check(what, check.measured, check.goal, check.unit))
    known.notes += [note for note in table.notes if note not in known.notes]


def replaced(page: Path, between: str) -> bool:
    """Replace what is between the marks of `page`; whether it has them."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        page.write_text(f"{before}{BEGIN}\n{between}\n{END}{after}")
    return bool(begin and end)


def main(*options: str) -> None:
    found = json.loads(Path(options[-1]).read_text())
    heading = found["heading"]
    tables = [revived(table) for table in found["tables"]]
    brief = readme(tables, QUICK if "a quick run" in heading else CAP)
    full = whole(heading.replace("make bench", "python -m bench net"), tables)
    if "--write" not in options:
        print(brief, full, sep="\n\n")
        return
    for page, between in ((README, brief), (PAGE, full)):
        done = "written" if replaced(page, between) else f"has no marks {BEGIN} {END}"
        print(f"{page.relative_to(ROOT)}: {done}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
