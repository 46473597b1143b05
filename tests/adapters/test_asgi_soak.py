"""Clients that leave, a handler with a plain httpx client, and whether its pool survives.

`HOLDFAST_SOAK` sets the number of requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import holdfast

REQUESTS = int(os.environ.get("HOLDFAST_SOAK", "6000"))
CALLERS = int(os.environ.get("CALLERS", "60"))
PLACES = 10
APP = Path(__file__).with_name("asgi_soak_app.py")


@contextmanager
def service(which: str) -> Iterator[int]:
    source = os.environ.get("HF_SRC") or str(Path(holdfast.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, str(APP), which],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def leave(port: int, requests: int, seed: int = 1) -> None:
    dice = random.Random(seed)
    numbers = iter(range(requests))

    async def caller() -> None:
        for number in numbers:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /call?%d HTTP/1.1\r\nhost: t\r\n\r\n" % number)
            # Mostly gone within 6 ms; some stay, so that places are used again.
            stay = dice.random() * (0.006 if dice.random() < 0.9 else 0.3)
            try:
                async with asyncio.timeout(stay):
                    await reader.readuntil(b"\r\n\r\n")
            except (TimeoutError, asyncio.IncompleteReadError):
                pass
            if dice.random() < 0.5:
                writer.transport.abort()  # a reset instead of an end
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())


async def ask(port: int, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n" % path.encode())
    try:
        async with asyncio.timeout(20):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b"chunked" in head.lower():
        body = b"".join(body.split(b"\r\n")[1::2])
    return json.loads(body)


async def whole(which: str, requests: int, seed: int = 1) -> Any:
    with service(which) as port:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await leave(port, requests, seed)
        seconds = loop.time() - begun
        await asyncio.sleep(0.5)
        found = await ask(port, "/after")
        found["seconds"] = round(seconds, 1)
        return found


def survived(found: Any) -> bool:
    return bool(found["replies"] == [f"/{number}" for number in range(PLACES)])


if __name__ == "__main__":
    result = asyncio.run(whole(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0])))
    print(survived(result), json.dumps(result, indent=1))
