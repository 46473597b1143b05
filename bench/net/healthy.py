"""What the carrier of each client adds to a call that nothing is wrong with, over loopback.

The connection is kept alive, so this is the part that every call pays: headers, phases, bounds. The
server is a process of its own that does as little as a server can. Clients that block run in a
thread of their own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds
from bench.client import SERVER

__all__ = ["VARIANTS", "measure"]

LIMIT: Final = 30.0
BATCH: Final = 8
GOAL: Final = 1.15
PLAIN: Final = "plain"
OURS: Final = "instrumented, under a deadline"
UNBOUND: Final = "instrumented, no deadline"
LIBRARIES: Final = {
    "httpx": "httpx",
    "httpx2": "httpx2",
    "httpx, sync": "httpx",
    "httpx2, sync": "httpx2",
    "aiohttp": "aiohttp",
    "requests": "requests",
    "urllib3": "urllib3",
}
VARIANTS: Final[list[dict[str, Any]]] = [
    {"client": name, "module": module} for name, module in LIBRARIES.items() if not absent(module)
]

Get = Callable[[], Any]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    name = variant["client"]
    table = Table(f"One call, kept alive, over loopback: {name}", "us", ["call"])
    count = rounds(quick, 60)
    with served() as url, asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        cells = runner.run(_measured(name, url, count, tell))
    compare(table, "call", {case: cell.per(BATCH) for case, cell in cells.items()})
    table.goal(OURS, "call", GOAL)
    return [table]


@contextmanager
def served() -> Iterator[str]:
    """The address of a server that answers at once."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/42"
        finally:
            server.kill()


async def _measured(name: str, url: str, count: int, tell: Tell) -> Any:
    if name in BLOCKING:
        make = BLOCKING[name]
        cases = [
            Case(PLAIN, _in_thread(make(url, False))),
            Case(OURS, _in_thread(make(url, True), bound=True)),
            Case(UNBOUND, _in_thread(make(url, True))),
        ]
    else:
        start = ON_LOOP[name]
        cases = [
            Case(PLAIN, _on_loop(start(url, False))),
            Case(OURS, _on_loop(start(url, True), bound=True)),
            Case(UNBOUND, _on_loop(start(url, True))),
        ]
    return await duel(cases, count, tell, name)


def _on_loop(get: Get, bound: bool = False) -> Callable[[int], Awaitable[object]]:
    async def run(batches: int) -> None:
        for _ in range(batches):
            async with holdfast.timeout(LIMIT):
                for _ in range(BATCH):
                    await get()

    async def run_plain(batches: int) -> None:
        for _ in range(batches * BATCH):
            await get()

    return run if bound else run_plain


def _in_thread(get: Get, bound: bool = False) -> Callable[[int], Awaitable[object]]:
    def work(batches: int) -> None:
        for _ in range(batches):
            if bound:
                with holdfast.timeout(LIMIT):
                    for _ in range(BATCH):
                        get()
            else:
                for _ in range(BATCH):
                    get()

    async def run(batches: int) -> None:
        await asyncio.get_running_loop().run_in_executor(None, work, batches)

    return run


# -- clients -----------------------------------------------------------------------------------


def _httpx(library: str, kind: str) -> Callable[[str, bool], Get]:
    def make(url: str, ours: bool) -> Get:
        from holdfast.adapters.httpx import instrument

        client = getattr(__import__(library), kind)(trust_env=False)
        if ours:
            instrument(client)
        return lambda: client.get(url)

    return make


def _aiohttp(url: str, ours: bool) -> Get:
    import aiohttp

    from holdfast.adapters.aiohttp import instrument

    session = aiohttp.ClientSession()
    if ours:
        instrument(session)

    async def get() -> bytes:
        async with session.get(url) as answer:
            return await answer.read()

    return get


def _requests(url: str, ours: bool) -> Get:
    import requests

    from holdfast.adapters.requests import instrument

    session = requests.Session()
    session.trust_env = False
    if ours:
        instrument(session)
    return lambda: session.get(url)


def _urllib3(url: str, ours: bool) -> Get:
    import urllib3

    from holdfast.adapters.requests import instrument

    manager = urllib3.PoolManager()
    if ours:
        instrument(manager)
    return lambda: manager.request("GET", url)


ON_LOOP: Final[dict[str, Callable[[str, bool], Get]]] = {
    "httpx": _httpx("httpx", "AsyncClient"),
    "httpx2": _httpx("httpx2", "AsyncClient"),
    "aiohttp": _aiohttp,
}
BLOCKING: Final[dict[str, Callable[[str, bool], Get]]] = {
    "httpx, sync": _httpx("httpx", "Client"),
    "httpx2, sync": _httpx("httpx2", "Client"),
    "requests": _requests,
    "urllib3": _urllib3,
}
