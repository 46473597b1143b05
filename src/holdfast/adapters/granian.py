"""granian, embedded: fast, and with the best HTTP/2 of those that Python has.

    gate = Gate(application)                                   # adapters.asgi
    host.add("server", GranianServer(gate, [sock], GatedDrain(gate)))

Experimental, and so says granian itself of being embedded. It has one worker and no metrics; its
connections live in Rust, out of reach. What that means for a stop:

    WebSockets  are dropped without a close frame as soon as it is told to stop, so they have to be
                told before: the drain does that
    HTTP/2      gets its GOAWAY in two steps, by granian
    the end     a request that never ends would hold it for ever: the gate cancels it
    lifespan    is not run: the application is a component of its own
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration
from holdfast.ports.gate import ServerDrain
from holdfast.runtime.gated import GatedServer

__all__ = ["GranianServer"]

_App = Callable[[Any, Any, Any], Awaitable[None]]
_SPAWNED: Final[Duration] = 0.05
"""Seconds after which a server that cannot start has said so. What connects before it accepts waits
in the queue of the listener."""


class _Embedded(Server):
    """granian's embedded server on a socket that is bound already."""

    def __init__(self, app: _App, sock: socket.socket, backlog: int, **options: Any) -> None:
        name: Any = sock.getsockname()
        if sock.family != socket.AF_UNIX:  # for its log
            options |= {"address": name[0], "port": name[1]}
        super().__init__(app, interface=Interfaces.ASGINL, backlog=backlog, **options)
        self._given = sock
        self._shd: Any

    def _init_shared_socket(self) -> None:
        # A copy: granian closes what it is given.
        uds = self._given.family == socket.AF_UNIX
        make: Any = SocketHolder
        self._shd = make(os.dup(self._given.fileno()), uds, self.backlog)


class GranianServer(GatedServer):
    """A component that serves by granian. See the module.

    Args:
        app: the application behind its gate.
        sockets: one, bound; closed at the end.
        drain: how it is let go of.
        http2: whether HTTP/2 is spoken.
        certificate: path of the certificate chain (PEM), for TLS; empty for none.
        key: path of its private key.
        backlog: length of the accept queue.
        options: everything else that `granian.server.embed.Server` takes.

    Raises:
        OSError: the certificate or the key cannot be read, or is none.
        UsageError: there is not exactly one socket.
    """

    def __init__(
        self,
        app: _App,
        sockets: Sequence[socket.socket],
        drain: ServerDrain,
        *,
        http2: bool = True,
        certificate: str = "",
        key: str = "",
        backlog: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(drain)
        if len(sockets) != 1:
            raise UsageError(f"granian listens on one socket, not on {len(sockets)}")
        if certificate:
            # Here, so that what is wrong with them is known before anything is started.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key or None)
            options |= {"ssl_cert": Path(certificate), "ssl_key": Path(key or certificate)}
        self._app = app
        self._sock = sockets[0]
        self._backlog = backlog
        self._options = {"http": HTTPModes.auto if http2 else HTTPModes.http1, **options}
        self._server: Any = None  # granian's own methods have no types

    async def _serve(self) -> None:
        # By us, so that what is wrong shows here; and the queue is there before the worker is.
        self._sock.listen(self._backlog)
        self._sock.setblocking(False)
        self._server = _Embedded(self._app, self._sock, self._backlog, **self._options)
        try:
            await self._server.serve()
        finally:
            self._sock.close()

    async def _opened(self) -> None:
        await asyncio.sleep(_SPAWNED)

    def _release(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._sock.close()

    def _unsent(self) -> bool:
        return True  # out of reach: as long as it does not end, some client may still be reading

    def _abandon(self) -> None:
        if self._server is not None:
            for worker in self._server.wrks:
                with suppress(Exception):  # it is over either way
                    worker.kill()
