"""What the quiet window costs, and what it saves.

Clients think for a second on average: at the stop nearly all of them are idle, and most will
send something within the next seconds. New connections go elsewhere soon after the signal, as they
do behind a load balancer. A longer window waits for more of those that are about to send.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, Final

from bench._harness import Cell, Check, Sheet, Tell
from bench.stop.cells import ABOVE, Situation, stop_once
from bench.stop.servers import SERVERS

__all__ = ["measure"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
WINDOWS: Final = (0.0, 0.25, 0.5, 1.0, 2.0)
IDLE: Final = Situation("/wait/5", 0.005, think=1.0)
AWAY: Final = 0.2


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    stops = variant.get("stops") or (2 if quick else 20)
    columns = [
        "quiet window, s",
        "lost",
        "late requests served",
        "exit s",
        "after the last answer, s",
    ]
    title = f"The quiet window: {stops} stops each, 50 clients that think for 1 s on average"
    sheet = Sheet(title, columns)
    for index, window in enumerate(WINDOWS):
        found: list[dict[str, Any]] = []
        for turn in range(stops):
            tell((index + turn / stops) / len(WINDOWS), f"{window} s")
            stop: dict[str, object] = {"quiet": window}
            one = stop_once(SERVERS["holdfast"], IDLE, seed=turn, away=AWAY, stop=stop)
            found.append({**one, "quiet": window})
        after = [one["after_last"] for one in found if one["after_last"] is not None]
        sheet.rows.append(
            [
                f"{window:g}",
                str(sum(one["lost"] for one in found)),
                str(sum(one["late_kept"] for one in found)),
                f"{statistics.median(one['exit'] for one in found):.2f}",
                f"{statistics.median(after):.2f} ({max(after):.2f})",
            ]
        )
        # The median is what is held to the goal; the longest is shown beside it.
        over = Cell(statistics.median(after), max(after)).less(Cell(window, window))
        what = f"window {window:g} s: from the last answer to the exit, beyond the window"
        sheet.checks.append(Check(f"{what} (longest)", over, ABOVE, "ms"))
        sheet.data += found
    sheet.notes = ["After the last answer: median (longest). Lost: of 50 connections in each stop."]
    yield sheet
