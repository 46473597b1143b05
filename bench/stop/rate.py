"""Throughput of a short answer: bare uvicorn (httptools, uvloop) is 1.

All servers run the whole time, and take turns in shuffled rounds. Ours has everything on that is on
by itself: deadline, disconnect, identity, health.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from bench._harness import Cell, Row, Table, Tell
from bench.stop.load import Load
from bench.stop.process import clients, free_port, running
from bench.stop.servers import Ask, chosen, versions

__all__ = ["measure"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
CONNECTIONS: Final = 32
ROUNDS: Final = 10
SECONDS: Final = 3
GOAL: Final = 1 / 0.9
"""A request takes no more than that many times what it takes bare: 0.9 of the throughput."""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Table]:
    servers = chosen(variant.get("servers"))
    servers.sort(key=lambda server: server.name != "uvicorn")
    times: dict[str, list[float]] = {server.name: [] for server in servers}
    count = 3 if quick else ROUNDS
    dice = random.Random(1)
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for server in servers:
            ports[server.name] = free_port()
            stack.enter_context(running(server, Ask(ports[server.name])))
        for port in ports.values():
            _rate(port, 1)  # warm
        turns = [*ports]
        for index in range(count):
            dice.shuffle(turns)
            for place, name in enumerate(turns):
                tell((index + place / len(turns)) / count, name)
                times[name].append(1 / _rate(ports[name], SECONDS))
    table = Table(f"Hello world, {CONNECTIONS} connections: time per request", "us", ["time"])
    table.rows = [Row(name, {"time": Cell.of(values)}) for name, values in times.items()]
    if "holdfast" in times:
        table.goal("holdfast", "time", GOAL)
    how = "wrk" if shutil.which("wrk") else "the clients of this harness, which may be the brake"
    table.notes = [f"{versions(servers)}. By {how}; {count} rounds of {SECONDS} s."]
    yield table


def _rate(port: int, seconds: int) -> float:
    """Answers in a second."""
    if shutil.which("wrk"):
        command = [
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}",
            f"http://127.0.0.1:{port}/hello",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        assert found, done.stdout
        return float(found[1])
    with clients(Load(port, "/hello", clients=CONNECTIONS)) as crowd:
        crowd.wait_until_warm()
        begun = time.monotonic()
        time.sleep(seconds)
        calls: int = crowd.stop([])["calls"]
        return calls / (time.monotonic() - begun)
