"""aiohttp.web, embedded: its application and its server as two components.

    application = AiohttpApplication(app)
    host.add("application", application)
    host.add("server", AiohttpServer(application, [sock]))

What differs from `web.run_app` and from the clean-up of `web.AppRunner`:

    announced   responses say `Connection: close` while the drain lasts. aiohttp never says it; its
                own `force_close` only closes
    uploads     that are half received when the stop begins are received to their end: connections
                are told to close only when nothing is served any more. aiohttp tells them first,
                and then drops what still comes
    WebSockets  are closed with 1012 (1001 where nobody comes back)
    on_shutdown runs when the listener goes, so that streams can be told; on_cleanup at the very end
    the end     aiohttp waits for its time-out twice; here the deadline of the stop holds
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from aiohttp import web

from holdfast.domain.cause import CauseKind
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.domain.wire.problem import PROBLEM_TYPE, problem_type
from holdfast.ports.gate import GateView, ServerDrain
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.gated import GatedDrain, GatedServer
from holdfast.runtime.tasks import aside

__all__ = ["AiohttpApplication", "AiohttpGate", "AiohttpServer"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Socket: TypeAlias = "web.WebSocketResponse[Any]"
_WEBSOCKET: Final[Any] = web.WebSocketResponse  # takes a parameter, which `isinstance` cannot know
_RESTART: Final = 1012
_GOING_AWAY: Final = 1001
_CLOSING: Final[Duration] = 0.25
"""Seconds that aiohttp has, twice, to close what is idle by then."""


class _Passage:
    """One request on its way through."""

    def __init__(self, name: str, task: asyncio.Task[Any]) -> None:
        self.name = name
        self.task = task
        self.response: web.StreamResponse | None = None
        self.announced = False
        self.cut = False

    @property
    def socket(self) -> _Socket | None:
        """The WebSocket that it has become."""
        return _socket(self.response)

    @property
    def unannounced(self) -> bool:
        """Whether its client has not been told, and may use the connection again."""
        return self.response is not None and not self.announced and self.socket is None


_PASSAGE: Final = web.RequestKey("holdfast.passage", _Passage)


class AiohttpGate:
    """A `holdfast.ports.gate.Gate` for applications of aiohttp.

    Args:
        app: the application; it must not be frozen yet.
        returning: whether another process takes over: WebSockets are told 1012, else 1001.
        retry_after: seconds that are told to whoever is turned away.
    """

    def __init__(
        self, app: web.Application, *, returning: bool = True, retry_after: Duration = 1.0
    ) -> None:
        self.code = _RESTART if returning else _GOING_AWAY
        self._retry_after = str(max(1, math.ceil(retry_after)))
        self._open: set[_Passage] = set()
        self._announcing = self._parting = self._closed = False
        self._latest: Instant = -math.inf
        self._ring: Callable[[], None] = _nobody_waits
        self._driver: Driver | None = None
        app.middlewares.insert(0, self._middleware())
        app.on_response_prepare.append(self._prepare)

    # -- the port --------------------------------------------------------------------------------

    def announce(self, ring: Callable[[], None]) -> None:
        """See `holdfast.ports.gate.Gate`."""
        self._driver = driver_of(asyncio.get_running_loop())
        self._ring = ring
        self._announcing = True

    def look(self) -> GateView:
        """See `holdfast.ports.gate.Gate`."""
        sockets = sum(passage.socket is not None for passage in self._open)
        waiting = any(passage.unannounced for passage in self._open)
        now = self._driver.now() if waiting and self._driver is not None else self._latest
        return GateView(len(self._open) - sockets, sockets, max(now, self._latest))

    def farewell(self) -> int:
        """See `holdfast.ports.gate.Gate`."""
        self._parting = True
        found = [passage.socket for passage in self._open if passage.socket is not None]
        for each in found:
            aside(self._part(each), name="holdfast farewell")
        return len(found)

    def cut(self) -> list[str]:
        """See `holdfast.ports.gate.Gate`."""
        self._closed = True
        names: list[str] = []
        for passage in tuple(self._open):
            names.append(passage.name)
            passage.cut = True
            passage.task.cancel("the server stops")
        return names

    # -- inside ----------------------------------------------------------------------------------

    def _middleware(self) -> Any:
        @web.middleware
        async def gate(request: web.Request, handler: _Handler) -> web.StreamResponse:
            if self._closed:
                return self._refusal()
            task = asyncio.current_task()
            assert task is not None
            passage = _Passage(f"{request.method} {request.path}"[:128], task)
            request[_PASSAGE] = passage
            if self._announcing:
                self._happened()
            self._open.add(passage)
            try:
                return await handler(request)
            except asyncio.CancelledError:
                if not passage.cut or passage.response is not None:
                    raise
                task.uncancel()
                return self._refusal()
            finally:
                self._open.discard(passage)
                if self._announcing:
                    if passage.unannounced:
                        self._happened()
                    self._ring()

        return gate

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        passage = request.get(_PASSAGE)
        if passage is not None:
            passage.response = response
        if (found := _socket(response)) is not None:
            if self._parting:
                aside(self._part(found), name="holdfast farewell")
        elif self._announcing:
            # The header by itself would leave the connection open, and `force_close` by itself
            # would close it without a word.
            response.headers["Connection"] = "close"
            response.force_close()
            if passage is not None:
                passage.announced = True

    async def _part(self, response: _Socket) -> None:
        await asyncio.sleep(0)  # one that is being prepared is ready after that
        await response.close(code=self.code, message=b"service restart")

    def _happened(self) -> None:
        assert self._driver is not None
        self._latest = self._driver.now()
        self._ring()

    def _refusal(self) -> web.Response:
        body = {
            "type": problem_type(CauseKind.SHUTDOWN),
            "title": "The service cannot do this now",
            "status": 503,
            "detail": "It stops; try again.",
        }
        headers = {"Retry-After": self._retry_after, "Cache-Control": "no-store"}
        text = json.dumps(body)
        return web.Response(status=503, text=text, content_type=PROBLEM_TYPE, headers=headers)


class AiohttpApplication:
    """The start-up and clean-up of an application of aiohttp, as a component.

    Args:
        app: the application; it must not be frozen yet.
        returning: see `AiohttpGate`.
        retry_after: see `AiohttpGate`.
        options: what `web.AppRunner` takes, for example `access_log`.

    Attributes:
        gate: what all requests pass.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        returning: bool = True,
        retry_after: Duration = 1.0,
        **options: Any,
    ) -> None:
        self.app = app
        self.gate = AiohttpGate(app, returning=returning, retry_after=retry_after)
        self.runner = web.AppRunner(app, handle_signals=False, **options)

    async def start(self) -> None:
        """Run `on_startup`, and the first halves of `cleanup_ctx`."""
        await self.runner.setup()

    async def prepare(self, request: ShutdownRequest) -> None:
        """There is nothing to prepare."""

    async def stop(self, deadline: Instant) -> None:
        """Run `on_cleanup`, and the rest of `cleanup_ctx`; whoever calls this bounds it."""
        await self.app.cleanup()

    async def wait(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()


class AiohttpServer(GatedServer):
    """A component that serves an application of aiohttp. See the module.

    Args:
        application: started before this.
        sockets: bound; closed at the end.
        drain: how it is let go of; by default with the usual times.
        tls: for TLS.
        backlog: length of the accept queue.
    """

    def __init__(
        self,
        application: AiohttpApplication,
        sockets: Sequence[socket.socket],
        drain: ServerDrain | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        backlog: int = 1024,
    ) -> None:
        super().__init__(drain or GatedDrain(application.gate, listeners=sockets))
        self._application = application
        self._sockets = sockets
        self._tls = tls
        self._backlog = backlog
        self._listening = asyncio.Event()
        self._released = asyncio.Event()
        self._drained = asyncio.Event()

    async def _serve(self) -> None:
        runner = self._application.runner
        sites = [
            web.SockSite(runner, sock, ssl_context=self._tls, backlog=self._backlog)
            for sock in self._sockets
        ]
        try:
            for site in sites:
                await site.start()
            self._listening.set()
            await self._released.wait()
        finally:
            for site in sites:
                await site.stop()
            for sock in self._sockets:
                sock.close()
        await self._application.app.shutdown()
        server = runner.server
        if server is None:
            return
        await self._drained.wait()
        server.pre_shutdown()
        await server.shutdown(_CLOSING)

    async def _opened(self) -> None:
        await self._listening.wait()

    def _release(self) -> None:
        self._released.set()

    def _finished(self) -> None:
        self._drained.set()

    def _abandon(self) -> None:
        server = self._application.runner.server
        if server is not None:
            for connection in tuple(server.connections):
                connection.force_close()


def _socket(response: Any) -> _Socket | None:
    if isinstance(response, _WEBSOCKET):
        found: _Socket = response
        return found
    return None


def _nobody_waits() -> None:
    """No drain is under way."""
