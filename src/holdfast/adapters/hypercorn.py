"""hypercorn, embedded: HTTP/1.1, HTTP/2, and WebSockets over both.

    gate = Gate(application)                                   # adapters.asgi
    host.add("server", HypercornServer(gate, [sock], GatedDrain(gate)))

The connections are hypercorn's own, and so are its protocols. What is ours is the loop around them,
which differs from `hypercorn.asyncio.serve` in this:

    it ends       since Python 3.12 hypercorn waits for its listener to be done with all
                  connections before it looks at its graceful time-out: one idle client holds it
    GOAWAY        in two steps: first one that names the highest stream there can be, so that what
                  is on the wire is served; the last one when nothing is served any more
    TLS           a client that does not answer the close is cut off, instead of waiting for 30 s
    lifespan      is not run: the application is a component of its own

HTTP/3 is left out: its connections are no streams, and nothing of this reaches them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.protocol.h2 import H2Protocol

from holdfast.domain.wire.goaway import FIRST_GOAWAY
from holdfast.ports.gate import ServerDrain
from holdfast.runtime.gated import GatedServer
from holdfast.runtime.tasks import aside

__all__ = ["HypercornServer"]


_App = Callable[[Any, Any, Any], Awaitable[None]]


class _Stop:
    """What the connections of one server need to know of its stop."""

    announced = False


class _Connection(TCPServer):
    """One connection of hypercorn's, that says GOAWAY in time."""

    def __init__(self, stop: _Stop, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stop = stop
        self._goaway_sent = False
        self._served = False

    async def protocol_send(self, event: Event) -> None:
        await super().protocol_send(event)
        if isinstance(event, Updated):
            # Its first request has begun. A connection that is new has that before it is told: some
            # clients would dial again at once, and arrive here again.
            self._served = True
            if self._stop.announced:
                self.announce()

    @property
    def _http2(self) -> H2Protocol | None:
        # Before its first step, or while it is still shaking hands, it has none.
        wrapper: Any = getattr(self, "protocol", None)
        found: Any = getattr(wrapper, "protocol", None)
        return found if isinstance(found, H2Protocol) else None

    def announce(self) -> None:
        """Tell the client to open its streams elsewhere."""
        if self._http2 is None or self._goaway_sent or not self._served:
            return
        if not self.writer.transport.is_closing():
            self._goaway_sent = True
            self.writer.write(FIRST_GOAWAY)  # frames are written whole, so it comes between two

    async def leave(self) -> None:
        """Say the last GOAWAY where nothing is served; hypercorn does where something is."""
        protocol = self._http2
        if protocol is not None and protocol.idle and not self.writer.transport.is_closing():
            protocol.connection.close_connection()
            self.writer.write(protocol.connection.data_to_send())

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken."""
        return self.writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Cut it off."""
        self.writer.transport.abort()


class HypercornServer(GatedServer):
    """A component that serves by hypercorn. See the module.

    Args:
        app: the application behind its gate.
        sockets: bound; closed when the listener goes.
        drain: how it is let go of.
        config: of hypercorn: logs, limits, `alpn_protocols`, and `certfile` and `keyfile` for TLS.
            What it says of addresses, workers, lifespan and graceful time-outs counts for nothing.
        tls: over what the configuration says.
        state: what the application shares with its requests.
    """

    def __init__(
        self,
        app: _App,
        sockets: Sequence[socket.socket],
        drain: ServerDrain,
        *,
        config: Config | None = None,
        tls: ssl.SSLContext | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(drain)
        self._app = ASGIWrapper(app)  # pyright: ignore[reportArgumentType]
        self._sockets = sockets
        self._config = Config() if config is None else config
        self._tls = tls
        self._state = {} if state is None else state
        self._context = WorkerContext(None)
        self._connections: dict[asyncio.Task[Any], _Connection] = {}
        self._stop = _Stop()
        self._listening = asyncio.Event()
        self._released = asyncio.Event()

    @classmethod
    def of(
        cls,
        app: _App,
        sockets: Sequence[socket.socket],
        drain: ServerDrain,
        *,
        http2: bool = True,
        access_log: bool = False,
        certificate: str = "",
        key: str = "",
    ) -> HypercornServer:
        """A server that is told what all servers are told.

        Args:
            app: see the class.
            sockets: see the class.
            drain: see the class.
            http2: whether HTTP/2 is offered over TLS. In the clear hypercorn speaks it with whoever
                begins with it.
            access_log: whether each request is logged, to standard output.
            certificate: path of the certificate chain (PEM), for TLS; empty for none.
            key: path of its private key; empty where that is in the same file.

        Raises:
            OSError: the certificate or the key cannot be read, or is none.
        """
        config = Config()
        config.alpn_protocols = ["h2", "http/1.1"] if http2 else ["http/1.1"]
        if access_log:
            config.accesslog = "-"
        tls = None
        if certificate:
            config.certfile, config.keyfile = certificate, key or certificate
            tls = config.create_ssl_context()
        return cls(app, sockets, drain, config=config, tls=tls)

    # -- the server ------------------------------------------------------------------------------

    async def _serve(self) -> None:
        config = self._config
        tls = self._tls or (config.create_ssl_context() if config.ssl_enabled else None)
        servers: list[asyncio.Server] = []
        try:
            for sock in self._sockets:
                # A copy, since a loop closes what it is given.
                server = await asyncio.start_server(
                    self._connected,
                    sock=sock.dup(),
                    ssl=tls,
                    backlog=config.backlog,
                    ssl_handshake_timeout=config.ssl_handshake_timeout if tls else None,
                )
                servers.append(server)
            self._listening.set()
            await self._released.wait()
        finally:
            for server in servers:
                server.close()
            for sock in self._sockets:  # else there would still be a listener
                sock.close()
        for connection in tuple(self._connections.values()):
            await connection.leave()
        await self._context.terminated.set()
        while self._connections:
            await asyncio.wait(tuple(self._connections))

    async def _opened(self) -> None:
        await self._listening.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(
            self._stop,
            self._app,
            task.get_loop(),
            self._config,
            self._context,
            self._state,
            reader,
            writer,
        )
        self._connections[task] = connection
        try:
            await connection
        finally:
            del self._connections[task]

    def _announce(self) -> None:
        self._stop.announced = True
        for connection in tuple(self._connections.values()):
            connection.announce()

    def _release(self) -> None:
        self._released.set()

    def _unsent(self) -> bool:
        return any(connection.unsent for connection in self._connections.values())

    def _abandon(self) -> None:
        self._released.set()
        for task, connection in tuple(self._connections.items()):
            connection.abort()
            aside(_end(task), name="holdfast abandon")


async def _end(task: asyncio.Task[Any]) -> None:
    # hypercorn takes one cancellation for a client that has gone; its handler gets a second one.
    for _ in range(3):
        if task.done():
            return
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
