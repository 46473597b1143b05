"""10,000 connections, opened over TLS and cancelled at random points; then all is as it was.

The points are spread over twice the time that a call takes by itself, so that about half of them
strike while it is under way: in the look-up, the connect, the handshake, the request. Clients that
block cannot be cancelled; each gets such a limit instead.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import holdfast
from bench._harness import Cell, Check, Sheet, Tell, absent, new_loop
from bench.net.cell import Counts, counted

__all__ = ["CLIENTS", "VARIANTS", "churned", "measure"]

TOTAL: Final = 10_000
AT_ONCE: Final = 64
THREADS: Final = 16
SEED: Final = 26
SETTLE: Final = 5.0
"""Seconds that the peer gets to see that everybody has gone."""
CLIENTS: Final = {
    "streams": "ssl",
    "streams, uvloop": "uvloop",
    "httpx2": "httpx2",
    "httpx2, uvloop": "httpx2",
    "aiohttp": "aiohttp",
    "aiohttp, uvloop": "aiohttp",
    "httpx2, sync": "httpx2",
    "requests": "requests",
}
VARIANTS: Final[list[dict[str, Any]]] = [
    {"client": name} for name, module in CLIENTS.items() if not absent(module)
]
COLUMNS: Final = [
    "client", "calls", "answered", "cancelled", "other", "s",
    "tcp left", "descriptors left", "threads left", "open at the peer",
]  # fmt: skip

Once = Callable[[], Any]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    name = variant["client"]
    row = churned(name, TOTAL // 10 if quick else TOTAL, tell)
    sheet = Sheet("Connections opened and cancelled at random points", COLUMNS)
    sheet.rows.append([_text(row[column]) for column in COLUMNS])
    sheet.data.append(row)
    left = row["tcp left"] + row["threads left"] + row["open at the peer"]
    for what, count in (("ended otherwise", sum(row["other"].values())), ("things left", left)):
        sheet.checks.append(Check(f"{name}: {what}", Cell(count, count), 0.0))
    yield sheet


def churned(name: str, total: int, tell: Tell) -> dict[str, Any]:
    """What `total` calls of a client came to, and what they left; the keys are `COLUMNS`."""
    with peer() as (port, context, server):
        there = _open_at(server)
        ended, seconds, before, after = _run(name, port, context, total, tell)
        limit = time.monotonic() + SETTLE
        while _open_at(server) > there and time.monotonic() < limit:
            time.sleep(0.02)
        there = _open_at(server) - there
    # A counter forgets what is negative: what was opened before may have been closed since.
    kinds = after[0] - before[0]
    return {
        "client": name,
        "calls": total,
        "answered": ended.pop("answered", 0),
        "cancelled": ended.pop("cancelled", 0),
        "other": dict(ended),
        "s": round(seconds, 1),
        "tcp left": kinds["tcp"],
        "descriptors left": dict(kinds),
        "threads left": max(0, after[1] - before[1]),
        "open at the peer": max(0, there),
    }


def _open_at(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {what}" for what, count in value.items()) or "0"
    return str(value)


def _run(
    name: str, port: int, context: ssl.SSLContext, total: int, tell: Tell
) -> tuple[Counter[str], float, Counts, Counts]:
    url = f"https://localhost:{port}/"
    if name in BLOCKING:
        return _in_threads(BLOCKING[name](url, context), total, tell)
    kind = "uvloop" if "uvloop" in name else "asyncio"
    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        return runner.run(_on_loop(ON_LOOP[name.partition(",")[0]], url, context, total, tell))


async def _on_loop(
    make: Callable[[str, ssl.SSLContext], tuple[Once, Once]],
    url: str,
    context: ssl.SSLContext,
    total: int,
    tell: Tell,
) -> tuple[Counter[str], float, Counts, Counts]:
    once, close = make(url, context)
    dice = random.Random(SEED)
    ended: Counter[str] = Counter()
    begun = time.monotonic()
    for _ in range(2 * AT_ONCE):
        await once()
    typical = (time.monotonic() - begun) / 2  # when AT_ONCE of them share the loop
    await asyncio.sleep(0.05)
    before = counted()
    left = total
    begun = time.monotonic()

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            task = asyncio.ensure_future(once())
            handle = loop.call_later(dice.uniform(0, 2 * typical), task.cancel)
            await asyncio.wait([task])
            handle.cancel()
            ended[_how(task)] += 1
            if left % 500 == 0:
                tell(1 - left / total, "calls")

    loop = asyncio.get_running_loop()
    await asyncio.wait([asyncio.ensure_future(worker()) for _ in range(AT_ONCE)])
    seconds = time.monotonic() - begun
    await close()
    await asyncio.sleep(0.05)
    after = counted()
    return ended, seconds, before, after


def _how(task: asyncio.Future[Any]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "answered" if error is None else type(error).__name__


def _in_threads(
    made: tuple[Once, Once], total: int, tell: Tell
) -> tuple[Counter[str], float, Counts, Counts]:
    once, close = made
    for _ in range(10):
        once()
    dice = random.Random(SEED)
    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: once(), range(4 * THREADS)))
    typical = (time.monotonic() - begun) / 4
    before = counted()
    limits = [dice.uniform(0.0002, 2 * typical) for _ in range(total)]
    ended: Counter[str] = Counter()
    lock = threading.Lock()

    def work(limit: float) -> None:
        how = "answered"
        try:
            with holdfast.timeout(limit):
                once()
        except holdfast.DeadlineExceeded:
            how = "cancelled"
        except Exception as exc:
            how = type(exc).__name__
        with lock:
            ended[how] += 1
            if ended.total() % 500 == 0:
                tell(ended.total() / total, "calls")

    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, limits))
    seconds = time.monotonic() - begun
    close()
    gc.collect()
    return ended, seconds, before, counted()


# -- the peer ----------------------------------------------------------------------------------

SERVER: Final = """
import asyncio, ssl, sys
REPLY = b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: 2\\r\\n\\r\\nok"
class Peer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if data.endswith(b"\\r\\n\\r\\n"):
            self.transport.write(REPLY)
            self.transport.close()
async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server = await loop.create_server(
        Peer, "127.0.0.1", 0, ssl=context, backlog=4096, ssl_shutdown_timeout=1.0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def peer() -> Iterator[tuple[int, ssl.SSLContext, int]]:
    """A TLS server: its port, what trusts it, and its process."""
    import trustme

    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "chain.pem"))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
        command = [sys.executable, "-c", SERVER, file]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            try:
                yield json.loads(server.stdout.readline()), context, server.pid
            finally:
                server.kill()


# -- clients: a call on a connection of its own ------------------------------------------------


def _streams(url: str, context: ssl.SSLContext) -> tuple[Once, Once]:
    port = int(url.rpartition(":")[2].strip("/"))

    async def once() -> None:
        stream = await holdfast.net.dial("localhost", port, tls=context)
        try:
            await stream.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while await stream.read():
                pass
        finally:
            stream.abort()

    async def close() -> None:
        return

    return once, close


def _httpx(url: str, context: ssl.SSLContext) -> tuple[Once, Once]:
    import httpx2

    from holdfast.adapters.httpx import instrument

    client = instrument(httpx2.AsyncClient(verify=context, trust_env=False, timeout=30))
    return lambda: client.get(url), client.aclose


def _aiohttp(url: str, context: ssl.SSLContext) -> tuple[Once, Once]:
    import aiohttp

    from holdfast.adapters.aiohttp import instrument

    session = instrument(aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)))

    async def once() -> None:
        async with session.get(url) as answer:
            await answer.read()

    return once, session.close


def _httpx_sync(url: str, context: ssl.SSLContext) -> tuple[Once, Once]:
    import httpx2

    from holdfast.adapters.httpx import instrument

    client = instrument(httpx2.Client(verify=context, trust_env=False, timeout=30))
    return lambda: client.get(url), client.close


def _requests(url: str, context: ssl.SSLContext) -> tuple[Once, Once]:
    import requests
    from requests.adapters import HTTPAdapter

    from holdfast.adapters.requests import instrument

    class Trusting(HTTPAdapter):
        def init_poolmanager(self, *rest: Any, **more: Any) -> None:
            super().init_poolmanager(*rest, **more, ssl_context=context)

        def build_connection_pool_key_attributes(self, *rest: Any, **more: Any) -> Any:
            host, pool = super().build_connection_pool_key_attributes(*rest, **more)
            return host, {**pool, "ssl_context": context}

        def cert_verify(self, *_: Any, **__: Any) -> None:
            return

    session = requests.Session()
    session.trust_env = False
    session.mount("https://", Trusting(pool_maxsize=THREADS))
    instrument(session)
    return lambda: session.get(url), session.close


ON_LOOP: Final = {"streams": _streams, "httpx2": _httpx, "aiohttp": _aiohttp}
BLOCKING: Final = {"httpx2, sync": _httpx_sync, "requests": _requests}
