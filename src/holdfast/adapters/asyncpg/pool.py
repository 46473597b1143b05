"""The pool: waiting for a place within the deadline, and giving it back whatever has happened.

What belongs here: places. Traps: asyncpg gives a connection back in a task that inherits the
context, so in one whose deadline is spent; without a time-out it waits for a frozen server for
ever, and so does closing the pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg.pool import Pool, PoolConnectionProxy

from holdfast.adapters.asyncpg.connection import HeldConnection, connecting
from holdfast.adapters.asyncpg.errors import Place, Statement
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.tasks import aside

__all__ = ["HeldPool", "create_pool"]

if TYPE_CHECKING:  # at run time the class has no parameters
    _Base = Pool[Any]
else:
    _Base = Pool

_log: Final = logging.getLogger("holdfast.adapters.asyncpg")


class HeldPool(_Base):
    """A pool of asyncpg whose waits are bounded; also a `holdfast.lifecycle.Pool`.

    Args:
        grace: see `HeldConnection`; also how long giving a connection back may take.
        commit_grace: see there.
        refuse_below: see there; holds for a place in the pool too.
    """

    _holders: list[Any]
    _minsize: int

    def __init__(
        self,
        *args: Any,
        grace: Duration,
        commit_grace: Duration,
        refuse_below: Duration,
        connect: Callable[..., Awaitable[Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        held = (grace, commit_grace, refuse_below)
        made = partial(connecting, connect or asyncpg.connect, held=held)
        super().__init__(*args, connect=made, **kwargs)
        self._grace = grace
        self._refuse_below = refuse_below

    # -- a place ---------------------------------------------------------------------------------

    async def _acquire(self, timeout: Any) -> Any:
        statement = Place("a place in the pool")
        statement.admit(self._refuse_below)
        bound, ours = statement.bound(timeout)
        plain: Any = super()
        try:
            return await plain._acquire(bound)
        except asyncio.CancelledError:
            statement.name = self._use()
            statement.interrupted()
            raise
        except TimeoutError as exc:
            use = f"no place in {self._use()}"
            error = statement.told(exc, use, ours=ours)
            raise (TimeoutError(use) if error is exc and not str(exc) else error) from exc

    def _use(self) -> str:
        used = sum(not holder.is_idle() for holder in self._holders)
        return f"the asyncpg pool, {used} of {self.get_max_size()} connections in use"

    async def release(self, connection: Any, *, timeout: Duration | None = None) -> None:
        """Give a connection back. Takes `timeout` seconds, or the grace, at most.

        What cannot be made ready for the next one in that time is closed hard, and the place is
        free again. That is no error for who gives it back.
        """
        known = type(connection) is PoolConnectionProxy
        if not known or connection._holder._pool is not self or connection._con is None:
            return await super().release(connection, timeout=timeout)
        checked: Any = self
        checked._check_init()
        connection._con._on_release()
        bound = self._grace if timeout is None else timeout
        # Outside of the scope: that one may have ended, and the place must be given back.
        giving = aside(self._given_back(connection, bound), name="asyncpg release")
        return await asyncio.shield(giving)

    async def _given_back(self, place: Any, bound: Duration) -> None:
        holder = place._holder
        if holder._proxy is not place:  # lost meanwhile, so free: the next one may have it already
            return
        try:
            await holder.release(bound)
        except Exception as exc:
            # A time-out is an OSError. asyncpg has closed the connection and freed the place. Where
            # it was lost while it was given back, asyncpg says whatever comes of that.
            known = isinstance(exc, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError))
            if not known and holder._proxy is place:
                raise
            _log.info("a connection was thrown away instead of given back: %r", exc)

    # -- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for the connections in use, within the ambient deadline, and close all.

        Raises:
            DeadlineExceeded: some were in use still; all are closed hard.
        """
        statement = Statement("close the pool")
        left = statement.left
        try:
            async with asyncio.timeout(None if left == NEVER else max(0.001, left)):
                await super().close()
        except TimeoutError as exc:
            error = statement.told(exc, self._use(), ours=left != NEVER)
            if error is exc:
                raise
            raise error from exc

    async def preclean(self, idle: Duration) -> int:
        """The process stops: close what is idle, and what is idle for `idle` seconds from now on.

        What is in use stays in use. Returns how many connections were closed.
        """
        closed = 0
        self._minsize = 0
        for holder in self._holders:
            holder._max_inactive_time = idle
            if holder.is_idle() and holder.is_connected():
                closed += 1
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await holder.close()
        return closed


def create_pool(
    dsn: str | None = None,
    *,
    grace: Duration = HeldConnection.grace,
    commit_grace: Duration = HeldConnection.commit_grace,
    refuse_below: Duration = HeldConnection.refuse_below,
    connection_class: type[HeldConnection] = HeldConnection,
    min_size: int = 10,
    max_size: int = 10,
    max_queries: int = 50_000,
    max_inactive_connection_lifetime: Duration = 300.0,
    loop: asyncio.AbstractEventLoop | None = None,
    record_class: type = asyncpg.Record,
    **kwargs: Any,
) -> HeldPool:
    """`asyncpg.create_pool`, whose waits are bounded by the ambient deadline.

    Args:
        dsn: see asyncpg, as for all that is not listed here.
        grace: see `HeldConnection`; also how long giving a connection back may take.
        commit_grace: see there.
        refuse_below: see there; holds for a place in the pool too.
        connection_class: a subclass of `HeldConnection`.
    """
    return HeldPool(
        dsn,
        grace=grace,
        commit_grace=commit_grace,
        refuse_below=refuse_below,
        connection_class=connection_class,
        min_size=min_size,
        max_size=max_size,
        max_queries=max_queries,
        max_inactive_connection_lifetime=max_inactive_connection_lifetime,
        loop=loop,
        record_class=record_class,
        **kwargs,
    )
