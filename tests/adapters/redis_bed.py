"""Clients of every kind before a real Redis, and what they are put through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import (  # type: ignore[attr-defined]
    _AsyncHiredisParser,
    _AsyncRESP2Parser,
    _AsyncRESP3Parser,
)
from redis.connection import (  # type: ignore[attr-defined]
    _HiredisParser,
    _RESP2Parser,
    _RESP3Parser,
)

from holdfast.adapters.redis import instrument

__all__ = [
    "BUDGET",
    "ENDED",
    "KINDS",
    "PATIENCE",
    "eventually",
    "eventually_blocking",
    "listed",
    "of_loop",
    "of_thread",
]

BUDGET = 0.25
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""
PATIENCE = 10.0

KINDS: dict[str, tuple[Any, Any, int]] = {
    "hiredis-3": (_AsyncHiredisParser, _HiredisParser, 3),
    "hiredis-2": (_AsyncHiredisParser, _HiredisParser, 2),
    "python-3": (_AsyncRESP3Parser, _RESP3Parser, 3),
    "python-2": (_AsyncRESP2Parser, _RESP2Parser, 2),
}
"""Parsers and protocols."""


@asynccontextmanager
async def of_loop(
    port: int,
    kind: str = "hiredis-3",
    *,
    ours: bool = True,
    blocking: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Any]:
    """A `redis.asyncio.Redis`, instrumented with `settings`."""
    parser, _, protocol = KINDS[kind]
    pools: Any = redis.asyncio
    make = pools.BlockingConnectionPool if blocking else pools.ConnectionPool
    pool = make(
        host="127.0.0.1", port=port, parser_class=parser, protocol=protocol,
        client_name="bed", decode_responses=True, **(options or {}),
    )  # fmt: skip
    client: Any = redis.asyncio.Redis(connection_pool=pool)
    if ours:
        instrument(client, **settings)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.aclose()


@contextmanager
def of_thread(
    port: int,
    kind: str = "hiredis-3",
    *,
    ours: bool = True,
    blocking: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """A `redis.Redis`, instrumented with `settings`."""
    _, parser, protocol = KINDS[kind]
    make: Any = redis.BlockingConnectionPool if blocking else redis.ConnectionPool
    pool = make(
        host="127.0.0.1", port=port, parser_class=parser, protocol=protocol,
        client_name="bed", decode_responses=True, **(options or {}),
    )  # fmt: skip
    client: Any = redis.Redis(connection_pool=pool)
    if ours:
        instrument(client, **settings)
    try:
        yield client
    finally:
        client.close()
        pool.disconnect()


def listed(port: int, name: str = "bed") -> list[dict[str, str]]:
    """The connections of that name, as the server lists them."""
    with redis.Redis(port=port, decode_responses=True) as admin:
        found: Any = admin.client_list()
    return [entry for entry in found if entry["name"] == name]


def eventually_blocking(holds: Callable[[], bool]) -> None:
    """Wait until it holds, in a thread.

    Raises:
        AssertionError: it does not.
    """
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.01)


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until it holds.

    Raises:
        AssertionError: it does not.
    """
    until = time.monotonic() + PATIENCE
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < until, "it never came to that"
        await asyncio.sleep(0.01)
