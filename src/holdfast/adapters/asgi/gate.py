"""The gate: what stands between an application and a server whose connections cannot be reached.

While no stop has begun it notes what is in flight, and nothing more. From the announcement on

    HTTP/1.x    every response says `connection: close`; HTTP/2 has no such header, and there the
                server tells its clients
    WebSockets  are closed when the farewell is due, with 1012 (1001 where nobody comes back), and
                their handler is told at once; those that come then are turned away
    the cut     what is served is cancelled with the cause `shutdown`; what begins after it gets 503

A request that was cut is answered for its handler where no answer has begun: 503 and `Retry-After`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from holdfast.adapters.asgi.types import App, Headers, Message, Receive, Send, ServerScope
from holdfast.domain.cause import CauseKind
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.wire.answer import retry_after as retry_after_value
from holdfast.domain.wire.problem import PROBLEM_TYPE, problem_type
from holdfast.ports.gate import GateView
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.tasks import aside

__all__ = ["ClientDisconnected", "Gate"]

_RESTART: Final = 1012
_GOING_AWAY: Final = 1001
_SAID: Final[Duration] = 0.25
"""Seconds that a client has to take the close frame before its handler is told anyway."""
_REASONS: Final = {_RESTART: "service restart", _GOING_AWAY: "going away"}


class ClientDisconnected(OSError):
    """The WebSocket was closed since the service stops; nothing can be sent any more."""


class Gate:
    """A `holdfast.ports.gate.Gate` for ASGI applications.

    Args:
        app: the application.
        returning: whether another process takes over: WebSockets are told 1012, else 1001.
        retry_after: seconds that are told to whoever is turned away.

    Attributes:
        served: requests and WebSockets that have begun.
        announcing: whether responses say that their connection ends.
        parting: whether WebSockets are closed.
        closed: whether the cut has happened.
    """

    def __init__(self, app: App, *, returning: bool = True, retry_after: Duration = 1.0) -> None:
        self.app = app
        self.code = _RESTART if returning else _GOING_AWAY
        self.retry_after = retry_after_value(retry_after)
        self.served = 0
        self.announcing = self.parting = self.closed = False
        self._open: set[_Passage] = set()
        self._latest: Instant = -math.inf
        self._ring: Callable[[], None] = _nobody_waits
        self._driver: Driver | None = None

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        kind = scope["type"]
        if kind == "http":
            passage: _Passage = _Request(self, scope, send)
        elif kind == "websocket":
            passage = socket = _Socket(self, scope, send, receive)
            receive = socket.receive
        else:
            await self.app(scope, receive, send)
            return
        if self.announcing and await self._turned_away(passage):
            return
        self.served += 1
        self._open.add(passage)
        try:
            await self.app(scope, receive, passage.send)
        except asyncio.CancelledError:
            if not passage.cut or not await passage.answer():
                raise
        finally:
            self._open.discard(passage)
            if self.announcing:
                self._passed(passage)

    # -- the port --------------------------------------------------------------------------------

    def announce(self, ring: Callable[[], None]) -> None:
        """See `holdfast.ports.gate.Gate`."""
        self._driver = driver_of(asyncio.get_running_loop())
        self._ring = ring
        self.announcing = True

    def look(self) -> GateView:
        """See `holdfast.ports.gate.Gate`."""
        sockets = latest = 0
        for passage in self._open:
            if isinstance(passage, _Socket):
                sockets += 1
            elif passage.unannounced:
                latest += 1
        # While the end of an answer is still to come that has announced nothing, it is as if it
        # had just come.
        now = self._driver.now() if latest and self._driver is not None else self._latest
        return GateView(len(self._open) - sockets, sockets, max(now, self._latest))

    def farewell(self) -> int:
        """See `holdfast.ports.gate.Gate`."""
        self.parting = True
        sockets = [passage for passage in self._open if isinstance(passage, _Socket)]
        for socket in sockets:
            socket.dismiss()
        return len(sockets)

    def cut(self) -> list[str]:
        """See `holdfast.ports.gate.Gate`."""
        self.closed = True
        driver = self._driver or driver_of(asyncio.get_running_loop())
        driver.settle()
        # A request that runs in a scope is cancelled through it: shields in it hold then, and
        # whoever opened it answers.
        scopes: dict[object, HostedNode] = {
            node.task: node for node in driver.root.children or () if isinstance(node, HostedNode)
        }
        names: list[str] = []
        for passage in tuple(self._open):
            names.append(passage.name)
            scope = scopes.get(passage.task)
            if scope is None:
                passage.cut = True
                passage.task.cancel("the server stops")
            elif scope.reached() is None:
                scope.cancel("the drain deadline has passed", kind=CauseKind.SHUTDOWN)
        return names

    # -- inside ----------------------------------------------------------------------------------

    async def _turned_away(self, passage: _Passage) -> bool:
        assert self._driver is not None
        self._latest = self._driver.now()
        self._ring()
        if isinstance(passage, _Socket):
            return self.parting and await passage.answer()
        return self.closed and await passage.answer()

    def _passed(self, passage: _Passage) -> None:
        if passage.unannounced and self._driver is not None:
            self._latest = self._driver.now()
        self._ring()


class _Passage:
    """One request or WebSocket on its way through."""

    __slots__ = ("announced", "cut", "gate", "scope", "server", "started", "task")

    def __init__(self, gate: Gate, scope: ServerScope, server: Send) -> None:
        self.gate = gate
        self.scope = scope
        self.server = server
        self.started = self.announced = self.cut = False
        task = asyncio.current_task()
        assert task is not None, "a server runs its application in a task"
        self.task = task

    @property
    def name(self) -> str:
        """Method and path."""
        return f"{self.scope.get('method', 'WS')} {self.scope['path']}"[:128]

    @property
    def unannounced(self) -> bool:
        """Whether its client has not been told, and may use the connection again."""
        return self.started and not self.announced

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` of the application."""
        raise NotImplementedError

    async def answer(self) -> bool:
        """Answer for the application; false when it is too late for that."""
        raise NotImplementedError


class _Request(_Passage):
    __slots__ = ()

    def send(self, message: Message) -> Awaitable[None]:
        if not self.started and message["type"] == "http.response.start":
            self.started = True
            if self.gate.announcing:
                message = self._announcing(message)
        return self.server(message)

    def _announcing(self, message: Message) -> Message:
        self.announced = True
        # By its first digit: the one version that has this header. In HTTP/2 it is an error.
        if not self.scope.get("http_version", "1.1").startswith("1"):
            return message
        headers: Headers = [
            (name, value)
            for name, value in message.get("headers", ())
            if name.lower() not in (b"connection", b"keep-alive")
        ]
        return {**message, "headers": [*headers, (b"connection", b"close")]}

    async def answer(self) -> bool:
        if self.started:
            return False
        if self.cut:
            self.task.uncancel()
        body = json.dumps(
            {
                "type": problem_type(CauseKind.SHUTDOWN),
                "title": "The service cannot do this now",
                "status": 503,
                "detail": "It stops; try again.",
            }
        ).encode()
        headers = [
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"retry-after", self.gate.retry_after),
        ]
        await self.send({"type": "http.response.start", "status": 503, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
        return True


class _Socket(_Passage):
    __slots__ = ("_client", "_closed", "_closing", "_dismissed", "_waiting")

    def __init__(self, gate: Gate, scope: ServerScope, server: Send, client: Receive) -> None:
        super().__init__(gate, scope, server)
        self._client = client
        self._dismissed = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[object] | None = None

    @property
    def unannounced(self) -> bool:
        return False  # nothing follows on its connection

    async def receive(self) -> Message:
        """The `receive` of the application."""
        if self._dismissed:
            return await self._disconnect()
        self._waiting = task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            message = await self._client()
        except asyncio.CancelledError:
            # Woken by `dismiss`, unless somebody else has cancelled it as well.
            if self._waiting is not None or task.uncancel() > before:
                raise
            return await self._disconnect()
        finally:
            self._waiting = None
        if message["type"] == "websocket.disconnect":
            self._closed = True
            if self._dismissed:
                return await self._disconnect()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if self._dismissed:
            return self._too_late(message)
        if kind == "websocket.accept":
            self.started = True
            if self.gate.parting:
                return self._accept_and_part(message)
        elif kind in ("websocket.close", "websocket.http.response.start"):
            self._closed = True
        return self.server(message)

    async def _accept_and_part(self, message: Message) -> None:
        await self.server(message)
        self.dismiss()

    async def _too_late(self, message: Message) -> None:
        await self._said()
        if message["type"] == "websocket.close" or self._closed:
            return  # it is closed already, and that is what was wanted
        raise ClientDisconnected("the WebSocket was closed, since the service stops")

    async def _disconnect(self) -> Message:
        await self._said()
        code = self.gate.code
        return {"type": "websocket.disconnect", "code": code, "reason": _REASONS[code]}

    def dismiss(self) -> None:
        """Close it, and tell the application.

        Not while it is not accepted: to refuse it would tell the client something else. That comes
        right after.
        """
        if self._dismissed or not self.started:
            return
        self._dismissed = True
        if not self._closed:
            self._closing = aside(self._close(), name="holdfast farewell")
            self._closing.add_done_callback(self._wake)
            driver = driver_of(self.task.get_loop())
            driver.alarm(driver.now() + _SAID, self._wake)
        else:
            self._wake()

    def _wake(self, _: object = None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel("the WebSocket was closed")

    async def _said(self) -> None:
        """Wait until the close frame is with the server: some drop the connection without it when
        the handler returns."""
        if self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing], timeout=_SAID)

    async def _close(self) -> None:
        code = self.gate.code
        with suppress(OSError, RuntimeError):  # its client was quicker; each server says so its way
            await self.server({"type": "websocket.close", "code": code, "reason": _REASONS[code]})

    async def answer(self) -> bool:
        if self.started or self.cut:
            return False
        self._closed = True
        if "websocket.http.response" in (self.scope.get("extensions") or {}):
            headers = [(b"content-length", b"0"), (b"retry-after", self.gate.retry_after)]
            start = "websocket.http.response.start"
            await self.server({"type": start, "status": 503, "headers": headers})
            await self.server({"type": "websocket.http.response.body", "body": b""})
        else:
            await self.server({"type": "websocket.close", "code": self.gate.code})
        return True


def _nobody_waits() -> None:
    """No drain is under way."""
