"""The request that ends a statement, over a connection of its own; and connects that were cut.

asyncpg has one too. That asks the server for TLS first, also where the connection has none, which
is a round trip more, and where it is cut it leaves an error behind that nobody retrieves.

What belongs here: what asyncpg leaves to be done after a cancellation. Traps: the server has passed
a request on only when it has closed; and pgbouncer before 1.19 ends itself ("bad client state")
where who asks has gone before that, so a request that is sent is waited for, by nobody if need be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from struct import pack
from traceback import walk_tb
from typing import Any, Final

import asyncpg
from asyncpg.connect_utils import TLSUpgradeProto

from holdfast.domain.instant import Duration
from holdfast.runtime.tasks import aside

__all__ = ["left_alone", "request_cancel", "retrieved"]

_CODE: Final = 80_877_102
_PATIENCE: Final[Duration] = 10.0
"""Seconds that a request may take which nobody waits for."""


class _Request(asyncio.Protocol):
    def __init__(self, message: bytes, done: asyncio.Future[None]) -> None:
        self._message = message
        self._done = done

    def connection_made(self, transport: Any) -> None:
        transport.write(self._message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def request_cancel(
    loop: asyncio.AbstractEventLoop, address: Any, pid: int, secret: int
) -> None:
    """Ask the server at `address` to end what the connection with this key does.

    Args:
        loop: the running one.
        address: a host and a port, or the path of a socket.
        pid: of the key.
        secret: of the key.

    Raises:
        OSError: it cannot be reached.
    """
    done: asyncio.Future[None] = loop.create_future()
    request = _Request(pack("!llll", 16, _CODE, pid, secret), done)
    if isinstance(address, str):
        transport, _ = await loop.create_unix_connection(lambda: request, address)
    else:
        transport, _ = await loop.create_connection(lambda: request, *address)
    try:
        await done
    finally:
        transport.abort()


async def left_alone(request: Coroutine[Any, Any, None]) -> None:
    """Await `request`, which goes on where this is cancelled, until it has ended or is too old.

    Raises:
        OSError: it cannot be reached, or is too old.
    """
    task = aside(_bounded(request), name="asyncpg cancel request under way")
    exc = await asyncio.shield(task)
    if exc is not None:
        raise exc


async def _bounded(request: Coroutine[Any, Any, None]) -> Exception | None:
    # What it raises is handed over, as there may be nobody any more who would look at it.
    try:
        async with asyncio.timeout(_PATIENCE):
            await request
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        return exc
    return None


def retrieved(exc: BaseException | None) -> None:
    """Take note of the error that a connect which `exc` has cut would complain about later.

    asyncpg has a future for the answer to its wish for TLS. When it is cut right before it waits
    for that, nobody does, and the end of the connection is its error.
    """
    while exc is not None:
        for frame, _ in walk_tb(exc.__traceback__):
            protocol = frame.f_locals.get("protocol")
            if isinstance(protocol, TLSUpgradeProto):
                protocol.on_data.add_done_callback(_seen)
        exc = exc.__cause__


def _seen(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
