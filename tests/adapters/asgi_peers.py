"""What the tests of the ASGI carrier talk to: servers as processes, clients as bare sockets."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast

APP = Path(__file__).with_name("asgi_apps.py")
PATIENCE = 15.0
DEADLINE = "x-envoy-expected-rq-timeout-ms"


class Service:
    """A server with the application of `asgi_apps`."""

    def __init__(self, which: str, log: Path, port: int) -> None:
        self.which = which
        self.port = port
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(
        self, path: str, *headers: str, method: str = "GET", body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(head(path, "connection: close", *headers, method=method, body=body) + body)
            return parsed(everything(sock))

    def story(self, key: str) -> dict[str, Any]:
        """What is known of the request with that key, and of the service."""
        _, _, body = self.ask(f"/journal/{key}")
        found: dict[str, Any] = json.loads(body)
        return found

    def until(self, key: str, enough: Callable[[list[str]], bool]) -> list[str]:
        """The journal of a request once it is as wanted; fails when it never is."""
        end = time.monotonic() + PATIENCE
        while True:
            found: list[str] = self.story(key)["journal"]
            if enough(found):
                return found
            assert time.monotonic() < end, f"{self.which}: the journal stays {found}"
            time.sleep(0.02)

    def logged(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.log())):
            assert time.monotonic() < end, f"{pattern!r} is not in:\n{self.log()[-4000:]}"
            time.sleep(0.02)
        return found

    def settled(self) -> None:
        """Wait until nothing is left of any request."""
        end = time.monotonic() + PATIENCE
        while True:
            found = self.story("nobody")
            if not found["open"] and not found["tasks"]:
                return
            assert time.monotonic() < end, f"{self.which}: left behind: {found}"
            time.sleep(0.02)


@contextmanager
def running(which: str) -> Iterator[Service]:
    """A server in a process of its own; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="hf") as directory:
        log = Path(directory, "log")
        source = str(Path(holdfast.__file__).parents[1])
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(APP), which],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=os.environ | {"PYTHONPATH": source},
            )
        try:
            assert process.stdout is not None
            service = Service(which, log, int(process.stdout.readline() or "0"))
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    service.story("hello")
                    break
                except OSError:
                    assert time.monotonic() < end, f"{which} does not start:\n{service.log()}"
                    time.sleep(0.05)
            yield service
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def fresh_key() -> str:
    return uuid.uuid4().hex


def head(path: str, *headers: str, method: str = "GET", body: bytes | None = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: t", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode()


def everything(sock: socket.socket) -> bytes:
    """All that comes until the other side closes or resets."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def exactly_one(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer with a content length, from a connection that stays open."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += sock.recv(1)
    status, headers, _ = parsed(found)
    body = b""
    while len(body) < int(headers["content-length"]):
        body += sock.recv(int(headers["content-length"]) - len(body))
    return status, headers, body


def parsed(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower-case) and the body as it came, without chunks being joined."""
    top, _, body = raw.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = dechunked(body)
    return int(lines[0].split()[1]), headers, body


def dechunked(body: bytes) -> bytes:
    """The chunks joined. Ends with `(cut)` when the last chunk is missing."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        if not size:
            break
        if int(size, 16) == 0:
            return found
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return found + b"(cut)"
