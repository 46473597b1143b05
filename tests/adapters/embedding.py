"""What the tests of embedded servers share: an application, and clients on bare sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.runtime.clock import monotonic

__all__ = [
    "LOOPS",
    "SHUTDOWN",
    "TERMS",
    "Load",
    "Story",
    "bound",
    "exchange",
    "once_up",
    "request",
    "run",
    "sockets_closed_with",
    "stopping",
]

TERMS = DrainTerms(calm=0.3, most=3.0, quiet=0.6, farewell=1.0, unwinding=1.0)
SHUTDOWN = Cause(CauseKind.SHUTDOWN, "process", "", 0.0, 1.0, 0.0)
VIEW = 0.005
"""Seconds between a client's look at its connection and the arrival of its bytes."""


def uvloop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    from holdfast.adapters.uvloop import loop_factory

    return loop_factory()


LOOPS = [pytest.param(None, id="asyncio"), pytest.param(uvloop(), id="uvloop")]


def run(loop: Any, main: Any) -> Any:
    """Run a test on a real loop, bounded."""

    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await main

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(bounded())


def bound() -> socket.socket:
    """A bound socket."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


class Story:
    """An application that does as the path says, and what it saw."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self._socket(receive, send)
        else:
            await self._http(scope["path"], receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.lines.append("startup")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.lines.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, path: str, receive: Any, send: Any) -> None:
        _, what, *rest = path.split("/")
        size = 2
        if what == "body":
            size, more = 0, True
            while more:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"2")],
        }
        if what == "late":
            await send(start)
        try:
            await asyncio.sleep(float(rest[0]) if rest else 0)
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise
        if what != "late":
            await send(start)
        await send({"type": "http.response.body", "body": b"ok"})

    async def _socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.lines.append(f"disconnect {message['code']}")
                return
            await send({"type": "websocket.send", "text": message["text"]})


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: t", *headers, "", ""]).encode()


async def exchange(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    """Status, head in lower case and body of one answer.

    Raises:
        EOFError: it never came.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = 0
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name == "content-length":
                length = int(value)
        return int(head.split()[1]), head, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error


class Load:
    """Clients that keep their connections, look before they send, and honour `Connection: close`.

    Attributes:
        answered: requests that were.
        lost: requests on a connection that had had an answer before, and got none.
        fresh: requests that were lost on a connection of their own.
        announced: answers that said that the connection ends.
        refused: connections that were.
    """

    def __init__(self, port: int, path: str = "/", clients: int = 20, think: float = 0.02) -> None:
        self.port = port
        self.path = path
        self.think = think
        self.answered = self.lost = self.fresh = self.announced = self.refused = 0
        self.over = False
        self.tasks = [asyncio.create_task(self._client(index)) for index in range(clients)]

    async def warm(self) -> None:
        while self.answered < 3 * len(self.tasks):
            assert not all(task.done() for task in self.tasks)
            await asyncio.sleep(0.02)

    async def ended(self) -> None:
        self.over = True
        await asyncio.gather(*self.tasks)

    async def _client(self, index: int) -> None:
        dice = random.Random(index)
        while not self.over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                self.refused += 1
                await asyncio.sleep(0.05)
                continue
            try:
                await self._connection(reader, writer, dice)
            finally:
                writer.transport.abort()

    async def _connection(self, reader: Any, writer: Any, dice: random.Random) -> None:
        served = 0
        while not self.over:
            if reader.at_eof():
                return
            await asyncio.sleep(VIEW)  # what it has seen is as old as that when its bytes arrive
            try:
                writer.write(request(self.path))
                status, head, _ = await exchange(reader)
            except (EOFError, OSError):
                if served:
                    self.lost += 1
                else:
                    self.fresh += 1
                return
            served += 1
            assert status == 200
            self.answered += 1
            if "connection: close" in head:
                self.announced += 1
                return
            await asyncio.sleep(dice.uniform(0, 2 * self.think))


async def stopping(server: Any, seconds: float = 6.0) -> None:
    """Stop a component as the host does it."""
    deadline = monotonic() + seconds
    await server.prepare(ShutdownRequest("server", deadline, SHUTDOWN))
    await server.stop(deadline)


async def sockets_closed_with(port: int, count: int) -> tuple[Any, list[asyncio.Task[int]]]:
    """Open WebSockets; tasks that give the code that each is closed with."""
    from websockets.asyncio.client import connect

    opened = [await connect(f"ws://127.0.0.1:{port}/ws") for _ in range(count)]
    for each in opened:
        await each.send("hi")
        assert await each.recv() == "hi"

    async def code(each: Any) -> int:
        await each.wait_closed()
        found: int = each.close_code
        return found

    return opened, [asyncio.create_task(code(each)) for each in opened]


async def once_up(port: int) -> None:
    """Wait until it answers."""
    for _ in range(200):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("/", "connection: close"))
            await exchange(reader)
            writer.close()
            return
        except (OSError, EOFError):
            await asyncio.sleep(0.02)
    raise AssertionError("it never answered")
