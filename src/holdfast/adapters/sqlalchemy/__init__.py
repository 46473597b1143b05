"""SQLAlchemy: statements, waits for a connection, rollbacks and closes end with their deadline.

    from holdfast.adapters.sqlalchemy import instrument

    engine = instrument(create_async_engine("postgresql+asyncpg://..."))   # or create_engine(...)

    async with holdfast.timeout(2.0), AsyncSession(engine) as session:
        await session.execute(...)        # PostgreSQL is told what is left of the 2 s

Sessions and connections are made as before; nothing else changes. What a driver that keeps
deadlines by itself does better (see `holdfast.adapters.asyncpg` and `holdfast.adapters.psycopg`) is
left to it; `connection_class` puts it in. In threads with a plain driver it is the server that ends
a statement: one that is frozen does not.

What belongs here: engines, their pools and dialects. What does not: the protocols of databases,
which are the drivers' own adapters; retries; MySQL and MariaDB, of which only the waits for a
connection, the commit and, on the loop, the cancellation are bounded: no server of theirs was at
hand to prove more.

No comment with the trace is put into statements: one text per request would fill the statement
caches of SQLAlchemy, the driver and the server.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from holdfast.adapters.sqlalchemy.errors import CommitUnknown
from holdfast.adapters.sqlalchemy.hooks import Hooks
from holdfast.adapters.sqlalchemy.idle import EnginePool, pool_of
from holdfast.adapters.sqlalchemy.pools import bind_pool, unbind_pool
from holdfast.domain.instant import NEVER, Duration

__all__ = ["CommitUnknown", "EnginePool", "instrument", "pool_of", "uninstrument"]

E = TypeVar("E", bound=Engine | AsyncEngine)

_MARK = "holdfast_hooks"


def instrument(
    engine: E,
    *,
    refuse_below: Duration = 0.0,
    commit_grace: Duration = 1.0,
    grace: Duration = 0.5,
    tell_server: bool = True,
    connection_class: Any = None,
) -> E:
    """Bound an engine by the ambient deadline; the same engine. Once more: with other options.

    Beside the errors of SQLAlchemy there are then:

    - `DeadlineExceeded`, which is an `OperationalError` too, of a statement or a connection that
      took what was left; waiting for a place in the pool it is a `sqlalchemy.exc.TimeoutError` too;
    - `InsufficientBudget`, likewise: refused before anything was sent;
    - `OutcomeUnknown`, which is a `DBAPIError` too: a commit was sent and its answer never came.

    Args:
        engine: an `Engine` or an `AsyncEngine`.
        refuse_below: seconds; with less left nothing is begun.
        commit_grace: seconds that a commit may take beyond the deadline or a cancellation.
        grace: seconds that a rollback, and then the end of a connection, may.
        tell_server: whether PostgreSQL is told what is left where the driver does not do it. With
            asyncpg and psycopg that costs a round trip for each transaction.
        connection_class: of the driver's connections, for those that are made from now on, with the
            parameters that the engine has: `HeldConnection` of `holdfast.adapters.asyncpg`, or of
            `holdfast.adapters.psycopg` `AsyncConnection` or, in threads, `Connection`.

    Raises:
        TypeError: `engine` is something else; or a class is given to a driver that takes none.
        ValueError: a number of seconds is negative, or a grace infinite.
    """
    plain = _plain(engine)
    if not (refuse_below >= 0 and 0 <= commit_grace < NEVER and 0 <= grace < NEVER):
        raise ValueError("seconds must be zero or more, and a grace finite")
    if connection_class is not None and plain.dialect.driver not in ("asyncpg", "psycopg"):
        raise TypeError(f"{plain.dialect.driver} takes no class of connections")
    uninstrument(engine)
    hooks = Hooks(plain, refuse_below, commit_grace, grace, tell_server, connection_class)
    hooks.install()
    bind_pool(plain.pool, refuse_below)
    setattr(plain.dialect, _MARK, hooks)
    return engine


def uninstrument(engine: E) -> E:
    """Undo `instrument`; the same engine. One that is not instrumented stays as it is.

    Raises:
        TypeError: `engine` is neither an `Engine` nor an `AsyncEngine`.
    """
    plain = _plain(engine)
    hooks: Hooks | None = getattr(plain.dialect, _MARK, None)
    if hooks is not None:
        hooks.remove()
        delattr(plain.dialect, _MARK)
        unbind_pool(plain.pool)
    return engine


def _plain(engine: Any) -> Any:
    if isinstance(engine, AsyncEngine):
        return engine.sync_engine
    if isinstance(engine, Engine):
        return engine
    raise TypeError(f"{engine!r} is neither an Engine nor an AsyncEngine of SQLAlchemy")
