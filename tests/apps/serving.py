"""`holdfast serve` in a process of its own, for the tests of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast

SOURCE = Path(holdfast.__file__).parents[1]
PATIENCE = 30.0

PLAIN = """
import asyncio, json

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path, _, seconds = scope["path"].partition("/wait/")
    if seconds:
        await asyncio.sleep(float(seconds))
    body = json.dumps({"arrival": scope.get("holdfast.arrival"), "path": scope["path"]}).encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

def make():
    return app
"""

FASTAPI = """
import asyncio
from fastapi import FastAPI

app = FastAPI()

@app.get("/wait/{seconds}")
async def wait(seconds: float):
    await asyncio.sleep(seconds)
    return {"waited": seconds}
"""

STARLETTE = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def wait(request):
    await asyncio.sleep(float(request.path_params["seconds"]))
    return JSONResponse({"waited": 1})

app = Starlette(routes=[Route("/wait/{seconds}", wait)])
"""


class Home:
    """A directory with applications, and a private place for operators' sockets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not below pytest's own: the path of a socket has room for 107 bytes.
        self.runtime = Path(tempfile.mkdtemp(prefix="hf"))
        for name, text in (("plain", PLAIN), ("fast", FASTAPI), ("star", STARLETTE)):
            self.write(f"{name}.py", text)

    @property
    def sockets(self) -> Path:
        return self.runtime / "holdfast"

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def environment(self) -> dict[str, str]:
        state = {"XDG_STATE_HOME": str(self.runtime / "state")}  # unless a test says otherwise
        return (
            state
            | os.environ
            | {
                "PYTHONPATH": str(SOURCE),
                "XDG_RUNTIME_DIR": str(self.runtime),
                "COLUMNS": "200",
                "NO_COLOR": "1",
            }
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            [sys.executable, "-m", "holdfast.apps.cli", *words],
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    @contextmanager
    def serve(self, target: str, *words: str, ready: bool = True) -> Generator[Served]:
        """A running service; nothing of it is left afterwards."""
        words = words if {"--uds", "--port"} & {*words} else (*words, "--port", "0")
        log = self.path / f"{target.replace(':', '-')}-{time.monotonic_ns()}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.apps.cli", "serve", target, *words],
                cwd=self.path,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        served = Served(process, log)
        try:
            if ready:
                served.url = served.wait_for(r"listens on +(\S+)")[1]
            yield served
        finally:
            served.end()

    def close(self) -> None:
        shutil.rmtree(self.runtime, ignore_errors=True)


class Served:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.url = ""
        self._log = log

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := re.search(pattern, self.log()):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in:\n{self.log()}")

    def get(self, path: str, *headers: str, timeout: float = PATIENCE) -> tuple[int, str, bytes]:
        """Status, head and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            return ask(sock, path, *headers)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Stop it; its exit code."""
        self.send(number)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def ask(sock: socket.socket, path: str, *headers: str) -> tuple[int, str, bytes]:
    lines = [f"GET {path} HTTP/1.1", "host: t", "connection: close", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode())
    head, _, body = everything(sock).partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode().lower(), body


def everything(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


def operator(path: Path, page: str) -> Any:
    """What a process answers its operator."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        _, head, body = ask(sock, page)
    return json.loads(body) if "application/json" in head else body.decode()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    end = time.monotonic() + PATIENCE
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
