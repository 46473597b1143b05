"""SIGTERM in the middle of a load: what 50 keep-alive clients lose, in five situations."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bench._harness import Cell, Check, Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.load import Load
from bench.stop.process import clients, free_port, running
from bench.stop.servers import Ask, Server, chosen, stop_table, versions
from bench.stop.tally import LOST

__all__ = ["ABOVE", "CELLS", "FIVE", "Situation", "measure", "sheet", "stop_once"]

CLIENTS: Final = 50
QUIET: Final = 1.0
"""Our quiet window, unless it is set otherwise."""
ABOVE: Final = 0.1
"""Seconds that the exit may take beyond it."""
EXIT: Final = 45.0
"""Seconds after which a server that was told to stop is killed."""


@dataclass(frozen=True)
class Situation:
    """What the clients do. Times in seconds; `handler` is what a request takes by itself."""

    path: str
    handler: float
    view: float = 0.005
    think: float = 0.0
    eager: bool = False


CELLS: Final[dict[str, Situation]] = {
    "tight": Situation("/wait/200", 0.2, view=0.0),
    "rtt": Situation("/wait/200", 0.2),
    "think": Situation("/wait/200", 0.2, think=0.1),
    "hdr": Situation("/head/300", 0.3),
    "fast": Situation("/wait/5", 0.005),
    "eager": Situation("/wait/200", 0.2, eager=True),
}
"""tight: the next request is sent as soon as the last one ended. rtt: the same, but a client's view
of its connection is 5 ms old when its bytes arrive. think: 100 ms of thought on average between
them. hdr: the head of the answer comes at once, its body 0.3 s later. fast: the handler takes 5 ms.
These are the five. eager, only when asked for: as rtt, but a client that has read an answer does
not look again, so that it misses even a close that came along with the answer.
"""
FIVE: Final = ("tight", "rtt", "think", "hdr", "fast")

VARIANTS: Final[list[dict[str, Any]]] = [{}]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    """Each server in each situation, in turns."""
    stops = variant.get("stops") or (2 if quick else 20)
    cells = variant.get("cells") or FIVE
    servers = chosen(variant.get("servers"))
    settings = stop_table(variant)
    attempts = Attempts()
    turns = [(cell, server) for _ in range(stops) for cell in cells for server in servers]
    for index, (cell, server) in enumerate(turns):
        tell(index / len(turns), f"{server.name}, {cell}")
        attempts(server, partial(stop_once, server, cell, seed=index, stop=settings))
    result = sheet(servers, cells, attempts.found)
    if settings:
        result.notes.append(f"holdfast with {settings}.")
    result.notes += attempts.notes()
    yield result


def stop_once(
    server: Server,
    cell: str | Situation,
    *,
    count: int = CLIENTS,
    seed: int = 1,
    away: float | None = None,
    stop: dict[str, object] | None = None,
) -> dict[str, Any]:
    """One stop under load, see `bench.stop.tally.tally`, and how the process ended.

    Args:
        away: seconds after the signal at which new connections go elsewhere, as behind a load
            balancer. None: they never do, which is harder.
    """
    what = CELLS[cell] if isinstance(cell, str) else cell
    ask = Ask(free_port(), stop=stop or {})
    load = Load(
        ask.port,
        what.path,
        clients=count,
        view=what.view,
        think=what.think,
        eager=what.eager,
        spread=max(what.handler, 0.1),
        seed=seed,
    )
    with running(server, ask) as process, clients(load) as crowd:
        crowd.wait_until_warm()
        time.sleep(random.Random(seed).uniform(0.2, 0.6))
        told = process.signal()
        if away is not None:
            crowd.away(away)
        code = process.wait(EXIT)
        orphans = len(process.survivors())
        found = crowd.stop([told])
        ended = process.ended or told + EXIT
        found |= {
            "server": server.name,
            "cell": cell if isinstance(cell, str) else what.path,
            "clients": count,
            "exit": ended - told,
            "rc": code,
            "orphans": orphans,
            "hook": process.noted("shutdown"),
        }
        for name, since in (("after_in_flight", "last_in_flight"), ("after_last", "last_answer")):
            found[name] = ended - found[since] if found[since] else None
    return found


def sheet(
    servers: Sequence[Server], cells: Sequence[str], found: Sequence[dict[str, Any]]
) -> Sheet:
    """One row for each server."""
    stops = max(1, len(found) // max(1, len(servers) * len(cells)))
    columns = ["server", *cells, "in flight", "refused", "`close` announced",
               "late served", "exit s", "after the last answer, s", "rc"]  # fmt: skip
    title = f"Requests lost at SIGTERM, {CLIENTS} keep-alive clients, {stops} stops in each column"
    result = Sheet(title, columns, data=list(found))
    for server in servers:
        mine = [one for one in found if one["server"] == server.name]
        result.rows.append(_row(server, cells, mine))
        if server.name == "holdfast":
            lost = float(sum(one["lost"] for one in mine))
            result.checks.append(Check(f"holdfast: lost in {len(mine)} stops", Cell(lost, lost), 0))
            after = [one["after_last"] for one in mine if one["after_last"] is not None]
            if after:
                cell = Cell(statistics.median(after), max(after))
                what = "holdfast: from the last answer to the exit (longest)"
                result.checks.append(Check(what, cell, QUIET + ABOVE, "s"))
    result.notes = [
        f"{versions(servers)}.",
        "Lost: " + "; ".join(f"{name}: {what}" for name, what in LOST.items()) + ".",
        "n: lost on a connection that was new, all others on one that was kept alive. Columns after"
        " the situations are sums or medians over them. Late served: requests sent after the signal"
        " and answered, on kept and on new connections. A refused connect is not lost.",
    ]
    return result


def _row(server: Server, cells: Sequence[str], mine: Sequence[dict[str, Any]]) -> list[str]:
    def total(key: str, among: Sequence[dict[str, Any]] = mine) -> int:
        return sum(one[key] for one in among)

    row = [server.name]
    for cell in cells:
        here = [one for one in mine if one["cell"] == cell]
        kept, new = total("lost_kept", here), total("lost_new", here)
        row.append((f"**{kept}**" if kept else "0") + (f" + **{new}n**" if new else ""))
    row.append(str(total("lost_in_flight")))
    row.append(str(total("refused")))
    row.append(f"{total('announced')}/{total('clients')}")
    row.append(f"{total('late_kept')} / {total('late_new')}")
    for key in ("exit", "after_last"):
        values = [one[key] for one in mine if one[key] is not None]
        row.append(f"{statistics.median(values):.2f}" if values else "")
    row.append(", ".join(sorted({str(one["rc"]) for one in mine})))
    return row
