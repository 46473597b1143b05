"""Figure 7: three processes in a row; how long after the edge's deadline does the leaf stop?

Edge, middle and leaf are served by `holdfast serve`. The leaf's handler sleeps for ever. Requests
come with a deadline, twenty at a time. What is measured is the end of each handler against the
deadline that the edge gave the request; before it is negative.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench._harness import Cell, Check, Row, Table, Tell

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Three hops: how long after the edge's deadline a handler ends"
VARIANTS: Final[list[dict[str, Any]]] = [{}]
REQUESTS: Final = 1_000
AT_ONCE: Final = 20
DEADLINE_MS: Final = 300
GOAL: Final = 0.050
HOPS: Final = ("leaf", "mid", "edge")
QUANTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    count = REQUESTS // 5 if quick else REQUESTS
    with _services() as ports:
        notes = asyncio.run(_load(ports, count, tell))
    due = notes["edge"]["due"]
    late = {
        hop: [at - due[path] for path, at in notes[hop]["ended"].items() if path in due]
        for hop in HOPS
    }
    unended = float(len(notes["leaf"]["due"]) - len(notes["leaf"]["ended"]))
    table = Table(f"{TITLE} ({count} requests)", "ms", list(QUANTILES), ratio=False)
    for hop in HOPS:
        cells = {name: _quantile(late[hop], share) for name, share in QUANTILES.items()}
        table.rows.append(Row(f"{hop} (of {len(late[hop])})", cells))
    p99 = table.rows[0].cells["p99"]
    table.checks.append(Check("leaf, p99 after the edge's deadline", p99, GOAL, "ms"))
    # A handler that ends long before the deadline would look good above and be just as wrong.
    early = Cell(-min(late["leaf"]), -min(late["leaf"]))
    table.checks.append(Check("leaf, earliest before the edge's deadline", early, GOAL, "ms"))
    table.checks.append(
        Check("requests that began at the leaf and never ended", Cell(unended, unended), 0.0)
    )
    return [table]


def _quantile(values: list[float], share: float) -> Cell:
    ordered = sorted(values)
    value = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return Cell(value, value)


async def _load(ports: dict[str, int], count: int, tell: Tell) -> dict[str, Any]:
    import httpx2

    done = 0
    places = asyncio.Semaphore(AT_ONCE)
    headers = {"x-envoy-expected-rq-timeout-ms": str(DEADLINE_MS)}
    async with httpx2.AsyncClient(timeout=30) as client:

        async def one(number: int) -> None:
            nonlocal done
            async with places:
                await client.get(f"http://127.0.0.1:{ports['edge']}/work/{number}", headers=headers)
            done += 1
            tell(done / count, f"{done} requests")

        await _ready(client, ports)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
        await asyncio.sleep(1.0)  # for those that are late
        notes = {
            hop: (await client.get(f"http://127.0.0.1:{port}/ended")).json()
            for hop, port in ports.items()
        }
    return notes


async def _ready(client: Any, ports: dict[str, int]) -> None:
    import httpx2

    for port in ports.values():
        for _ in range(200):
            try:
                await client.get(f"http://127.0.0.1:{port}/ready")
                break
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"the service on port {port} did not start")


@contextmanager
def _services() -> Iterator[dict[str, int]]:
    ports: dict[str, int] = {}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for hop in HOPS:
            ports[hop] = _free_port()
            below = HOPS[len(running) - 1]
            next_ = f"http://127.0.0.1:{ports[below]}" if running else ""
            running.append(_serve(hop, ports[hop], next_))
        yield ports
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serve(hop: str, port: int, next_: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "holdfast.apps.cli", "serve", f"bench._shop:{hop}"]
    command += ["--port", str(port), "--service", hop, "--no-access-log", "--no-admin"]
    environment = {**os.environ, "BENCH_NEXT": next_}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
