"""A listening socket of a server, which is closed so that nobody in its accept queue is lost.

A listener that other processes share is left to them, with its queue.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from holdfast.domain.instant import Duration
from holdfast.runtime.accept import taken_in
from holdfast.runtime.tasks import aside

__all__ = ["Listener"]

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

        Raises:
            OSError: another process listens there by now.
        """
        loop = asyncio.get_running_loop()
        # Here, because uvloop does not say that it failed: it would go on with a deaf socket.
        self._sock.listen(backlog)
        # A copy, since a loop closes what it is given. And apart from what is ambient here: a
        # connection runs in the context in which its listener was opened.
        opened = loop.create_server(
            make,
            sock=self._sock.dup(),
            ssl=tls,
            backlog=backlog,
            ssl_handshake_timeout=handshake if tls is not None else None,
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
        taken = 0 if self.shared and not last else await taken_in(self._sock)
        await self._leave(server)
        self._sock.close()
        return taken

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
