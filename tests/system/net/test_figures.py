"""What the figures of the network print is what was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bench._harness import Cell, Row, Sheet, Table
from bench.net.bad import SCENARIOS
from bench.net.cell import Left, Result
from bench.net.scenarios import shown
from bench.net.short import BEGIN, END, readme, replaced, whole


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result("c", "s"), "**>25**"),
        (Result("c", "s", 1.04, error="TimeoutError", exit=0.1), "1.04"),
        (Result("c", "s", 1.11, error="TimeoutError", exit=0.1), "**1.11**"),
        (Result("c", "s", 1.0, error="TimeoutError", exit=9.1), "**1.0 +9**"),
        (Result("c", "s", 1.0, error="TimeoutError"), "**1.0 +?**"),
        (Result("c", "s", 12.7, status=200, exit=0.1), "**ok 12.7**"),
        (Result("c", "s", 0.0, status=103, exit=0.1), "**ok 103 0.0**"),
        (
            Result("c", "s", 1.0, error="TimeoutError", exit=0.1, closed=Left({"tcp": 1})),
            "**1.0 fd**",
        ),
    ],
)
def test_a_cell_says_what_was_not_kept(result: Result, text: str) -> None:
    assert shown(result, 25) == text


def test_the_short_table_shows_ours_at_its_worst() -> None:
    def row(client: str, took: float) -> list[Result]:
        return [Result(client, name, took, error="TimeoutError", exit=0.1) for name in SCENARIOS]

    ours, other = row("holdfast httpx", 1.01), row("holdfast aiohttp", 1.0)
    other[0] = Result("holdfast aiohttp", "dns", error="", took=None)
    sheet = Sheet("Calls of one second, on 13 bad servers", [])
    sheet.data = [asdict(one) for one in [*ours, *other, *row("requests", 3.0)]]
    head, _, mine, theirs = readme([sheet]).splitlines()
    assert head.split(" | ")[1:3] == ["dns", "syn"]
    assert mine.split(" | ")[1:3] == ["**>25**", "1.01"]
    assert theirs.split(" | ")[:2] == ["| requests: timeout=1", "**3.0**"]


def test_tables_of_one_kind_become_one() -> None:
    tables: list[Table | Sheet] = []
    for name, best in (("httpx", 1.1), ("aiohttp", 1.5)):
        table = Table(f"One call: {name}", "us", ["call"])
        table.rows = [Row("plain", {"call": Cell(1, 1)}), Row("ours", {"call": Cell(best, best)})]
        table.goal("ours", "call", 1.15)
        tables.append(table)
    text = whole("Measured today.", tables)
    assert text.startswith("Measured today.\n")
    assert text.count("### One call\n") == 1
    assert "| ratio of minima (of medians) | httpx | aiohttp |" in text
    assert "| ours | 1.10 (1.10) | 1.50 (1.50) |" in text
    assert "| ours, aiohttp | 1.50 (1.50) | <= 1.15 | **miss** |" in text


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert replaced(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no marks\n")
    assert not replaced(page, "new")
    assert page.read_text() == "no marks\n"
