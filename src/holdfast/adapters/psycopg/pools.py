"""The pools of psycopg_pool: waiting for a connection is bounded, and none is lost by cancelling.

    pool = AsyncConnectionPool("dbname=shop", min_size=4, max_size=10, open=False)

They are those of psycopg_pool with connections of ours by default. As a `holdfast.ports.pool.Pool`
they close what is idle when the process stops.

Traps. The workers of a pool outlive whoever opens it, so they must not inherit its scope. A
cancellation in the midst of a return would lose the connection, for the pool still counts it: where
a return has to wait for anything, a task of its own finishes it. The pool waits with `wait_for` on
a condition; in Python 3.11 a cancellation that comes together with the time-out leaves the lock of
that behind, and then nobody ever gets a connection again. So the place in the queue is one of ours,
a future.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import PoolTimeout
from psycopg_pool.pool_async import ReturnConnection

from holdfast.adapters.psycopg.aio import AsyncConnection
from holdfast.adapters.psycopg.blocking import Connection
from holdfast.adapters.psycopg.bounds import Bounds
from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.shares import Phase
from holdfast.runtime.ambient import timeout
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


RESET_WITHIN: Final[Duration] = 5.0
"""Seconds that the `reset` of a pool has for one connection; then that is closed."""


class _Turn(Bounded):
    """One wait for a connection; its errors are `psycopg_pool.PoolTimeout` as well."""

    __slots__ = ()
    client = "psycopg"
    phase = Phase.POOL

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        error: DeadlineExceeded = _EXCEEDED(cause)
        return error

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        error: InsufficientBudget = _INSUFFICIENT(cause)
        return error


class _Place:
    """A place in the queue of a pool; see the traps of the module.

    Attributes:
        conn: what it was given, whether whoever waited has seen it or not.
    """

    __slots__ = ("_given", "conn")

    def __init__(self) -> None:
        self.conn: Any = None
        self._given: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float) -> Any:
        given = self._given
        timer = given.get_loop().call_later(timeout, self._late, timeout)
        try:
            return await given
        finally:
            timer.cancel()

    def _late(self, timeout: float) -> None:
        if not self._given.done():
            self._given.set_exception(PoolTimeout(f"no connection after {timeout:.2f} s"))

    async def set(self, conn: Any) -> bool:
        """Whether it takes the connection; the pool awaits that."""
        if self._given.done():
            return False
        self.conn = conn
        self._given.set_result(conn)
        return True

    async def fail(self, error: Exception) -> bool:
        """Whether it takes the error; the pool awaits that."""
        if self._given.done():
            return False
        self._given.set_exception(error)
        return True


class AsyncConnectionPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """A `psycopg_pool.AsyncConnectionPool` whose connections keep to the ambient deadline.

    Raises, from `connection` and `getconn`, besides what psycopg_pool does:
        InsufficientBudget: nothing is left. Also a `psycopg_pool.PoolTimeout`.
        DeadlineExceeded: no connection was free in time. Also a `PoolTimeout`.
    """

    _idle: Duration | None = None

    def __init__(self, conninfo: Any = "", *, connection_class: Any = None, **kwargs: Any) -> None:
        kind = cast("Any", AsyncConnection if connection_class is None else connection_class)
        self._idle_since: WeakKeyDictionary[Any, Instant] = WeakKeyDictionary()
        if kwargs.get("reset") is not None:
            kwargs["reset"] = _bounded(kwargs["reset"])
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
        bound.admit(getattr(self.connection_class, "refuse_below", 0.0))
        wish, left = self.timeout if timeout is None else timeout, bound.left
        try:
            return await super().getconn(min(wish, left))
        except PoolTimeout as exc:
            if wish < left:
                raise
            raise bound.over(_crowd(self)) from exc
        except asyncio.CancelledError:
            bound.interrupted(_crowd(self))
            raise

    async def _getconn_unchecked(self, timeout: float) -> ACT:
        async with self._lock:
            place: Any = None
            conn = await self._get_ready_connection(timeout)
            if conn is None:
                place = _Place()
                self._waiting.append(place)
                self._noted(self._REQUESTS_QUEUED, 1)
                self._maybe_grow_pool()
        if conn is None:
            conn = await self._waited(place, timeout)
        given: Any = conn
        given._pool = self
        return conn

    async def _waited(self, place: _Place, timeout: float) -> Any:
        begun = monotonic()
        try:
            return await place.wait(timeout)
        except BaseException:
            if place.conn is not None:
                self.run_task(ReturnConnection(self, place.conn, from_getconn=True))
            self._noted(self._REQUESTS_ERRORS, 1)
            raise
        finally:
            self._noted(self._REQUESTS_WAIT_MS, int(1000 * (monotonic() - begun)))

    def _noted(self, what: str, much: int) -> None:
        vars(self)["_stats"][what] += much

    async def _putconn(self, conn: ACT, from_getconn: bool) -> None:
        _close_unfit(conn)
        idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
        if idle and not self._lock.locked() and not self._waiting and self._idle is None:
            await super()._putconn(conn, from_getconn)  # does not wait for anything
        else:
            back = aside(super()._putconn(conn, from_getconn), name=f"{self.name}-return")
            await asyncio.shield(back)

    async def _return_connection(self, conn: ACT, from_getconn: bool) -> None:
        with _returning(conn):
            await super()._return_connection(conn, from_getconn)

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.ports.pool.Pool`."""
        self._idle = idle
        self._min_size = 0
        return await self._close_idle(NEVER)

    async def _add_to_pool(self, conn: ACT) -> None:
        await super()._add_to_pool(conn)
        if self._idle is not None and not self.closed:
            self._idle_since[conn] = monotonic()
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
        self._idle_since: WeakKeyDictionary[Any, Instant] = WeakKeyDictionary()
        if kwargs.get("reset") is not None:
            kwargs["reset"] = _bounded_in_thread(kwargs["reset"])
        super().__init__(conninfo, connection_class=kind, **kwargs)

    def getconn(self, timeout: float | None = None) -> CT:
        """See `psycopg_pool.ConnectionPool.getconn`.

        Raises:
            InsufficientBudget, DeadlineExceeded: see the class.
        """
        bound = _Turn(f"pool {self.name}")
        bound.admit(getattr(self.connection_class, "refuse_below", 0.0))
        wish, left = self.timeout if timeout is None else timeout, bound.left
        try:
            return super().getconn(min(wish, left))
        except PoolTimeout as exc:
            if wish < left:
                raise
            raise bound.over(_crowd(self)) from exc

    def _putconn(self, conn: CT, from_getconn: bool) -> None:
        _close_unfit(conn)
        super()._putconn(conn, from_getconn)

    def _return_connection(self, conn: CT, from_getconn: bool) -> None:
        with _returning(conn):
            super()._return_connection(conn, from_getconn)

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.ports.pool.Pool`."""
        self._idle = idle
        self._min_size = 0
        return self._close_idle(NEVER)

    def _add_to_pool(self, conn: CT) -> None:
        super()._add_to_pool(conn)
        if self._idle is not None and not self.closed:
            self._idle_since[conn] = monotonic()
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


def _close_unfit(conn: Any) -> None:
    """Close what comes back in the midst of a pipeline: its next user would wait for answers that
    never come."""
    if conn._pipeline is not None or conn.pgconn.pipeline_status != PipelineStatus.OFF:
        conn.pgconn.finish()


def _returning(conn: Any) -> AbstractContextManager[None]:
    return conn.returning() if isinstance(conn, Bounds) else nullcontext()


def _bounded(reset: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Workers of a pool run it, and would never come back from a server that does not answer."""

    async def bounded(conn: Any) -> None:
        async with timeout(RESET_WITHIN, name="reset"):
            await reset(conn)

    return bounded


def _bounded_in_thread(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    def bounded(conn: Any) -> None:
        with timeout(RESET_WITHIN, name="reset"):
            reset(conn)

    return bounded


def _crowd(pool: Any) -> str:
    """How it is in a pool, for people."""
    stats = pool.get_stats()
    most, waiting = stats["pool_max"], stats.get("requests_waiting", 0)
    return f"all connections are in use (at most {most}), {waiting} more wait"


def _taken(pool: Any, since: Instant) -> list[Any]:
    """Take out of a pool, whose lock is held, what was given back at `since` or before."""
    old = [conn for conn in pool._pool if pool._idle_since.get(conn, -NEVER) <= since]
    for conn in old:
        pool._pool.remove(conn)
    pool._nconns -= len(old)
    pool._nconns_min = min(pool._nconns_min, len(pool._pool))
    return old
