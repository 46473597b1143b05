"""The pools of psycopg_pool: waiting for a connection is bounded, and none is lost by cancelling.

    pool = AsyncConnectionPool("dbname=shop", min_size=4, max_size=10, open=False)

They are those of psycopg_pool with connections of ours by default. As a `holdfast.ports.pool.Pool`
they close what is idle when the process stops.

Traps. The workers of a pool outlive whoever opens it, so they must not inherit its scope. A
cancellation in the midst of a return would lose the connection, for the pool still counts it: where
a return has to wait for anything, a task of its own finishes it. The `wait_for` of Python 3.11,
which the pool waits with, can swallow a cancellation that comes together with a connection: it is
looked for afterwards, and the connection goes back.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from holdfast.adapters.psycopg.aio import AsyncConnection
from holdfast.adapters.psycopg.blocking import Connection
from holdfast.adapters.psycopg.bounds import Bounds
from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.clock import monotonic
from holdfast.runtime.outbound import both
from holdfast.runtime.scope import AMBIENT
from holdfast.runtime.tasks import aside

__all__ = ["AsyncConnectionPool", "ConnectionPool"]

ACT = TypeVar("ACT", bound="psycopg.AsyncConnection[Any]")
CT = TypeVar("CT", bound="psycopg.Connection[Any]")

_HOME: Final = "holdfast.adapters.psycopg.pools"
_BLANK: Final = ("_info", "_pgconn", "_encoding")
_EXCEEDED: Final[Any] = both(DeadlineExceeded, PoolTimeout, _HOME, *_BLANK)
_INSUFFICIENT: Final[Any] = both(InsufficientBudget, PoolTimeout, _HOME, *_BLANK)


_IDLE_SINCE: Final[WeakKeyDictionary[Any, Instant]] = WeakKeyDictionary()
"""When a connection was given back, of pools in processes that stop."""


class _Turn(Bounded):
    """One wait for a connection; its errors are `psycopg_pool.PoolTimeout` as well."""

    __slots__ = ()

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        error: DeadlineExceeded = _EXCEEDED(cause)
        return error

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        error: InsufficientBudget = _INSUFFICIENT(cause)
        return error


class AsyncConnectionPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """A `psycopg_pool.AsyncConnectionPool` whose connections keep to the ambient deadline.

    Raises, from `connection` and `getconn`, besides what psycopg_pool does:
        InsufficientBudget: nothing is left. Also a `psycopg_pool.PoolTimeout`.
        DeadlineExceeded: no connection was free in time. Also a `PoolTimeout`.
    """

    _idle: Duration | None = None

    def __init__(self, conninfo: Any = "", *, connection_class: Any = None, **kwargs: Any) -> None:
        kind = cast("Any", AsyncConnection if connection_class is None else connection_class)
        super().__init__(conninfo, connection_class=kind, **kwargs)

    def _open(self) -> None:
        outside = contextvars.copy_context()
        outside.run(AMBIENT.set, None)
        outside.run(super()._open)

    async def getconn(self, timeout: float | None = None) -> ACT:
        """See `psycopg_pool.AsyncConnectionPool.getconn`.

        Raises:
            InsufficientBudget, DeadlineExceeded: see the class.
        """
        bound = _Turn(f"pool {self.name}")
        bound.admit()
        wish, left = self.timeout if timeout is None else timeout, bound.left
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        try:
            conn = await super().getconn(min(wish, left))
        except PoolTimeout as exc:
            if wish < left:
                raise
            raise bound.over(_crowd(self)) from exc
        except asyncio.CancelledError as exc:
            exc.add_note(f"waited for a connection: {_crowd(self)}")
            raise
        if task is not None and task.cancelling() > before:
            await self.putconn(conn)
            raise asyncio.CancelledError
        return conn

    async def _putconn(self, conn: ACT, from_getconn: bool) -> None:
        idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
        if idle and not self._lock.locked() and not self._waiting and self._idle is None:
            await super()._putconn(conn, from_getconn)  # does not wait for anything
        else:
            back = aside(self._put_back(conn, from_getconn), name=f"{self.name}-return")
            await asyncio.shield(back)

    async def _put_back(self, conn: ACT, from_getconn: bool) -> None:
        if isinstance(conn, Bounds):
            with conn.returning():
                await super()._putconn(conn, from_getconn)
        else:
            await super()._putconn(conn, from_getconn)

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.ports.pool.Pool`."""
        self._idle = idle
        self._min_size = 0
        return await self._close_idle(NEVER)

    async def _add_to_pool(self, conn: ACT) -> None:
        await super()._add_to_pool(conn)
        if self._idle is not None and not self.closed:
            _IDLE_SINCE[conn] = monotonic()
            await self._sched.enter(self._idle, self._close_later)

    async def _close_later(self) -> None:
        if self._idle is not None:
            await self._close_idle(monotonic() - self._idle)

    async def _close_idle(self, since: Instant) -> int:
        async with self._lock:
            old = _taken(self, since)
        for conn in old:
            await self._close_connection(conn)
        return len(old)


class ConnectionPool(psycopg_pool.ConnectionPool[CT]):
    """A `psycopg_pool.ConnectionPool` whose connections keep to the ambient deadline.

    Raises: see `AsyncConnectionPool`.
    """

    _idle: Duration | None = None

    def __init__(self, conninfo: Any = "", *, connection_class: Any = None, **kwargs: Any) -> None:
        kind = cast("Any", Connection if connection_class is None else connection_class)
        super().__init__(conninfo, connection_class=kind, **kwargs)

    def getconn(self, timeout: float | None = None) -> CT:
        """See `psycopg_pool.ConnectionPool.getconn`.

        Raises:
            InsufficientBudget, DeadlineExceeded: see the class.
        """
        bound = _Turn(f"pool {self.name}")
        bound.admit()
        wish, left = self.timeout if timeout is None else timeout, bound.left
        try:
            return super().getconn(min(wish, left))
        except PoolTimeout as exc:
            if wish < left:
                raise
            raise bound.over(_crowd(self)) from exc

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.ports.pool.Pool`."""
        self._idle = idle
        self._min_size = 0
        return self._close_idle(NEVER)

    def _add_to_pool(self, conn: CT) -> None:
        super()._add_to_pool(conn)
        if self._idle is not None and not self.closed:
            _IDLE_SINCE[conn] = monotonic()
            self._sched.enter(self._idle, self._close_later)

    def _close_later(self) -> None:
        if self._idle is not None:
            self._close_idle(monotonic() - self._idle)

    def _close_idle(self, since: Instant) -> int:
        with self._lock:
            old = _taken(self, since)
        for conn in old:
            self._close_connection(conn)
        return len(old)


def _crowd(pool: Any) -> str:
    """How it is in a pool, for people."""
    stats = pool.get_stats()
    most, waiting = stats["pool_max"], stats.get("requests_waiting", 0)
    return f"all connections are in use (at most {most}), {waiting} more wait"


def _taken(pool: Any, since: Instant) -> list[Any]:
    """Take out of a pool, whose lock is held, what was given back at `since` or before."""
    old = [conn for conn in pool._pool if _IDLE_SINCE.get(conn, -NEVER) <= since]
    for conn in old:
        pool._pool.remove(conn)
    pool._nconns -= len(old)
    pool._nconns_min = min(pool._nconns_min, len(pool._pool))
    return old
