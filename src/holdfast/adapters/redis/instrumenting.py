"""`instrument` and `uninstrument`: classes of the library are exchanged for ours, on one object.

Nothing is patched for others: a client gets a class of its own, its pool another, and that makes
connections of a third. What the pool has already is converted, so sessions at the server stay.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import redis.asyncio as aio_redis
import redis.asyncio.connection as aio
import redis.connection as sync
from redis.client import Redis
from redis.cluster import RedisCluster

from holdfast.adapters.redis.clusters import change_nodes, pools_of_cluster
from holdfast.adapters.redis.pipelines import bounded_client
from holdfast.adapters.redis.pools import bounded_class, bounded_pool
from holdfast.adapters.redis.retrying import bounded_retry, plain_retry
from holdfast.adapters.redis.settings import KEEP, MARGIN, Settings
from holdfast.adapters.redis.variants import behind, kind_of, plain
from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration

__all__ = ["ClientPool", "instrument", "pool_of", "uninstrument"]

C = TypeVar("C")

_CLIENTS: Final[Any] = (Redis, aio_redis.Redis)
_POOLS: Final[Any] = (sync.ConnectionPool, aio.ConnectionPool)
_CLUSTERS: Final[Any] = (RedisCluster, aio_redis.RedisCluster)


def instrument(
    client: C,
    *,
    refuse_below: Duration = 0.0,
    margin: Duration = MARGIN,
    keep: Duration = KEEP,
) -> C:
    """Keep a client of redis-py within what is left; the same object.

    Each command may raise, beside the errors of redis-py:

    - `DeadlineExceeded`, which is a `redis.TimeoutError` too: what was left is spent, or so nearly
      that a server which waits, as for `BLPOP`, had to stop;
    - `InsufficientBudget`, likewise: refused before anything was sent;
    - `OutcomeUnknown`, likewise: a transaction was sent, and the answer to its `EXEC` never came.

    In a coroutine a deadline of a scope around the command ends that scope, as always: by
    cancelling what runs in it.

    Args:
        client: a `Redis`, a `RedisCluster` or a pool of connections, for a loop or for threads. All
            clients of its pool are covered, and all that it makes: pipelines, subscriptions, locks.
        refuse_below: seconds; a command with less left is refused before anything is sent.
        margin: seconds by which a command that waits at the server is to end sooner than what is
            left, so that its answer is here in time.
        keep: seconds that the answer to a command which was cut may take to come, so that its
            connection can be used again, behind the back of whoever was cut; 0.0 to close it at
            once. In threads it is closed always.

    Raises:
        TypeError: `client` is something else.
        ValueError: a number of seconds is negative.
        UsageError: redis-py is older than 6.
    """
    _change_all(client, Settings(refuse_below, margin, keep))
    return client


def uninstrument(client: C) -> C:
    """Undo `instrument`; the same object. One that is not instrumented stays as it is.

    Other clients of the same pool are no longer covered either.

    Raises:
        TypeError: `client` is something else.
        UsageError: a connection waits for the answer to a command that was cut; see `keep`.
    """
    _change_all(client, None)
    return client


def pool_of(client: object) -> ClientPool:
    """The pools of a client, for `holdfast.lifecycle.current().pool(name, pool_of(client))`.

    Args:
        client: one that is instrumented; not a cluster for a loop.

    Raises:
        TypeError: it is something else.
    """
    subject: Any = client
    pools: list[Any]
    if isinstance(subject, RedisCluster):
        pools = pools_of_cluster(subject)
    elif isinstance(subject, _CLIENTS):
        pools = [subject.connection_pool]
    else:
        pools = [subject]
    if not all(hasattr(pool, "preclean") for pool in pools):
        raise TypeError(f"{client!r} has no pools that are instrumented")
    return ClientPool(pools)


class ClientPool:
    """A `holdfast.lifecycle.Pool`; see `pool_of`."""

    def __init__(self, pools: list[Any]) -> None:
        self._pools = pools

    async def preclean(self, idle: Duration) -> int:
        """Close what is idle; the others may be idle for `idle` seconds from now on.

        In threads a connection that is given back is closed at once: nobody is there to wait.
        """
        closed = 0
        for pool in self._pools:
            closed += await pool.preclean(idle)
        return closed


def _change_all(client: object, settings: Settings | None) -> None:
    subject: Any = client
    if not hasattr(sync.AbstractConnection, "connect_check_health"):
        raise UsageError("holdfast.adapters.redis needs redis-py 6 or later")
    if isinstance(subject, _CLUSTERS):
        change_nodes(subject, settings, _change_pool, _change)
    elif isinstance(subject, _POOLS):
        _change_pool(subject, settings)
    elif isinstance(subject, _CLIENTS):
        _change_pool(subject.connection_pool, settings)
        if subject.connection is not None:
            _change(subject.connection, settings)
        kind = kind_of(subject)
        subject.__class__ = plain(kind) if settings is None else bounded_client(kind, settings)
    else:
        raise TypeError(f"{client!r} is no client and no pool of redis-py")


def _change_pool(pool: Any, settings: Settings | None) -> None:
    kind = kind_of(pool)
    if settings is None and getattr(pool, "_holdfast_unfinished", None):
        raise UsageError(
            "a connection of this pool waits for the answer to a command that was cut; "
            "undo its instrumentation when nothing is under way"
        )
    if "release" in vars(pool):
        del pool.release  # of one that a stop has emptied
    pool.__class__ = plain(kind) if settings is None else bounded_pool(kind, settings)
    blocking = getattr(pool, "_connections", None)  # of the one for threads alone
    if blocking is None:
        blocking = [*pool._available_connections, *pool._in_use_connections]
    for connection in blocking:
        _change(connection, settings)


def _change(connection: Any, settings: Settings | None) -> None:
    connection = behind(connection)
    kind = kind_of(connection)
    if settings is None:
        if hasattr(connection, "abandoned"):
            connection.abandoned()
        connection.__class__ = plain(kind)
        connection.retry = plain_retry(connection.retry)
    else:
        connection.__class__ = bounded_class(kind, settings)
        if hasattr(connection, "adopted") and kind is plain(kind):
            connection.adopted()
        connection.retry = bounded_retry(connection.retry, settings)
