"""asyncpg: what the server is told, and how statements end; with a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import HeldConnection, connect
from holdfast.domain.errors import InsufficientBudget
from tests.peers.postgres import Postgres

BOTH = ("asyncio", "uvloop")
PATIENCE = 10.0
ENDED = 5.0

# Not the name as a whole: a text that has it in it may set it.
TOLD = "SELECT (extract(epoch FROM current_setting('statement'||'_timeout')::interval) * 1000)::int"


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)
    assert condition(), what


async def within(
    budget: float, call: Callable[[], Any], *, inner: bool = True, name: str = "timeout"
) -> Any:
    """What becomes of `call` in a scope; `inner`: in a task there that no scope cancels."""
    if not inner:
        async with holdfast.timeout(budget, name=name):
            return await call()
    tasks: list[asyncio.Future[Any]] = []
    with suppress(holdfast.DeadlineExceeded):
        async with holdfast.timeout(budget, name=name):
            tasks.append(asyncio.ensure_future(call()))
            await asyncio.wait(tasks)
    return await tasks[0]


async def none_at_work(server: Postgres, part: str) -> None:
    await until(lambda: server.at_work(part) == 0, f"{part} still runs")


@pytest.mark.real_time(*BOTH)
async def test_the_server_knows_the_deadline(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    try:
        assert await connection.fetchval(TOLD) == 0
        for budget in (30.0, 2.0, 0.9, 2.0):
            async with holdfast.timeout(budget) as scope:
                told = await connection.fetchval(TOLD)
                left = scope.remaining() * 1000
                assert left <= told <= budget * 1000 * 9 / 8 + 1
        assert await connection.fetchval(TOLD) == 0
    finally:
        await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_every_way_to_send_a_statement_tells_the_server(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    seen: list[int] = []

    async def sink(data: bytes) -> None:
        seen.append(int(data))

    async with holdfast.timeout(20.0):
        await connection.execute(f"CREATE TEMP TABLE seen AS {TOLD} AS t")
    async with holdfast.timeout(20.0):
        await connection.execute(f"INSERT INTO seen {TOLD}")
    async with holdfast.timeout(20.0):
        await connection.execute(f"INSERT INTO seen {TOLD} + $1", 0)
    async with holdfast.timeout(20.0):
        await connection.executemany(f"INSERT INTO seen {TOLD} + $1", [(0,), (0,)])
    async with holdfast.timeout(20.0):
        await connection.copy_from_query(TOLD, output=sink)
    async with holdfast.timeout(20.0):
        statement = await connection.prepare(TOLD)
        seen.append(await statement.fetchval())
    async with holdfast.timeout(20.0), connection.transaction():
        async for (value,) in connection.cursor(TOLD):
            seen.append(value)
        cursor = await connection.cursor(TOLD)
        seen += [row[0] for row in await cursor.fetch(1)]
    seen += [row["t"] for row in await connection.fetch("TABLE seen")]
    await connection.close()
    assert len(seen) == 9
    assert all(10_000 < value <= 22_501 for value in seen), seen


@pytest.mark.real_time
async def test_what_the_server_has_by_itself_is_never_loosened(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn(), server_settings={"statement_timeout": "700ms"})
    async with holdfast.timeout(30.0):
        assert await connection.fetchval(TOLD) == 700
        with pytest.raises(asyncpg.QueryCanceledError) as caught:
            await connection.fetch("SELECT pg_sleep(30)")
        assert not isinstance(caught.value, holdfast.DeadlineExceeded), "the deadline is far away"
    async with holdfast.timeout(0.5):
        assert await connection.fetchval(TOLD) < 600
    assert await connection.fetchval(TOLD) == 700
    await connection.close()


@pytest.mark.real_time
async def test_who_sets_the_time_out_by_hand_keeps_it(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(30.0):
        await connection.execute("SET statement_timeout = '3s'")
        assert await connection.fetchval(TOLD) == 3000
        await connection.reset()
        assert 25_000 < await connection.fetchval(TOLD) < 34_000
    assert await connection.fetchval(TOLD) == 0
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_transactions_and_savepoints_that_are_undone(postgres: Postgres) -> None:
    """What was set in them goes with them; no statement is ended by what an earlier one had."""
    connection = await connect(postgres.dsn())

    async def tight() -> None:
        async with holdfast.timeout(1.0):
            assert await connection.fetchval(TOLD) <= 1126

    async with holdfast.timeout(30.0):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with connection.transaction():
                await tight()
                raise ZeroDivisionError
        assert await connection.fetchval(TOLD) > 20_000
        async with connection.transaction():
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with connection.transaction():
                    await tight()
                    raise ZeroDivisionError
            assert await connection.fetchval(TOLD) > 20_000
            with pytest.raises(asyncpg.DivisionByZeroError):  # noqa: PT012
                async with connection.transaction():
                    await tight()
                    await connection.fetchval("SELECT 1/0")
            assert await connection.fetchval(TOLD) > 20_000
            await tight()
        assert await connection.fetchval(TOLD) > 20_000
    assert await connection.fetchval(TOLD) == 0
    await connection.close()


@pytest.mark.real_time
async def test_commands_that_run_outside_of_transactions_work(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(60.0):
        await connection.execute("VACUUM")
        await connection.execute("DROP DATABASE IF EXISTS held")
        await connection.execute("CREATE DATABASE held")
        await connection.fetch("DROP DATABASE held")
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert await connection.execute("/* why */ -- what\n (SELECT 1)") == "SELECT 1"
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_a_value_that_cannot_be_encoded_leaves_the_connection_in_step(
    postgres: Postgres,
) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(20.0):
        for _ in range(3):
            with pytest.raises(asyncpg.DataError):
                await connection.fetchval("SELECT $1::int", "one")
            with pytest.raises(asyncpg.DataError):
                await connection.executemany("SELECT $1::int", [("one",)])
            with pytest.raises(asyncpg.InterfaceError):
                await connection.fetchval("SELECT $1::int")
            assert await connection.fetchval("SELECT $1::int", 7) == 7
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_two_tasks_at_once_get_what_asyncpg_says(postgres: Postgres) -> None:
    """Nothing of ours goes out while an operation is under way."""
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(20.0), holdfast.tasks() as group:
        slow = group.start(connection.fetchval("SELECT 5 FROM pg_sleep(0.2)"))
        await asyncio.sleep(0.05)
        async with holdfast.timeout(1.0):
            with pytest.raises(asyncpg.InterfaceError, match="another operation"):
                await connection.fetchval("SELECT 6")
            with pytest.raises(asyncpg.InterfaceError, match="another operation"):
                await connection.execute("SELECT 7")
    assert slow.result() == 5
    assert await connection.fetchval("SELECT 8") == 8
    await connection.close()


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("inner", [False, True])
async def test_the_deadline_ends_a_statement(postgres: Postgres, inner: bool) -> None:
    """In the task of the scope, and in one inside that no scope cancels."""
    connection = await connect(postgres.dsn())
    begun = asyncio.get_running_loop().time()
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        await within(0.3, lambda: connection.fetch("SELECT pg_sleep(61)"), inner=inner)
    assert asyncio.get_running_loop().time() - begun < ENDED
    assert not inner or isinstance(caught.value, asyncpg.QueryCanceledError)
    assert "SELECT" in str(caught.value)
    await none_at_work(postgres, "pg_sleep(61)")
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.real_time
async def test_the_end_by_the_server_is_told_as_a_deadline(postgres: Postgres) -> None:
    """Whoever catches asyncpg's error sees it too, and the cause says where."""
    connection = await connect(postgres.dsn())
    with pytest.raises(asyncpg.QueryCanceledError) as caught:
        await within(0.2, lambda: connection.fetch("SELECT pg_sleep(62)"), name="report")
    assert isinstance(caught.value, holdfast.DeadlineExceeded)
    error: Any = caught.value
    assert error.sqlstate == "57014"
    assert error.cause.scope == "report/SELECT"
    assert isinstance(error.__cause__, (asyncpg.QueryCanceledError, TimeoutError))
    await connection.close()


@pytest.mark.real_time
async def test_a_spent_budget_is_refused_and_nothing_is_sent(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn(), refuse_below=0.1)
    async with holdfast.timeout(0.05):
        with pytest.raises(InsufficientBudget) as caught:
            await connection.fetchval("SELECT 1")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connect(postgres.dsn(), refuse_below=0.1)
    assert "needed" in str(caught.value)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


class Careful(HeldConnection):
    sets_session = False


@pytest.mark.real_time
async def test_a_session_that_may_not_be_set_is_not(postgres: Postgres) -> None:
    connection = await connect(postgres.dsn(), connection_class=Careful)
    for _ in range(3):
        async with holdfast.timeout(5.0):
            assert 4000 < await connection.fetchval(TOLD) < 5626
            async with connection.transaction():
                assert 4000 < await connection.fetchval(TOLD) < 5626
        assert await connection.fetchval(TOLD) == 0
        async with holdfast.timeout(5.0):
            await connection.execute("SELECT 1")
        assert await connection.fetchval(TOLD) == 0
    await connection.close()


@pytest.mark.real_time
async def test_the_class_alone_is_enough(postgres: Postgres) -> None:
    """For toolkits that take a `connection_class`."""
    assert HeldConnection.bounds_statements
    connection = await asyncpg.connect(postgres.dsn(), connection_class=HeldConnection)
    async with holdfast.timeout(5.0):
        assert 4000 < await connection.fetchval(TOLD) < 5626
    await connection.close()
    connection = await asyncpg.connect(postgres.dsn(), connection_class=HeldConnection)
    async with holdfast.timeout(5.0), connection.transaction():
        assert 4000 < await connection.fetchval(TOLD) < 5626
    await connection.close()
