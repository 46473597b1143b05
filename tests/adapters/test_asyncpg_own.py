"""asyncpg: who sets the time-out by hand keeps it, and what is ours does not stay behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import HeldConnection, connect
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_asyncpg import BOTH, ENDED, TOLD, within
from tests.adapters.test_asyncpg_ends import now
from tests.peers.postgres import Postgres

SET = "SELECT set_config($1, $2, $3)"


async def told(connection: Any) -> int:
    value: int = await connection.fetchval(TOLD)
    return value


LOCAL: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "local": lambda it: it.execute("SET LOCAL statement_timeout = '300ms'"),
    "quoted": lambda it: it.execute('/* a */ set local "statement_timeout" to 300'),
    "function": lambda it: it.fetch("SELECT set_config('statement_timeout', '300', true)"),
    "values": lambda it: it.fetch(SET, "statement_timeout", "300", True),
    "among others": lambda it: it.execute("SELECT 1; SET LOCAL statement_timeout = 300"),
}


@pytest.mark.real_time
@pytest.mark.parametrize("how", LOCAL)
async def test_what_is_set_in_a_transaction_ends_with_it(postgres: Postgres, how: str) -> None:
    """Then neither theirs nor ours is left for statements that have no deadline."""
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(0.9):
        async with connection.transaction():
            assert 0 < await told(connection) <= 1013
            await LOCAL[how](connection)
            assert await told(connection) == 300
            async with holdfast.timeout(0.15):
                assert await told(connection) < 200, "what is tighter holds"
            assert await told(connection) == 300
        assert 300 < await told(connection) <= 1013
    assert await told(connection) == 0
    with suppress(ZeroDivisionError):
        async with holdfast.timeout(0.9), connection.transaction():
            await LOCAL[how](connection)
            raise ZeroDivisionError
    assert await told(connection) == 0
    async with connection.transaction():
        await LOCAL[how](connection)
        assert await told(connection) == 300
    assert await told(connection) == 0
    await connection.close()


LASTING: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "set": lambda it: it.execute("SET statement_timeout = 300"),
    "quoted": lambda it: it.execute('SET "statement_timeout" = 300'),
    "values": lambda it: it.fetchval(SET, "statement_timeout", "300", False),
    "prepared": lambda it: it.fetch("SET statement_timeout = 300"),
}


@pytest.mark.real_time
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("how", LASTING)
async def test_what_is_set_for_the_session_lasts(postgres: Postgres, how: str, block: bool) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(20.0):
        await told(connection)
        if block:
            async with connection.transaction():
                await LASTING[how](connection)
                assert await told(connection) == 300
        else:
            await LASTING[how](connection)
        assert await told(connection) == 300
        async with holdfast.timeout(0.15):
            assert await told(connection) < 200
    assert await told(connection) == 300
    await connection.execute("RESET statement_timeout")
    assert await told(connection) == 0
    async with holdfast.timeout(20.0):
        assert await told(connection) > 10_000
    assert await told(connection) == 0
    await connection.close()


@pytest.mark.real_time
async def test_what_is_undone_with_a_transaction_or_savepoint(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(20.0):
        await told(connection)
        with suppress(ZeroDivisionError):
            async with connection.transaction():
                await LASTING["set"](connection)
                raise ZeroDivisionError
        assert await told(connection) > 10_000
        async with connection.transaction():
            async with holdfast.timeout(2.0):
                assert await told(connection) <= 2251
            with suppress(asyncpg.DivisionByZeroError):
                async with connection.transaction():
                    await LOCAL["local"](connection)
                    assert await told(connection) == 300
                    await connection.execute("SELECT 1/0")
            assert await told(connection) > 10_000
            await LOCAL["local"](connection)
            with suppress(asyncpg.DivisionByZeroError):
                await connection.execute("SELECT 1/0")
            with suppress(asyncpg.InFailedSQLTransactionError):
                await connection.execute("SELECT 2")
        assert await told(connection) > 10_000
    assert await told(connection) == 0
    await connection.close()


@pytest.mark.real_time
async def test_a_transaction_that_follows_at_once_has_its_own(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    await connection.execute("BEGIN")
    for end in ("COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "SELECT 1; COMMIT; BEGIN"):
        async with holdfast.timeout(5.0):
            assert 4000 < await told(connection) <= 5626
            await connection.execute(end)
            assert 4000 < await told(connection) <= 5626, end
        assert await told(connection) == 0
    await connection.execute("COMMIT")
    await connection.close()


TEXTS = [
    "INSERT INTO logged VALUES ('please RESET ALL')",
    "SELECT 1 -- discard all",
    "SELECT 'set statement_timeout'",
    "SET LOCAL statement_timeout = '5s'; SELECT 1",
]


@pytest.mark.real_time
@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_that_looks_like_it(postgres: Postgres, text: str) -> None:
    connection = await connect(postgres.dsn())
    await connection.execute("CREATE TEMP TABLE logged (t text)")
    async with holdfast.timeout(5.0):
        await told(connection)
        await connection.execute(text)
    assert await told(connection) == 0
    await connection.close()


@pytest.mark.real_time
async def test_behind_a_pooler(pgbouncer: Postgres) -> None:
    connection = await connect(pgbouncer.dsn(), statement_cache_size=0)
    async with holdfast.timeout(20.0):
        for how in LOCAL.values():
            async with connection.transaction():
                await told(connection)
                await how(connection)
                assert await told(connection) == 300
            assert await told(connection) > 10_000
    assert await told(connection) == 0
    await connection.close()


@pytest.mark.real_time
@pytest.mark.parametrize("inner", [False, True])
async def test_what_is_asked_is_bounded(postgres: Postgres, inner: bool) -> None:
    """Where a toolkit has made the connection, the first statement asks who is there."""
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        made = await asyncpg.connect(
            postgres.dsn(port=proxy.port), connection_class=HeldConnection, command_timeout=0.2
        )
        proxy.to_client.stall()
        at = now()
        with pytest.raises(TimeoutError) as caught:
            await made.fetch("SELECT 1")
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
        with pytest.raises(TimeoutError):
            await made.execute("SELECT 1", timeout=0.1)
        with pytest.raises(holdfast.DeadlineExceeded):
            await within(0.1, lambda: made.fetch("SELECT 1", timeout=60.0), inner=inner)
        assert now() - at < ENDED
        proxy.to_client.resume()
        assert await made.fetchval("SELECT 7", timeout=ENDED) == 7
        await made.close()


@pytest.mark.real_time(*BOTH)
async def test_who_asks_may_go(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(20.0):
        for n in range(20):
            await connection.execute("SET statement_timeout = '3s'")
            task = asyncio.create_task(connection.fetchval("SELECT 1"))
            for _ in range(n % 4 + 1):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await told(connection) == 3000
    await connection.close()
