"""The short table for readers who want to know one thing: `python -m bench.stop.short FILE`.

FILE is what `make bench ARGS="--only stop.cells --json FILE"` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["short"]


def short(found: Sequence[dict[str, Any]]) -> str:
    """Requests lost of so many connections, one row for each server and one column for each cell.

    Args:
        found: the data of the table that `bench.stop.cells` made.
    """
    cells = list(dict.fromkeys(one["cell"] for one in found))
    names = list(dict.fromkeys(one["server"] for one in found))
    stops = max(_stops(found, name, cell) for name in names for cell in cells)
    clients = found[0]["clients"]
    lines = [
        f"| lost, {stops} stops x {clients} connections | " + " | ".join(cells) + " | exit s |"
    ]
    lines.append("|---" * (len(cells) + 2) + "|")
    for name in names:
        mine = [one for one in found if one["server"] == name]
        lost = [sum(one["lost"] for one in mine if one["cell"] == cell) for cell in cells]
        exits = sorted(one["exit"] for one in mine)
        words = [name, *(str(n) if n else "**0**" for n in lost), f"{exits[len(exits) // 2]:.1f}"]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _stops(found: Sequence[dict[str, Any]], name: str, cell: str) -> int:
    return sum(one["server"] == name and one["cell"] == cell for one in found)


def main(path: str) -> None:
    tables = json.loads(Path(path).read_text())["tables"]
    print(short(next(table["data"] for table in tables if "SIGTERM, 50" in table["title"])))


if __name__ == "__main__":
    main(*sys.argv[1:])
