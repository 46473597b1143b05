"""asyncpg behind pgbouncer in transaction mode: two server connections for everybody."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import connect, create_pool
from tests.adapters.test_asyncpg import BOTH, TOLD, none_at_work
from tests.peers.postgres import Postgres


async def through(bouncer: Postgres) -> Any:
    return await connect(bouncer.dsn(), statement_cache_size=0)


@pytest.mark.real_time(*BOTH)
async def test_the_server_knows_the_deadline(pgbouncer: Postgres) -> None:
    connection = await through(pgbouncer)
    for budget in (30.0, 2.0, 20.0):
        async with holdfast.timeout(budget):
            assert budget * 800 <= await connection.fetchval(TOLD) <= budget * 1126
            async with connection.transaction():
                assert budget * 800 <= await connection.fetchval(TOLD) <= budget * 1126
                async with holdfast.timeout(1.0):
                    assert await connection.fetchval(TOLD) <= 1126
                assert budget * 800 <= await connection.fetchval(TOLD) <= budget * 1126
    await connection.execute("CREATE TABLE IF NOT EXISTS bounced (t int)")
    await connection.execute("TRUNCATE bounced")
    async with holdfast.timeout(20.0):
        assert await connection.execute(f"INSERT INTO bounced {TOLD}") == "INSERT 0 1"
        await connection.executemany(f"INSERT INTO bounced {TOLD} + $1", [(0,), (0,)])
        rows = await connection.fetch("TABLE bounced")
    assert [10_000 < row["t"] < 22_501 for row in rows] == [True] * 3
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_nothing_is_left_behind_for_others(pgbouncer: Postgres) -> None:
    """Who comes next over the same server connection has no time-out, whatever happened before."""
    ours, other = (
        await through(pgbouncer),
        await asyncpg.connect(pgbouncer.dsn(), statement_cache_size=0),
    )

    async def clean() -> bool:
        return all([await other.fetchval(TOLD) == 0 for _ in range(4)])

    async with holdfast.timeout(20.0):
        await ours.fetchval("SELECT 1")
        assert await clean()
        await ours.execute("SELECT 1")
        assert await clean()
        with pytest.raises(asyncpg.DivisionByZeroError):
            await ours.fetchval("SELECT 1/0")
        assert await clean()
        with pytest.raises(asyncpg.DataError):
            await ours.fetchval("SELECT $1::int", "x")
        assert await clean()
        with pytest.raises(asyncpg.DataError):
            await ours.executemany("SELECT $1::int", [("x",)])
        assert await clean()
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await ours.fetchval("SELECT FROM WHERE")
        async with ours.transaction():
            await ours.fetchval("SELECT 1")
            with pytest.raises(asyncpg.UndefinedTableError):
                async with ours.transaction():
                    await ours.fetchval("SELECT * FROM nowhere")
            assert await ours.fetchval(TOLD) > 10_000
        assert await clean()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.2):
            await ours.fetch("SELECT pg_sleep(81)")
    assert await ours.fetchval("SELECT 5") == 5
    assert await clean()
    await ours.close()
    await other.close()


@pytest.mark.real_time
async def test_commands_that_run_outside_of_transactions_work(pgbouncer: Postgres) -> None:
    connection = await through(pgbouncer)
    async with holdfast.timeout(60.0):
        await connection.execute("VACUUM")
        await connection.fetch("VACUUM")
        with pytest.raises(asyncpg.DataError):
            await connection.fetchval("SELECT $1::int", "x")
        await connection.execute("VACUUM")
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_a_deadline_costs_no_round_trip(pgbouncer: Postgres) -> None:
    """asyncpg alone takes two behind a pooler, as it may not keep statements; ours adds none."""
    from holdfast.adapters.asyncpg.protocol import HeldProtocol

    connection = await through(pgbouncer)
    received, turns = HeldProtocol.data_received, [0]

    def counting(self: Any, data: Any) -> None:
        turns[0] += 1
        received(self, data)

    async def needed(budget: float) -> int:
        turns[0] = 0
        async with holdfast.timeout(budget):
            await connection.fetchval("SELECT 1")
        return turns[0]

    HeldProtocol.data_received = counting  # type: ignore[method-assign]
    connection._protocol.wire.set_protocol(connection._protocol)
    try:
        await needed(float("inf"))
        plain = min([await needed(float("inf")) for _ in range(20)])
        ours = min([await needed(20.0 - n) for n in range(20)])
    finally:
        HeldProtocol.data_received = received  # type: ignore[method-assign]
        connection._protocol.wire.set_protocol(connection._protocol)
    assert ours <= plain
    await connection.close()


@pytest.mark.real_time
async def test_a_crowd_with_cancellations_gets_its_own_rows(
    postgres: Postgres, pgbouncer: Postgres
) -> None:
    """Two hundred statements over two server connections, every fourth cancelled, some twice.

    pgbouncer before 1.19 ends itself where who has sent a cancel request does not wait for its end.
    """
    pool = await create_pool(
        pgbouncer.dsn(), min_size=5, max_size=10, statement_cache_size=0, grace=5.0
    )
    wrong: list[tuple[int, int]] = []

    async def one(n: int) -> None:
        async with pool.acquire() as connection:
            got = await connection.fetchval("SELECT $1::int FROM pg_sleep(0.02)", n)
            if got != n:
                wrong.append((n, got))

    async with holdfast.timeout(50.0):
        tasks = [asyncio.create_task(one(n)) for n in range(200)]
        for n, task in enumerate(tasks):
            if n % 4 == 0:
                asyncio.get_running_loop().call_later(n * 0.004, task.cancel)
            if n % 8 == 0:
                asyncio.get_running_loop().call_later(n * 0.004 + n % 3 * 0.001, task.cancel)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        odd = [
            end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)
        ]
        assert not odd
        assert not wrong
        for n in range(20):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SELECT $1::int", n) == n
        await pool.close()
    await none_at_work(postgres, "pg_sleep(0.02)")
