"""Servers that are started by their own commands, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import holdfast
from tests.adapters.embedding import exchange, once_up, request

__all__ = ["Running", "serving"]

ROOT = Path(__file__).parents[2]
TERM = signal.SIGTERM
APP = "tests.adapters.library_app:app"
COMMANDS = {
    "uvicorn": "-m uvicorn --no-access-log --port {port} {app}",
    "uvicorn-h11": "-m uvicorn --no-access-log --http h11 --loop asyncio --port {port} {app}",
    "uvicorn-off": "-m uvicorn --no-access-log --lifespan off --port {port} {app}",
    "uvicorn-2": "-m uvicorn --no-access-log --workers 2 --port {port} {app}",
    "gunicorn": "-m gunicorn -k uvicorn_worker.UvicornWorker --graceful-timeout 8 "
    "--no-control-socket -b 127.0.0.1:{port} {app}",
    "gunicorn-own": "-m gunicorn -k holdfast.adapters.gunicorn.Worker --graceful-timeout 6 "
    "--no-control-socket -b 127.0.0.1:{port} tests.adapters.gunicorn_app:app",
    "gunicorn-both": "-m gunicorn -k holdfast.adapters.gunicorn.Worker --graceful-timeout 8 "
    "--no-control-socket -b 127.0.0.1:{port} {app}",
    "hypercorn": "-m hypercorn -b 127.0.0.1:{port} {app}",
    "hypercorn-one": "-m tests.adapters.library_app {port}",
}


class Running:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.folder = folder

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "notes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def signal(self, number: int = TERM) -> None:
        self.process.send_signal(number)

    def signal_to(self, pid: int, number: int = TERM) -> None:
        os.kill(pid, number)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 15)

    async def ask(self, path: str) -> tuple[int, str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(path))
        found = await exchange(reader)
        writer.close()
        return found


def _free_port() -> int:
    for _ in range(200):
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


@asynccontextmanager
async def serving(
    kind: str, folder: Path, words: str = "", *, up: bool = True
) -> AsyncIterator[Running]:
    port = _free_port()
    source = str(Path(holdfast.__file__).parents[1])
    command = COMMANDS[kind].format(port=port, app=APP).split()
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": f"{source}:{ROOT}",
                "LIBRARY_APP": words,
                "LIBRARY_NOTES": str(folder / "notes"),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running = Running(process, port, folder)
    try:
        if up:
            await once_up(port)
        yield running
    except BaseException:
        print(running.log())
        raise
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
