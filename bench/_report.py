"""Tables as text, as Markdown, and into the page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench._harness import Cell, Check, Row, Sheet, Table

__all__ = ["save", "summary", "text"]

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"

_SCALE: Final = {"us": 1e6, "ms": 1e3, "s": 1.0}


def text(table: Table | Sheet) -> str:
    """One table with its goals, as Markdown (which is plain enough to read as it is)."""
    grid = _words(table) if isinstance(table, Sheet) else _grid(table)
    parts = [f"### {table.title}", "", *grid]
    if table.checks:
        parts += ["", "| held to | measured (medians) | goal | |", "|---|---|---|---|"]
        parts += [_line(check) for check in table.checks]
    parts += [f"\n{note}" for note in table.notes]
    return "\n".join(parts) + "\n"


def _words(sheet: Sheet) -> list[str]:
    rule = "|---" * len(sheet.columns) + "|"
    return [_cells(sheet.columns), rule, *(_cells(row) for row in sheet.rows)]


def _cells(row: list[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _grid(table: Table) -> list[str]:
    how = "ratio of minima (of medians)" if table.ratio else "best (median)"
    lines = [
        f"| {how} | " + " | ".join(table.points) + " |",
        "|---" * (len(table.points) + 1) + "|",
    ]
    for index, row in enumerate(table.rows):
        shown = [_shown(table, row, index, point) for point in table.points]
        lines.append(f"| {row.name} | " + " | ".join(shown) + " |")
    return lines


def _shown(table: Table, row: Row, index: int, point: str) -> str:
    cell = row.cells.get(point)
    if cell is None:
        return ""
    if not table.ratio:
        return _value(cell, table.unit)
    if index == 0:
        return f"1 = {_value(cell, table.unit)}"
    ratio = cell.over(table.rows[0].cells[point])
    return f"{ratio.best:.2f} ({ratio.median:.2f})"


def _value(cell: Cell, unit: str) -> str:
    scale = _SCALE[unit]
    return f"{cell.best * scale:.3g} ({cell.median * scale:.3g}) {unit}"


def _line(check: Check) -> str:
    verdict = "ok" if check.ok else "**miss**"
    if check.unit == "x":
        shown, goal = f"{check.measured.best:.2f} ({check.measured.median:.2f})", f"{check.goal:g}"
    else:
        shown = _value(check.measured, check.unit)
        goal = f"{check.goal * _SCALE[check.unit]:g} {check.unit}"
    return f"| {check.what} | {shown} | <= {goal} | {verdict} |"


def summary(tables: Sequence[Table | Sheet]) -> str:
    """How many goals were met, and every miss."""
    checks = [(table.title, check) for table in tables for check in table.checks]
    missed = [(title, check) for title, check in checks if not check.ok]
    lines = [f"{len(checks) - len(missed)} of {len(checks)} goals met."]
    for title, check in missed:
        scale = _SCALE.get(check.unit, 1.0)
        measured, goal = check.measured.best * scale, check.goal * scale
        lines.append(f"  miss: {title}: {check.what}: {measured:.3g} against {goal:g} {check.unit}")
    return "\n".join(lines)


def save(page: Path, heading: str, tables: list[Table]) -> None:
    """Replace what is between the two marks of `page`.

    Raises:
        ValueError: the page lacks the marks.
    """
    old = page.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} needs the marks {BEGIN} and {END}")
    measured = "\n".join([heading, "", *map(text, tables)])
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}")
