"""Figure 5: what the carrier of a client adds to one call.

The call goes through all of httpx but the network: a `MockTransport` answers in process.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "One call of a client"
VARIANTS: Final = [{"library": name} for name in ("httpx", "httpx2") if not absent(name)]
PLAIN: Final = "plain"
OURS: Final = "instrumented, under a deadline"
URL: Final = "http://orders.local/42"
GOAL: Final = 1.15
BATCH: Final = 8


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    table = Table(f"{TITLE}: {variant['library']}", "us", ["call"])
    api = import_module(variant["library"])
    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        cells = runner.run(duel(_contestants(api), rounds(quick, 80), tell))
    compare(table, "call", {name: cell.per(BATCH) for name, cell in cells.items()})
    table.goal(OURS, "call", GOAL)
    return [table]


def _contestants(api: Any) -> list[Case]:
    from holdfast.adapters.httpx import instrument

    async def answer(request: Any) -> Any:
        return api.Response(200, content=b"ok")

    def client() -> Any:
        return api.AsyncClient(transport=api.MockTransport(answer))

    plain, ours, unbound, timed = client(), instrument(client()), instrument(client()), client()

    async def run_plain(batches: int) -> None:
        for _ in range(batches * BATCH):
            await plain.get(URL)

    async def run_ours(batches: int) -> None:
        for _ in range(batches):
            async with holdfast.timeout(30):
                for _ in range(BATCH):
                    await ours.get(URL)

    async def run_unbound(batches: int) -> None:
        for _ in range(batches * BATCH):
            await unbound.get(URL)

    async def run_timed(batches: int) -> None:
        for _ in range(batches * BATCH):
            async with asyncio.timeout(30):
                await timed.get(URL, headers={"x-envoy-expected-rq-timeout-ms": "30000"})

    return [
        Case(PLAIN, run_plain),
        Case(OURS, run_ours),
        Case("instrumented, no deadline", run_unbound),
        Case("plain, asyncio.timeout and a header", run_timed),
    ]
