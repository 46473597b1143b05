"""Figure 5: what the carrier of a client adds to one call.

Twice: in process, where a `MockTransport` answers, so that the call goes through all of httpx but
the network; and over loopback, with a server of a process of its own that does as little as a
server can, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "One call of a client"
MEMORY: Final = "in process"
LOOPBACK: Final = "over loopback"
VARIANTS: Final = [
    {"library": name, "way": way}
    for name in ("httpx", "httpx2")
    for way in (MEMORY, LOOPBACK)
    if not absent(name)
]
PLAIN: Final = "plain"
OURS: Final = "instrumented, under a deadline"
URL: Final = "http://orders.local/42"
GOAL: Final = 1.15
BATCH: Final = 8

SERVER: Final = """
import asyncio
REPLY = b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok"
class Peer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if data.endswith(b"\\r\\n\\r\\n"):
            self.transport.write(REPLY)
async def main():
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    api, way = import_module(variant["library"]), variant["way"]
    table = Table(f"{TITLE} {way}: {variant['library']}", "us", ["call"])
    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner, _url(way) as url:
        cells = runner.run(duel(_contestants(api, way, url), rounds(quick, 80), tell))
    compare(table, "call", {name: cell.per(BATCH) for name, cell in cells.items()})
    table.goal(OURS, "call", GOAL)
    return [table]


@contextmanager
def _url(way: str) -> Iterator[str]:
    if way == MEMORY:
        yield URL
        return
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/42"
        finally:
            server.kill()


def _contestants(api: Any, way: str, url: str) -> list[Case]:
    from holdfast.adapters.httpx import instrument

    async def answer(request: Any) -> Any:
        return api.Response(200, content=b"ok")

    def client() -> Any:
        if way == MEMORY:
            return api.AsyncClient(transport=api.MockTransport(answer))
        return api.AsyncClient(trust_env=False)

    plain, ours, unbound, timed = client(), instrument(client()), instrument(client()), client()

    async def run_plain(batches: int) -> None:
        for _ in range(batches * BATCH):
            await plain.get(url)

    async def run_ours(batches: int) -> None:
        for _ in range(batches):
            async with holdfast.timeout(30):
                for _ in range(BATCH):
                    await ours.get(url)

    async def run_unbound(batches: int) -> None:
        for _ in range(batches * BATCH):
            await unbound.get(url)

    async def run_timed(batches: int) -> None:
        for _ in range(batches * BATCH):
            async with asyncio.timeout(30):
                await timed.get(url, headers={"x-envoy-expected-rq-timeout-ms": "30000"})

    return [
        Case(PLAIN, run_plain),
        Case(OURS, run_ours),
        Case("instrumented, no deadline", run_unbound),
        Case("plain, asyncio.timeout and a header", run_timed),
    ]
