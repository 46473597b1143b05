"""The pool of an engine in a stop of the process: idle connections are closed first.

SQLAlchemy keeps what comes back to a pool open until somebody uses it again. In a stop that is
late: the server waits for connections that nobody will use, and its places are taken.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.queue import Empty

from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.clock import monotonic
from holdfast.runtime.driver import driver_of
from holdfast.runtime.tasks import aside

__all__ = ["EnginePool", "pool_of"]

_SINCE = "holdfast.idle"


def pool_of(engine: object) -> EnginePool:
    """The pool of an engine, for `holdfast.lifecycle.current().pool(name, pool_of(engine))`.

    Args:
        engine: an `Engine` or `AsyncEngine`, instrumented or not.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(engine, AsyncEngine):
        return EnginePool(engine.sync_engine)
    if isinstance(engine, Engine):
        return EnginePool(engine)
    raise TypeError(f"{engine!r} is neither an Engine nor an AsyncEngine of SQLAlchemy")


class EnginePool:
    """A `holdfast.lifecycle.Pool`. Of pools that keep nothing, or one thing, there is no part."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._idle: Duration | None = None

    async def preclean(self, idle: Duration) -> int:
        """Close what is idle; from now on what is idle for `idle` seconds is closed, on this loop.

        What is in use stays in use. Returns how many connections were closed.
        """
        if not isinstance(self._engine.pool, QueuePool):
            return 0
        first, self._idle = self._idle is None, idle
        if first:
            event.listen(self._engine, "checkin", self._returned)
            self._look_again(asyncio.get_running_loop())
        return await self._close(monotonic())

    def _returned(self, connection: Any, record: Any) -> None:
        record.record_info[_SINCE] = monotonic()

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        driver = driver_of(loop)
        wait = max(0.05, self._idle or 0.0)

        def look() -> None:
            if self._engine.pool.checkedin():
                aside(self._close(monotonic() - wait), name="close idle connections")
            self._look_again(loop)

        driver.alarm(driver.now() + wait, look)

    async def _close(self, before: Instant) -> int:
        """Close what is idle since then, or longer."""
        pool = self._engine.pool
        if self._engine.dialect.is_async:
            return int(await greenlet_spawn(_closed, pool, before))
        return _closed(pool, before)


def _closed(pool: Any, before: Instant) -> int:
    closed = 0
    kept: list[Any] = []
    for _ in range(pool.checkedin()):
        try:
            record = pool._pool.get(False)
        except Empty:
            break  # somebody was faster
        if record.record_info.get(_SINCE, before) > before:
            kept.append(record)
            continue
        closed += record.dbapi_connection is not None
        try:
            record.close()
        finally:
            pool._dec_overflow()
    for record in kept:
        pool._do_return_conn(record)
    return closed
