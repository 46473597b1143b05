"""asyncpg: what becomes of transactions whose beginning was cut; direct, in a pool, pgbouncer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import connect, create_pool
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_asyncpg import BOTH, ENDED
from tests.adapters.test_asyncpg_ends import behind_proxy, now
from tests.peers.postgres import Postgres

LATE = 0.15
"""Seconds that answers take while a transaction begins."""


@pytest.fixture
def rows(postgres: Postgres) -> Callable[[], list[int]]:
    postgres.ask("DROP TABLE IF EXISTS begun")
    postgres.ask("CREATE TABLE begun (id int)")
    return lambda: [row[0] for row in postgres.ask("SELECT id FROM begun ORDER BY 1")]


async def cut_beginning(connection: Any, proxy: FaultProxy, how: str) -> None:
    """A transaction begins, and what cuts it comes before the answer."""

    async def begin() -> None:
        if how == "by hand":
            await connection.execute("BEGIN")
        elif how == "fetched":
            await connection.fetch("START TRANSACTION")
        elif how == "time-out":
            await connection.execute("BEGIN", timeout=LATE / 2)
        else:
            async with connection.transaction():
                raise AssertionError

    proxy.to_client.delay(LATE)
    if how in ("native", "twice"):
        task = asyncio.create_task(begin())
        await asyncio.sleep(LATE / 2)
        task.cancel()
        if how == "twice":
            await asyncio.sleep(0.02)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(TimeoutError):
            async with holdfast.timeout(ENDED if how == "time-out" else LATE / 2):
                await begin()
    proxy.to_client.delay(0)


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("how", ["block", "by hand", "fetched", "time-out", "native"])
async def test_a_beginning_that_is_cut_leaves_no_transaction(
    postgres: Postgres, rows: Callable[[], list[int]], how: str
) -> None:
    async with behind_proxy(postgres, grace=ENDED) as (connection, proxy):
        await connection.fetchval("SELECT 1")
        await cut_beginning(connection, proxy, how)
        assert not connection.is_in_transaction()
        await connection.execute("INSERT INTO begun VALUES (1)")
        async with connection.transaction():
            await connection.execute("INSERT INTO begun VALUES (2)")
        assert rows() == [1, 2]


@pytest.mark.real_time(*BOTH)
async def test_a_beginning_that_is_cut_twice_closes_the_connection(postgres: Postgres) -> None:
    """Nobody waits for the rollback then."""
    async with behind_proxy(postgres, grace=ENDED) as (connection, proxy):
        await connection.fetchval("SELECT 1")
        at = now()
        await cut_beginning(connection, proxy, "twice")
        assert now() - at < ENDED
        assert connection.is_closed() or not connection.is_in_transaction()


@pytest.mark.real_time(*BOTH)
async def test_a_frozen_server_frees_who_begins(postgres: Postgres) -> None:
    async with behind_proxy(postgres, grace=0.2) as (connection, proxy):
        await connection.fetchval("SELECT 1")
        proxy.to_client.stall()
        at = now()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.1), connection.transaction():
                raise AssertionError
        assert now() - at < ENDED
        assert connection.is_closed()


@pytest.mark.real_time
async def test_a_beginning_that_is_refused_sends_nothing(
    postgres: Postgres, rows: Callable[[], list[int]]
) -> None:
    connection = await connect(postgres.dsn(), refuse_below=0.2)
    with pytest.raises(asyncpg.QueryCanceledError):
        async with holdfast.timeout(0.1), connection.transaction():
            raise AssertionError
    async with connection.transaction():
        with suppress(asyncpg.QueryCanceledError):
            async with holdfast.timeout(0.1):
                await connection.execute("BEGIN")
        assert connection.is_in_transaction(), "that one was not the first"
        await connection.execute("INSERT INTO begun VALUES (1)")
    assert rows() == [1]
    await connection.close()


@pytest.mark.real_time
@pytest.mark.parametrize("bouncer", [False, True])
async def test_in_a_pool_the_next_one_begins_anew(
    postgres: Postgres, pgbouncer: Postgres, rows: Callable[[], list[int]], bouncer: bool
) -> None:
    """And behind pgbouncer no server connection is held by a transaction that nobody ends."""
    server = pgbouncer if bouncer else postgres
    async with FaultProxy(server.host, server.port) as proxy:
        pool = await create_pool(
            server.dsn(port=proxy.port), min_size=1, max_size=1, statement_cache_size=0, grace=ENDED
        )
        for n in range(3):
            async with pool.acquire() as connection:
                await cut_beginning(connection, proxy, "block" if n else "native")
                await connection.execute("INSERT INTO begun VALUES ($1)", n)
            await pool.execute("INSERT INTO begun VALUES ($1)", n)
        idle = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
        assert not postgres.ask(idle)
        await pool.close()
    assert rows() == [0, 0, 1, 1, 2, 2]
