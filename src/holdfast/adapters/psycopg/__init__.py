"""psycopg 3, for asyncio and for threads.

    from holdfast.adapters.psycopg import AsyncConnectionPool

    async with AsyncConnectionPool("dbname=shop") as pool, holdfast.timeout(2.0):
        async with pool.connection() as connection:        # waits for one no longer than that
            await connection.execute("SELECT ...")         # and ends by then, at the server too

    aio           the connection of asyncio
    blocking      the connection of threads
    transactions  the blocks of their transactions
    bounds        what both share: what the server is told
    flight        the server's limit and a statement in one round trip
    pools         the pools of psycopg_pool, and how they stop
    errors        our errors, which are psycopg's as well

What belongs here: deadlines and cancellations on their way to PostgreSQL. What does not: SQL,
types, retries; and toolkits on top of psycopg, which have adapters of their own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from holdfast.adapters.psycopg.aio import AsyncConnection
from holdfast.adapters.psycopg.blocking import Connection
from holdfast.adapters.psycopg.transactions import AsyncTransaction, Transaction

if TYPE_CHECKING:
    from holdfast.adapters.psycopg.pools import AsyncConnectionPool, ConnectionPool

__all__ = [
    "AsyncConnection",
    "AsyncConnectionPool",
    "AsyncTransaction",
    "Connection",
    "ConnectionPool",
    "Transaction",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # psycopg_pool is a distribution of its own: not everybody has it who has psycopg.
        if name not in ("AsyncConnectionPool", "ConnectionPool"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.pools"), name)
