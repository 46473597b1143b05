"""psycopg connections of ours behind pgbouncer in transaction mode: nothing leaks to the next one.

The bouncer has two connections to the server, which all its clients share from one transaction to
the next.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import psycopg
import pytest

import holdfast
from holdfast.adapters.psycopg import AsyncConnection, Connection
from holdfast.adapters.psycopg.pools import AsyncConnectionPool
from holdfast.domain.errors import DeadlineExceeded

SHOW = "SELECT current_setting('statement_timeout')"
ENDED = 5.0


async def connected(server: Any, autocommit: bool) -> AsyncConnection[Any]:
    return await AsyncConnection.connect(
        server.dsn(), autocommit=autocommit, prepare_threshold=None
    )


async def value(connection: Any, query: str = SHOW, *values: object) -> Any:
    row = await (await connection.execute(query, values or None)).fetchone()
    return row[0]


@pytest.mark.real_time("asyncio", "uvloop")
async def test_the_next_client_never_sees_a_limit(pgbouncer: Any) -> None:
    plain = [
        await psycopg.AsyncConnection.connect(
            pgbouncer.dsn(), autocommit=True, prepare_threshold=None
        )
        for _ in range(3)
    ]
    ours = [await connected(pgbouncer, autocommit) for autocommit in (False, True)]

    async def bounded(connection: Any, n: int) -> None:
        with suppress(DeadlineExceeded, psycopg.Error):
            async with holdfast.timeout(0.01 if n % 5 == 4 else 30):
                if n % 5 == 3:
                    await connection.execute("SELECT nope")
                if n % 5 == 4:
                    await connection.execute("SELECT pg_sleep(100)")
                assert await value(connection, SHOW + " WHERE %s = 1", 1) != "0"
                assert await value(connection) != "0"
                await connection.cursor().executemany("SELECT %s", [(1,), (2,)])
        if not connection.autocommit:
            await (connection.commit() if n % 2 else connection.rollback())

    for n in range(40):
        await bounded(ours[n % 2], n)
        for other in plain:
            assert await value(other) == "0"
        assert await value(ours[1]) == "0"
    for connection in (*plain, *ours):
        await connection.close()


@pytest.mark.real_time
async def test_a_cancelled_statement_ends_behind_it(postgres: Any, pgbouncer: Any) -> None:
    for autocommit in (False, True):
        connection = await connected(pgbouncer, autocommit)
        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.1):
                await connection.execute("SELECT pg_sleep(%s)", (100,))
        assert postgres.at_work("pg_sleep") == 0
        await connection.rollback()
        assert await value(connection, "SELECT %s::int", 7) == 7
        await connection.close()


@pytest.mark.real_time
async def test_many_clients_with_random_cancellations(pgbouncer: Any) -> None:
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        pgbouncer.dsn(), min_size=8, max_size=8, open=False, kwargs={"prepare_threshold": None}
    )
    async with pool:

        async def request(n: int) -> None:
            left = 0.001 + (n * 0.618 % 1) * 0.05
            with suppress(DeadlineExceeded):
                async with holdfast.timeout(left), pool.connection() as connection:
                    assert await value(connection, "SELECT %s::int, pg_sleep(0.002)", n) == n

        await asyncio.gather(*(request(n) for n in range(150)))
        async with pool.connection(timeout=10) as connection:
            assert await value(connection) == "0"
        assert pool.get_stats()["pool_size"] == 8


def test_threads_leak_nothing_either(pgbouncer: Any) -> None:
    with (
        psycopg.connect(pgbouncer.dsn(), autocommit=True, prepare_threshold=None) as plain,
        Connection.connect(pgbouncer.dsn(), autocommit=True, prepare_threshold=None) as ours,
    ):
        for n in range(20):
            began = time.monotonic()
            with suppress(DeadlineExceeded), holdfast.timeout(0.02 if n % 4 == 0 else 30):
                ours.execute("SELECT pg_sleep(%s)", (100 if n % 4 == 0 else 0,))
                assert ours.execute(SHOW).fetchone() != ("0",)
            assert time.monotonic() - began < ENDED
            assert plain.execute(SHOW).fetchone() == ("0",)
            assert ours.execute(SHOW).fetchone() == ("0",)
