"""The pool of an engine in a stop of the process: idle connections are closed first."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from holdfast.domain.instant import Duration

__all__ = ["EnginePool", "pool_of"]


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
    """A `holdfast.lifecycle.Pool`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def preclean(self, idle: Duration) -> int:
        """Close what is idle."""
        pool = self._engine.pool
        if not isinstance(pool, QueuePool):
            return 0
        if self._engine.dialect.is_async:
            return await greenlet_spawn(_cleaned, pool)
        return _cleaned(pool)


def _cleaned(pool: Any) -> int:
    closed = 0
    for _ in range(pool.checkedin()):
        try:
            record = pool._pool.get(False)
        except Exception:
            break
        try:
            closed += record.dbapi_connection is not None
            record.close()
        finally:
            pool._dec_overflow()
    return closed
