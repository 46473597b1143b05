"""psycopg connections of ours that are cancelled, on a loop: by the deadline, by hand, by fate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors

import holdfast
from holdfast.adapters.psycopg import AsyncConnection
from holdfast.adapters.psycopg.bounds import COMMIT_GRACE, GRACE
from holdfast.domain.errors import Cancelled, DeadlineExceeded, OutcomeUnknown
from holdfast.testing.proxy import FaultProxy

ENDED = 5.0
PATIENCE = 10.0


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(true):
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.01)


class Patient(AsyncConnection[Any]):
    """Waits until a statement has ended, on a machine that is ever so busy."""

    grace = 20.0


async def connected(server: Any, port: int | None = None, **how: Any) -> AsyncConnection[Any]:
    kind = Patient if port is None else AsyncConnection
    return await kind.connect(server.dsn(port=port), **how)


async def one(connection: Any) -> Any:
    row = await (await connection.execute("SELECT 1")).fetchone()
    return row[0]


async def execute(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(100)")


async def execute_with(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(%s)", (100,))


async def execute_prepared(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(%s)", (100,), prepare=True)


async def many(connection: Any) -> None:
    await connection.cursor().executemany("SELECT pg_sleep(%s)", [(0,), (0,), (100,)])


async def stream(connection: Any) -> None:
    query = "SELECT n, pg_sleep(CASE WHEN n > 3 THEN 100 ELSE 0 END) FROM generate_series(1, 9) n"
    async for _ in connection.cursor().stream(query):
        pass


async def copy_out(connection: Any) -> None:
    query = "COPY (SELECT n, pg_sleep(n / 5000) FROM generate_series(1, 99999) n) TO STDOUT"
    async with connection.cursor().copy(query) as copy:
        async for _ in copy:
            pass


async def copy_in(connection: Any) -> None:
    await connection.execute("CREATE TEMP TABLE IF NOT EXISTS sink (n int, t text)")
    async with connection.cursor().copy("COPY sink FROM STDIN") as copy:
        while True:
            await copy.write_row((1, "x" * 1000))
            await asyncio.sleep(0.001)


async def pipeline(connection: Any) -> None:
    async with connection.pipeline():
        await connection.execute("SELECT 1")
        cursor = await connection.execute("SELECT pg_sleep(%s)", (100,))
        await connection.execute("SELECT 2")
        await cursor.fetchone()


async def inside(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_sleep(100)")


async def server_cursor(connection: Any) -> None:
    async with connection.transaction(), connection.cursor("named") as cursor:
        await cursor.execute("SELECT pg_sleep(0.05) FROM generate_series(1, 9999)")
        await cursor.fetchall()


WORK: list[Callable[[Any], Awaitable[None]]] = [
    execute, execute_with, execute_prepared, many, stream, copy_out, copy_in, pipeline, inside,
    server_cursor,
]  # fmt: skip


@pytest.mark.real_time
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("work", WORK)
async def test_whatever_is_under_way_ends_and_the_connection_is_good(
    postgres: Any, work: Callable[[Any], Awaitable[None]], autocommit: bool
) -> None:
    await ended_and_good(postgres, work, autocommit)


@pytest.mark.real_time("uvloop")
@pytest.mark.parametrize("work", [execute_with, stream, copy_in, pipeline])
async def test_on_uvloop_too(postgres: Any, work: Callable[[Any], Awaitable[None]]) -> None:
    await ended_and_good(postgres, work, False)


async def ended_and_good(
    postgres: Any, work: Callable[[Any], Awaitable[None]], autocommit: bool
) -> None:
    connection = await connected(postgres, autocommit=autocommit)
    pid = connection.info.backend_pid
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(0.12):
            await work(connection)
    busy = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
    await until(lambda: not postgres.ask(busy))
    assert not connection.closed
    await connection.rollback()
    async with holdfast.timeout(ENDED):
        assert await one(connection) == 1
        assert connection.info.backend_pid == pid
        await connection.commit()
    await connection.close()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_who_cancels_is_told_apart(postgres: Any) -> None:
    connection = await connected(postgres, autocommit=True)

    async def mine() -> None:
        async with holdfast.scope("mine") as scope:
            asyncio.get_running_loop().call_later(0.05, scope.cancel)
            await execute(connection)

    with pytest.raises(Cancelled):
        await mine()
    task = asyncio.ensure_future(execute(connection))
    await until(lambda: postgres.at_work("pg_sleep(100)") > 0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert postgres.at_work("pg_sleep(100)") == 0
    assert await one(connection) == 1
    await connection.close()


@pytest.mark.real_time
async def test_a_limit_of_the_server_s_own_is_its_own_error(postgres: Any) -> None:
    connection = await connected(postgres, options="-c statement_timeout=50", autocommit=True)
    async with holdfast.timeout(30):
        with pytest.raises(errors.QueryCanceled, match="statement timeout") as caught:
            await execute(connection)
    assert not isinstance(caught.value, TimeoutError)
    await connection.close()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_locks_are_released_and_nothing_is_kept(postgres: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS locked (n int)")
    postgres.ask("TRUNCATE locked")
    connection, other = await connected(postgres), await connected(postgres)

    async def lock() -> None:
        async with holdfast.timeout(0.2), connection.transaction():
            await connection.execute("INSERT INTO locked VALUES (1)")
            await connection.execute("LOCK TABLE locked")
            await asyncio.sleep(100)

    with pytest.raises(DeadlineExceeded):
        await lock()
    async with holdfast.timeout(ENDED), other.transaction():
        await other.execute("LOCK TABLE locked")
    assert postgres.ask("SELECT count(*) FROM locked") == [(0,)]
    await connection.close()
    await other.close()


@pytest.mark.real_time
async def test_a_block_of_the_connection_rolls_back(postgres: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS blocks (n int)")
    postgres.ask("TRUNCATE blocks")
    connection = await connected(postgres)

    async def block() -> None:
        async with holdfast.timeout(0.2), connection:
            await connection.execute("INSERT INTO blocks VALUES (1)")
            await execute(connection)

    with pytest.raises(DeadlineExceeded):
        await block()
    assert connection.closed
    assert postgres.ask("SELECT count(*) FROM blocks") == [(0,)]


# -- the server does not answer ------------------------------------------------------------------


@pytest.mark.real_time("uvloop")
@pytest.mark.parametrize("work", [execute, execute_with, stream, copy_out, pipeline, inside])
async def test_a_frozen_server_frees_the_caller(
    postgres: Any, work: Callable[[Any], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)
        proxy.to_client.stall()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.2), connection:
                await work(connection)
        assert time.monotonic() - began < 0.2 + GRACE + ENDED
        assert connection.closed


@pytest.mark.real_time
async def test_a_rollback_that_is_not_answered_closes(
    postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)

        async def work() -> None:
            async with connection, connection.transaction():
                await one(connection)
                proxy.to_client.stall()
                await asyncio.sleep(100)

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0.1)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=ENDED)
        assert done
        assert task.cancelled()
        assert connection.closed


async def forced(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    async with connection.transaction(force_rollback=True):
        await body()


async def rolled_back(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    await body()
    await connection.rollback()


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("rollback", [forced, rolled_back])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancellation_in_a_rollback_comes_out(
    postgres: Any, rollback: Any, times: int
) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)

        async def body() -> None:
            await one(connection)
            proxy.to_client.stall()

        task = asyncio.create_task(rollback(connection, body))
        await asyncio.sleep(0.2)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.05)
        await asyncio.wait([task], timeout=ENDED)
        assert task.cancelled()
        assert connection.closed
        other = await connected(postgres)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await rollback(other, lambda: asyncio.sleep(1))
        await other.close()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_child_task_is_bounded_too(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port, autocommit=True)
        healthy = await connected(postgres, autocommit=True)
        children: list[asyncio.Task[Any]] = []

        async def parent() -> None:
            async with holdfast.timeout(0.4):
                await one(connection)
                proxy.to_client.stall()
                children.extend(
                    asyncio.create_task(child)
                    for child in (
                        one(connection),
                        healthy.execute("SELECT pg_sleep(100)"),
                        connected(postgres, proxy.port),
                    )
                )
                await asyncio.sleep(10)

        with pytest.raises(DeadlineExceeded):
            await parent()
        done, rest = await asyncio.wait(children, timeout=ENDED)
        assert not rest
        assert all(isinstance(task.exception(), DeadlineExceeded) for task in done)
        assert connection.closed
        assert await one(healthy) == 1
        await healthy.close()


@pytest.mark.real_time
async def test_a_dial_that_is_not_answered_ends(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await connected(postgres, proxy.port)
        assert time.monotonic() - began < ENDED


@pytest.mark.real_time
async def test_a_backend_that_is_killed_is_an_error_as_before(postgres: Any) -> None:
    connection = await connected(postgres, autocommit=True)
    pid = connection.info.backend_pid
    async with holdfast.timeout(30):
        task = asyncio.ensure_future(execute(connection))
        await until(lambda: postgres.at_work("pg_sleep(100)") > 0)
        postgres.ask("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(psycopg.OperationalError):
            await task
    assert connection.closed


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_longer_grace_keeps_the_connection_of_a_slow_server(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await Patient.connect(postgres.dsn(port=proxy.port))
        proxy.to_client.delay(0.8)  # longer than a scope waits before it cancels again

        async def work() -> None:
            async with holdfast.timeout(0.1), connection.transaction():
                await execute(connection)

        with pytest.raises(DeadlineExceeded):
            await work()
        proxy.to_client.heal()
        assert not connection.closed
        assert connection.info.transaction_status == 0
        assert await one(connection) == 1
        await connection.close()


# -- commits -------------------------------------------------------------------------------------


async def by_hand(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    await body()
    await connection.commit()


async def by_block(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    async with connection:
        await body()


async def by_transaction(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    async with connection.transaction():
        await body()


async def by_pipeline(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    async with connection.pipeline():
        await body()
        await connection.commit()


async def by_text(connection: Any, body: Callable[[], Awaitable[object]]) -> None:
    await body()
    await connection.execute("COMMIT")


COMMITS: list[Any] = [by_hand, by_block, by_transaction, by_pipeline, by_text]


@pytest.mark.real_time
@pytest.mark.parametrize("commit", COMMITS)
async def test_a_commit_without_an_answer_is_of_unknown_outcome(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept (n int)")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)

        async def body() -> None:
            await (await connection.execute("INSERT INTO kept VALUES (1) RETURNING n")).fetchone()
            proxy.to_client.stall()

        async def work() -> None:
            async with holdfast.timeout(0.3):
                try:
                    await commit(connection, body)
                finally:
                    await asyncio.sleep(0.01)  # clean-up, where a cancellation could come late

        began = time.monotonic()
        with pytest.raises(OutcomeUnknown) as caught:
            await work()
        assert time.monotonic() - began < 0.3 + COMMIT_GRACE + ENDED
        assert isinstance(caught.value, psycopg.OperationalError)
        assert not isinstance(caught.value, TimeoutError)
        assert connection.closed


@pytest.mark.real_time
async def test_a_native_cancellation_of_a_commit_is_of_unknown_outcome(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)
        await one(connection)
        proxy.to_client.stall()
        task = asyncio.ensure_future(connection.commit())
        await asyncio.sleep(0.05)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=ENDED)
        assert done
        assert isinstance(task.exception(), OutcomeUnknown)
        assert connection.closed


@pytest.mark.real_time("uvloop")
@pytest.mark.parametrize("commit", COMMITS)
async def test_a_commit_that_is_answered_is_committed(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept (n int)")
    postgres.ask("TRUNCATE kept")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connected(postgres, proxy.port)

        async def body() -> None:
            await connection.execute("INSERT INTO kept VALUES (1)")
            proxy.to_client.delay(0.4)

        async def in_time() -> None:
            async with holdfast.timeout(0.3):
                await commit(connection, body)
                await asyncio.sleep(0)

        with pytest.raises(DeadlineExceeded):
            await in_time()
        assert postgres.ask("SELECT count(*) FROM kept") == [(1,)]
        if commit is not by_pipeline:  # its end is cut, and so far away a cancel request is late
            assert connection.closed is (commit is by_block)
        with suppress(errors.Error):
            await connection.close()


@pytest.mark.real_time
@pytest.mark.parametrize("commit", [by_hand, by_block, by_transaction])
async def test_a_commit_that_comes_too_late_is_not_sent(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept (n int)")
    postgres.ask("TRUNCATE kept")
    connection = await connected(postgres)

    async def body() -> None:
        await connection.execute("INSERT INTO kept VALUES (1)")
        time.sleep(0.25)  # noqa: ASYNC251 - the loop cannot cancel it

    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(0.2):
            await commit(connection, body)
    assert postgres.ask("SELECT count(*) FROM kept") == [(0,)]
    assert connection.closed is (commit is by_block)
    assert connection.closed or connection.info.transaction_status == 0
    await connection.close()


@pytest.mark.real_time
async def test_commits_in_two_phases(postgres: Any) -> None:
    connection = await connected(postgres)
    async with holdfast.timeout(30):
        await connection.tpc_begin(connection.xid(1, "a", "b"))
        await one(connection)
        await connection.tpc_commit()  # in one phase
        assert connection.info.transaction_status == 0
        await connection.tpc_begin(connection.xid(1, "a", "b"))
        await one(connection)
        await connection.tpc_rollback()
        assert connection.info.transaction_status == 0
    with FaultProxy(postgres.host, postgres.port) as proxy:
        frozen = await connected(postgres, proxy.port)

        async def commit() -> None:
            async with holdfast.timeout(0.3):
                await frozen.tpc_begin(frozen.xid(1, "a", "b"))
                await one(frozen)
                proxy.to_client.stall()
                await frozen.tpc_commit()

        with pytest.raises(OutcomeUnknown):
            await commit()
        assert frozen.closed
    await connection.close()


# -- waiting for nothing in particular -----------------------------------------------------------


@pytest.mark.real_time("asyncio", "uvloop")
async def test_notices_are_awaited_for_as_long_as_it_takes(postgres: Any) -> None:
    connection = await connected(postgres, autocommit=True)
    await connection.execute("LISTEN a")
    got: list[str] = []

    async def read(**how: Any) -> None:
        got.extend([notice.payload async for notice in connection.notifies(**how)])

    async def first() -> None:
        async with holdfast.timeout(0.2):
            await asyncio.to_thread(postgres.ask, "NOTIFY a, 'first'")
            async for notice in connection.notifies():
                got.append(notice.payload)  # noqa: PERF401 - it is cut

    with pytest.raises(DeadlineExceeded):
        await first()
    assert got == ["first"]
    await read(timeout=0.05)
    await asyncio.to_thread(postgres.ask, "NOTIFY a, 'second'")
    await read(stop_after=1)
    assert got == ["first", "second"]
    await connection.close()


@pytest.mark.real_time
async def test_a_stream_that_is_left_early_is_ended(postgres: Any) -> None:
    connection = await connected(postgres, autocommit=True)
    async with holdfast.timeout(30):
        rows = connection.cursor().stream("SELECT n FROM generate_series(1, 1000000) n")
        assert await anext(rows) == (1,)
        await rows.aclose()  # type: ignore[attr-defined]
        assert await one(connection) == 1
    await connection.close()
