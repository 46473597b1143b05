"""A listening socket whose accept queue is emptied before it goes.

The kernel completes connections on its own and keeps them in the accept queue. To the clients they
are connected, and they send; when the listener is closed, all that waits there is reset. So first
the way in is barred, then the queue is emptied, then the listener is closed:

    TCP   a socket filter that drops what arrives at the listener: no handshake is completed any
          more, while connections that are there already are not touched by it
    Unix  the listener is shut down for reading: new connections are refused, the queue stays
    else  a backlog of zero, which leaves a gap of some microseconds

A listener that other processes share is none of that: it is left to them, with its queue.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from holdfast.domain.instant import Duration
from holdfast.runtime.tasks import aside

__all__ = ["Listener", "bar"]

_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of <asm-generic/socket.h>
_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # one instruction: return 0 bytes
_MOST_QUEUED: Final = 65_536
"""What is taken in at the most; no accept queue is longer."""

Factory = Callable[[], asyncio.Protocol]


class Listener:
    """One listening socket of a server.

    Args:
        sock: bound, and not yet listening or listening already.
        shared: whether other processes accept from it as well.
    """

    def __init__(self, sock: socket.socket, *, shared: bool = False) -> None:
        self._sock = sock
        self.shared = shared
        self._server: asyncio.Server | None = None
        self._make: Factory | None = None
        self._ssl: ssl.SSLContext | None = None
        self._patience: Duration | None = None

    async def open(
        self,
        make: Factory,
        *,
        backlog: int,
        tls: ssl.SSLContext | None = None,
        handshake: Duration | None = None,
    ) -> None:
        """Accept connections.

        Args:
            make: makes the protocol of each.
            backlog: length of the accept queue.
            tls: for TLS.
            handshake: seconds that a TLS handshake may take.
        """
        loop = asyncio.get_running_loop()
        self._make, self._ssl = make, tls
        self._patience = handshake if tls is not None else None
        # A copy, since a loop closes what it is given. And apart from what is ambient here: a
        # connection runs in the context in which its listener was opened.
        opened = loop.create_server(
            make,
            sock=self._sock.dup(),
            ssl=tls,
            backlog=backlog,
            ssl_handshake_timeout=self._patience,
        )
        self._server = await aside(opened, name="holdfast listener")

    async def close(self, *, last: bool) -> int:
        """Accept no more. The number of connections that were taken in from the queue.

        Args:
            last: whether nobody else serves what waits in the queue.
        """
        server, self._server = self._server, None
        if server is None:
            return 0
        if self.shared and not last:
            await self._leave(server)
            self._sock.close()
            return 0
        self._sock.setblocking(False)
        bar(self._sock)
        queued = self._empty()
        await self._leave(server)
        self._sock.close()
        for connection in queued:
            await self._take_in(connection)
        return len(queued)

    async def _leave(self, server: asyncio.Server) -> None:
        """Have the loop accept no more.

        asyncio accepts in one turn and makes the connection in a task that runs in the next one. If
        its server is closed in between, that task fails, and with it the connection.
        """
        loop = asyncio.get_running_loop()
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.close()

    def _empty(self) -> list[socket.socket]:
        # In one go: as long as the barred listener is there, new clients knock in vain.
        queued: list[socket.socket] = []
        while len(queued) < _MOST_QUEUED:
            try:
                queued.append(self._sock.accept()[0])
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionAbortedError:
                continue
            except OSError:
                break  # a Unix socket that is shut down and has no more
        return queued

    async def _take_in(self, connection: socket.socket) -> None:
        assert self._make is not None
        loop = asyncio.get_running_loop()
        made = loop.connect_accepted_socket(
            self._make, connection, ssl=self._ssl, ssl_handshake_timeout=self._patience
        )
        if self._ssl is None:
            await aside(made, name="holdfast connection")
        else:  # a client that is slow to shake hands must not keep the others waiting
            aside(_shaken(made), name="holdfast connection")


async def _shaken(made: Awaitable[object]) -> None:
    with suppress(OSError, ssl.SSLError):  # a handshake that fails is the client's affair
        await made


def bar(sock: socket.socket) -> bool:
    """Let no new connection into the accept queue; whether that is certain."""
    if sock.family == socket.AF_UNIX:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)
            return True
        return False
    if sys.platform.startswith("linux"):
        program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
        filter_ = struct.pack("HL", 1, ctypes.addressof(program))
        with suppress(OSError):  # a kernel, or a sandbox, that has no filters
            sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter_)
            return True
    with suppress(OSError):
        sock.listen(0)
    return False
