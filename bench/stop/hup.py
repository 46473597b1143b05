"""Ten HUPs to a master with two workers under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from bench._harness import Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.load import Load
from bench.stop.process import Running, clients, free_port, running
from bench.stop.roll import LOAD, lasting, result
from bench.stop.servers import Ask, Server, chosen, stop_table

__all__ = ["hup", "measure"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
TIMES: Final = 10
ROLLED: Final = 45.0
"""Seconds that one roll gets."""
CALM: Final = 0.3
"""Seconds between two rolls."""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    servers = chosen(variant.get("servers"), "workers")
    times = 3 if quick else TIMES
    settings = stop_table(variant)
    attempts = Attempts()
    for index, server in enumerate(servers):

        def part(done: float, what: str, index: int = index) -> None:
            tell((index + done) / len(servers), what)

        attempts(server, partial(hup, server, times, part, settings))
    sheet = result(f"{times} HUPs to a master with 2 workers", servers, attempts.found)
    sheet.notes += attempts.notes()
    yield sheet


def hup(server: Server, times: int, tell: Tell, stop: dict[str, object]) -> dict[str, Any]:
    """What 40 clients lose, see `bench.stop.tally.tally`, and the seconds of each roll."""
    port = free_port()
    told: list[float] = []
    rolls: list[float] = []
    stuck = False
    with (
        running(server, Ask(port, workers=2, stop=stop)) as master,
        clients(Load(port, **LOAD)) as crowd,
    ):
        crowd.wait_until_warm()
        time.sleep(1.0)  # the second worker may be on its way
        for index in range(times):
            tell(index / times, f"{server.name}, HUP {index + 1}")
            before = lasting(master)
            told.append(master.signal(signal.SIGHUP))
            stuck |= not _rolled(master, before)
            rolls.append(time.monotonic() - told[-1])
            time.sleep(CALM)
            if stuck:
                break
        found = crowd.stop(told)
    return {"server": server.name, "times": times, "exits": rolls, "stuck": stuck, **found}


def _rolled(master: Running, before: set[int]) -> bool:
    """Wait until other workers have taken the place of all; whether they have."""
    limit = time.monotonic() + ROLLED
    while time.monotonic() < limit and master.wait(0) is None:
        now = lasting(master)
        if len(now) >= len(before) and not now & before:
            return True
        time.sleep(0.05)
    return False
