"""The pools of a client in a stop of the process: idle connections are closed first.

httpcore closes an idle connection when somebody uses the pool again, or with the client. In a stop
that is late: servers behind it wait for connections that nobody will use.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast.adapters.httpx.library import LIBRARIES
from holdfast.adapters.httpx.pools import pools_below
from holdfast.domain.instant import Duration

__all__ = ["ClientPool", "pool_of"]

_DEPTH: Final = 3
"""A tunnel holds a connection that holds a connection."""


def pool_of(client: object) -> ClientPool:
    """The pools of a client, for `holdfast.lifecycle.current().pool(name, pool_of(client))`.

    Args:
        client: a `Client` or `AsyncClient` of httpx or httpx2, instrumented or not.

    Raises:
        TypeError: it is something else.
    """
    kinds = [kind for lib in LIBRARIES.values() for kind in (lib.api.AsyncClient, lib.api.Client)]
    if not isinstance(client, tuple(kinds)):
        raise TypeError(f"{client!r} is not a client of {' or '.join(LIBRARIES)}")
    return ClientPool(client)


class ClientPool:
    """A `holdfast.lifecycle.Pool`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def preclean(self, idle: Duration) -> int:
        """Close what is idle; the others may be idle for `idle` seconds from now on."""
        closed = 0
        mounts = [mount for mount in self._client._mounts.values() if mount is not None]
        for transport in (self._client._transport, *mounts):
            for pool in pools_below(transport):
                closed += await _clean(pool, idle)
        return closed


async def _clean(pool: Any, idle: Duration) -> int:
    with pool._optional_thread_lock:
        pool._keepalive_expiry = idle
        # One that is idle may have been promised to a request that is about to be sent on it.
        promised = {id(request.connection) for request in pool._requests}
        closing: list[Any] = []
        for connection in list(pool._connections):
            if connection.is_idle() and id(connection) not in promised:
                pool._connections.remove(connection)
                closing.append(connection)
            else:
                _shorten(connection, idle)
    done = pool._close_connections(closing)
    if done is not None:
        await done
    return len(closing)


def _shorten(connection: Any, idle: Duration) -> None:
    for _ in range(_DEPTH):
        if connection is None:
            return
        if hasattr(connection, "_keepalive_expiry"):
            connection._keepalive_expiry = idle
        connection = getattr(connection, "_connection", None)
