"""Random cancellations from four sides, more callers than the pool has places, on a real server.

In this same harness the plain client of httpx 0.28.1 / httpcore 1.0.9 does not get through 1,000
requests: afterwards all ten places are taken for ever, by connections that are CONNECTING for
nobody. Run it: `HOLDFAST_SOAK=1000 python tests/adapters/test_httpx_soak.py httpx plain`. A task of
its own for each call does not save it; that a cancelled task runs at once does (`runtime/delivery`,
rule 3). The client of httpx2 survives plain.

`HOLDFAST_SOAK` sets the number of requests.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import uvloop

import holdfast
from holdfast.adapters.httpx import instrument

REQUESTS = int(os.environ.get("HOLDFAST_SOAK", "4000"))
CALLERS = 20
PLACES = 10

SERVER = """
import asyncio, socket, uvicorn

async def app(scope, receive, send):
    if scope["type"] == "http":
        wait = float(scope["query_string"] or b"0")
        if wait:
            await asyncio.sleep(wait)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen(2000)
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run([sock])
"""


@pytest.fixture(scope="module", name="url")
def server() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def ours(work: Coroutine[Any, Any, None], after: float) -> None:
    async with holdfast.timeout(after):
        await work


async def native(work: Coroutine[Any, Any, None], after: float) -> None:
    async with asyncio.timeout(after):
        await work


async def anyios(work: Coroutine[Any, Any, None], after: float) -> None:
    with anyio.fail_after(after):
        await work


async def nested(work: Coroutine[Any, Any, None], after: float) -> None:
    async with asyncio.timeout(after + 0.0003), holdfast.timeout(after):
        await work


async def twice(work: Coroutine[Any, Any, None], after: float) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    loop.call_later(after, task.cancel)
    loop.call_later(after + 0.0003, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise TimeoutError from None


async def soak(lib: Any, http: Any, url: str, requests: int) -> Counter[str]:
    dice = random.Random(1)
    ends: Counter[str] = Counter()
    numbers = iter(range(requests))

    async def call(number: int) -> None:
        wait = dice.choice(("0", "0", "0.001"))
        reply = await http.get(f"{url}/{number}?{wait}")
        assert reply.text == f"/{number}", "a reply to another request"

    async def caller() -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in numbers:
            way = dice.choice((ours, native, anyios, nested, twice))
            # Mostly 0 to 4 ms; now and then enough for a reply, so that connections are reused.
            after = dice.random() * dice.choice((0.004, 0.004, 0.1))
            try:
                await way(call(number), after)
                ends["done"] += 1
            except TimeoutError:  # also one of ours that is the library's as well
                ends["given up"] += 1
            except lib.TransportError as exc:
                ends[f"failed: {type(exc).__name__}"] += 1
            assert task.cancelling() == 0

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return ends


async def settled() -> None:
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1 and not len(holdfast.tree()):
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"left behind: {asyncio.all_tasks()}, {holdfast.tree()}")


def sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except OSError:
            continue
    return found


async def whole(lib: Any, url: str, requests: int, plain: bool = False) -> None:
    gc.collect()  # what an earlier test has left for it is not to go meanwhile
    before = sockets()
    limits = lib.Limits(max_connections=PLACES)
    http = lib.AsyncClient(limits=limits, timeout=lib.Timeout(5, pool=2), trust_env=False)
    if not plain:
        instrument(http)
    async with http:
        ends = await soak(lib, http, url, requests)
        await settled()
        # Ten at once, each of them slow enough that none can use the place of another.
        async with asyncio.timeout(0.9), asyncio.TaskGroup() as group:
            tasks = [group.create_task(http.get(f"{url}/{i}?0.4")) for i in range(PLACES)]
        assert [task.result().text for task in tasks] == [f"/{i}" for i in range(PLACES)]
        assert sockets() - before <= PLACES
        assert ends["given up"] > 0
        assert ends["done"] > 0
        print(lib.__name__, dict(ends), holdfast.tree().counts)
    await asyncio.sleep(0.05)
    gc.collect()
    assert sockets() <= before
    await settled()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lib", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_the_pool_survives(lib: Any, url: str) -> None:
    asyncio.run(whole(lib, url, REQUESTS))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lib", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_the_pool_survives_on_uvloop(lib: Any, url: str) -> None:
    # Ends the process when a dial is cancelled in the turn in which uvloop makes a transport.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole(lib, url, REQUESTS // 4))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lib", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_the_pool_survives_for_long(lib: Any, url: str) -> None:
    asyncio.run(whole(lib, url, max(REQUESTS, 20_000)))


if __name__ == "__main__":
    which = {"httpx": httpx, "httpx2": httpx2}[sys.argv[1]]
    with contextmanager(server.__wrapped__)() as found:  # type: ignore[attr-defined]
        asyncio.run(whole(which, found, REQUESTS, sys.argv[2:] == ["plain"]))
