"""`instrument` and `uninstrument`: classes of the library are exchanged for ours, on one object.

Nothing is patched for others: a client gets a class of its own, its pool another, and that makes
connections of a third. What the pool has already is converted, so sessions at the server stay.
"""

from __future__ import annotations

from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.connection as aio
import redis.connection as sync

from holdfast.adapters.redis.pipelines import bounded_client, plain_client
from holdfast.adapters.redis.pools import bounded_class, bounded_pool, plain_class, plain_pool
from holdfast.adapters.redis.retrying import bounded_retry, plain_retry
from holdfast.adapters.redis.settings import KEEP, MARGIN, Settings
from holdfast.domain.instant import Duration

__all__ = ["instrument", "uninstrument"]

C = TypeVar("C")


def instrument(
    client: C,
    *,
    refuse_below: Duration = 0.0,
    margin: Duration = MARGIN,
    keep: Duration = KEEP,
) -> C:
    """Keep a client of redis-py, or a pool of one, within the budget; the same object.

    Raises:
        TypeError: `client` is something else.
        ValueError: a number of seconds is negative.
    """
    settings = Settings(refuse_below, margin, keep)
    subject: Any = client
    if isinstance(subject, redis.Redis | redis.asyncio.Redis):
        _change_pool(subject.connection_pool, settings)
        if subject.connection is not None:
            _change(subject.connection, settings)
        subject.__class__ = bounded_client(type(subject))
    elif isinstance(subject, aio.ConnectionPool | sync.ConnectionPool):
        _change_pool(subject, settings)
    else:
        raise TypeError(f"{client!r} is no client and no pool of redis-py")
    return client


def uninstrument(client: C) -> C:
    """Undo `instrument`; the same object. One that is not instrumented stays as it is.

    Other clients of the same pool are no longer instrumented either, but for their pipelines.

    Raises:
        TypeError: `client` is something else.
    """
    subject: Any = client
    if isinstance(subject, redis.Redis | redis.asyncio.Redis):
        _change_pool(subject.connection_pool, None)
        if subject.connection is not None:
            _change(subject.connection, None)
        subject.__class__ = plain_client(type(subject))
    elif isinstance(subject, aio.ConnectionPool | sync.ConnectionPool):
        _change_pool(subject, None)
    else:
        raise TypeError(f"{client!r} is no client and no pool of redis-py")
    return client


def _change_pool(pool: Any, settings: Settings | None) -> None:
    kind: Any = type(pool)
    pool.__class__ = plain_pool(kind) if settings is None else bounded_pool(kind, settings)
    for connection in _connections(pool):
        _change(connection, settings)


def _connections(pool: Any) -> list[Any]:
    if hasattr(pool, "_connections"):  # of the blocking one for threads
        return [*pool._connections]
    return [*pool._available_connections, *pool._in_use_connections]


def _change(connection: Any, settings: Settings | None) -> None:
    connection = getattr(connection, "_conn", connection)  # behind a cache
    kind: Any = type(connection)
    retry = connection.retry
    if settings is None:
        connection.__class__ = plain_class(kind)
        connection.__dict__["retry"] = plain_retry(retry)
    else:
        connection.__class__ = bounded_class(kind, settings)
        connection.__dict__["retry"] = bounded_retry(retry, settings.refuse_below)
