"""A server of ours in the loop of the test, with clients of bare streams."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trustme

from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.adapters.uvicorn import Settings, UvicornApplication, UvicornServer
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.runtime.clock import monotonic

QUICK = DrainTerms(calm=0.1, most=2.0, quiet=0.4, farewell=0.5, parting=0.2, unwinding=0.5)
ASK = b"GET /%b HTTP/1.1\r\nhost: t\r\n\r\n"

_authority = trustme.CA()


class Terms:
    """Header limit of the tests: long enough to be out of the way."""

    header = math.inf
    observed = False
    service = "test"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


class Story:
    """What the application was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                self.lines.append(message["type"])
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        elif scope["type"] == "websocket":
            await self._socket(receive, send)
        else:
            await self._answer(scope["path"][1:], receive, send)

    async def _socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.lines.append(f"disconnect {message['code']}")
                return
            await send({"type": "websocket.send", "text": message.get("text") or ""})

    async def _answer(self, path: str, receive: Any, send: Any) -> None:
        what, _, argument = path.partition("/")
        try:
            if what == "wait":
                await asyncio.sleep(float(argument))
            elif what == "body":
                while (await receive()).get("more_body"):
                    pass
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise
        size = int(argument) if what == "large" else 2
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if what == "late":  # the headers are out long before the body
            await asyncio.sleep(float(argument))
        await send({"type": "http.response.body", "body": b"o" * size})
        if what == "after":
            await asyncio.sleep(float(argument))
            self.lines.append("done behind the response")


class Served:
    """A server under test."""

    def __init__(self, server: UvicornServer, story: Story, address: Any, tls: bool) -> None:
        self.server = server
        self.story = story
        self.address = address
        self.tls = tls
        self.steps: list[str] = []
        self.facts: dict[str, dict[str, object]] = {}
        self._stopping: asyncio.Task[None] | None = None

    def tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        assert kind == "drain.step"
        if subject != "in_flight":
            self.steps.append(subject)
        self.facts[subject] = data

    @property
    def done(self) -> tuple[object, object, object]:
        """How many connections were left over, closed as they were quiet, and cut off."""
        done = self.facts["done"]
        return done["left"], done["closed"], done["aborted"]

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client."""
        if isinstance(self.address, str):
            return await asyncio.open_unix_connection(self.address, **options)
        if self.tls:
            options = {"ssl": client_context(), "server_hostname": "localhost"} | options
        return await asyncio.open_connection(*self.address, **options)

    async def stop_begins(self, seconds: float = 5.0) -> None:
        """The stop begins, and goes on by itself."""
        deadline = monotonic() + seconds
        await self.server.prepare(ShutdownRequest("server", deadline, "test"))
        self._stopping = asyncio.create_task(self.server.stop(deadline))
        await asyncio.sleep(0)

    async def stopped(self) -> None:
        """The stop is over."""
        if self._stopping is None:
            await self.stop_begins()
        assert self._stopping is not None
        await asyncio.wait_for(self._stopping, 20)


def client_context(*protocols: str) -> ssl.SSLContext:
    """TLS for clients."""
    context = ssl.create_default_context()
    _authority.configure_trust(context)
    if protocols:
        context.set_alpn_protocols([*protocols])
    return context


def listening(path: str = "") -> socket.socket:
    """A bound socket."""
    if path:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
    else:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def serving(
    terms: DrainTerms = QUICK,
    *,
    protocol: str = "",
    tls: bool = False,
    http2: bool = False,
    path: str = "",
    shared: bool = False,
    app: Any = None,
) -> AsyncIterator[Served]:
    """A server that listens; it is stopped in the end, if it is not already."""
    story = Story()

    def secure(*_: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _authority.issue_cert("localhost").configure_cert(context)
        if http2:
            context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    settings = Settings(
        HoldfastMiddleware(app or story.app),
        Terms(),
        http2=http2,
        access_log=False,
        log_config=None,
        ssl_context_factory=secure if tls else None,
    )
    settings.load()
    if protocol == "h11":
        from holdfast.adapters.uvicorn.wire_h11 import GuardedH11

        settings.http_protocol_class = GuardedH11
    application = UvicornApplication(settings)
    sock = listening(path)
    served: list[Served] = []
    server = UvicornServer(
        settings,
        application,
        [sock],
        lambda: terms,
        lambda *words, **data: served[0].tell(*words, **data),
        shared=shared,
    )
    served.append(Served(server, story, path or sock.getsockname(), tls))
    await application.start()
    await server.start()
    try:
        yield served[0]
    finally:
        await served[0].stopped()
        await application.stop(0.0)


async def answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    """Status, head in lower case, and body of one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = 0
    for line in head.split("\r\n"):
        name, _, value = line.partition(": ")
        if name == "content-length":
            length = int(value)
    return int(head.split()[1]), head, await reader.readexactly(length)
