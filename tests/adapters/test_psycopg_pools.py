"""Pools of psycopg: bounded waits, and no connection lost to a cancellation, whenever it comes."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import errors

import holdfast
from holdfast.adapters import psycopg as face
from holdfast.adapters.psycopg import AsyncConnection, Connection
from holdfast.adapters.psycopg.pools import AsyncConnectionPool, ConnectionPool
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, OutcomeUnknown, ScopeEnded
from holdfast.testing.proxy import FaultProxy

ENDED = 5.0
PATIENCE = 10.0


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(true):
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(
    server: Any, size: int, name: str, port: int | None = None, **how: Any
) -> AsyncIterator[AsyncConnectionPool[Any]]:
    kwargs = {"application_name": name, **how.pop("kwargs", {})}
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        server.dsn(port=port), min_size=size, max_size=size, open=False, kwargs=kwargs, **how
    )
    async with pool:
        await pool.wait(PATIENCE)
        yield pool


async def whole(server: Any, pool: Any, size: int, name: str) -> None:
    """The pool has all its connections, all work, and the server has no others."""
    await until(lambda: pool.get_stats()["pool_available"] == size)
    assert pool.get_stats()["pool_size"] == size
    await until(lambda: server.backends(name) == size)
    held = [await pool.getconn(timeout=PATIENCE) for _ in range(size)]
    for n, connection in enumerate(held):
        assert await (await connection.execute("SELECT %s::int", (n,))).fetchone() == (n,)
        await connection.rollback()
        await pool.putconn(connection)


# -- waiting -------------------------------------------------------------------------------------


@pytest.mark.real_time("asyncio", "uvloop")
async def test_waiting_for_a_connection_ends_by_the_deadline(postgres: Any) -> None:
    async with opened(postgres, 1, "waiting") as pool, pool.connection():
        with pytest.raises(DeadlineExceeded) as caught:
            async with holdfast.timeout(0.1):
                await pool.getconn()
        began = time.monotonic()
        with pytest.raises(psycopg_pool.PoolTimeout) as other:
            async with holdfast.timeout(60):
                await pool.getconn(timeout=0.1)
        assert time.monotonic() - began < ENDED
        assert not isinstance(other.value, TimeoutError)
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.01)
    said = str(caught.value) + "".join(getattr(caught.value.__cause__, "__notes__", ()))
    assert "all connections are in use (at most 1)" in said


@pytest.mark.real_time
async def test_a_spent_budget_takes_no_connection(postgres: Any) -> None:
    async with opened(postgres, 1, "spent") as pool:

        async def late() -> None:
            async with holdfast.timeout(0.01):
                time.sleep(0.02)  # noqa: ASYNC251 - the loop cannot cancel it
                with pytest.raises(InsufficientBudget) as caught:
                    await pool.getconn()
                assert isinstance(caught.value, psycopg_pool.PoolTimeout)

        with pytest.raises(DeadlineExceeded):
            await late()
        assert pool.get_stats().get("requests_num", 0) == 0


def test_threads_wait_no_longer_either(postgres: Any) -> None:
    pool: ConnectionPool[Any]
    with ConnectionPool(postgres.dsn(), min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as connection:
            assert isinstance(connection, Connection)
            with pytest.raises(DeadlineExceeded) as caught, holdfast.timeout(0.1):
                pool.getconn()
            assert isinstance(caught.value, psycopg_pool.PoolTimeout)
            assert "all connections are in use (at most 1)" in str(caught.value)
            with pytest.raises(psycopg_pool.PoolTimeout) as other, holdfast.timeout(60):
                pool.getconn(timeout=0.01)
            assert not isinstance(other.value, TimeoutError)
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.real_time
async def test_workers_do_not_live_in_the_scope_that_opened_the_pool(postgres: Any) -> None:
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        postgres.dsn(), min_size=1, max_size=4, open=False
    )

    async def open_and_end() -> None:
        async with holdfast.timeout(0.5):
            await pool.open(wait=True)
            await asyncio.sleep(10)

    with pytest.raises(DeadlineExceeded):
        await open_and_end()
    async with pool.connection(), pool.connection(), pool.connection() as third:
        assert await (await third.execute("SELECT 1")).fetchone() == (1,)
    await pool.close()


# -- cancelling ----------------------------------------------------------------------------------


async def storm(pool: Any, count: int, many: int, dice: random.Random) -> int:
    """Cancel `count` requests at random instants, `many` at once; how many were answered."""
    answered = 0

    async def request(n: int) -> None:
        nonlocal answered
        async with pool.connection() as connection:
            kind = n % 5
            if kind == 0:
                cursor = await connection.execute("SELECT %s::int, pg_sleep(0.002)", (n,))
            elif kind == 1:
                cursor = await connection.execute(f"SELECT {n}")
            elif kind == 2:
                async with connection.transaction():
                    cursor = await connection.execute("SELECT %s::int", (n,), prepare=True)
            elif kind == 3:
                async with connection.pipeline():
                    await connection.execute("SELECT pg_sleep(0.001)")
                    cursor = await connection.execute("SELECT %s::int", (n,))
            else:
                rows = connection.cursor().stream("SELECT %s::int FROM generate_series(1,50)", (n,))
                async for row in rows:
                    assert row == (n,), "a row of another request"
                answered += 1
                return
            row = await cursor.fetchone()
            assert row is not None
            assert row[0] == n, "a row of another request"
            answered += 1

    async def bounded(n: int) -> None:
        with suppress(ScopeEnded, errors.QueryCanceled):
            async with holdfast.timeout(dice.random() * 0.02 if n % 2 else 60):
                await request(n)

    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()
    for n in range(count):
        task = loop.create_task(bounded(n))
        under_way.add(task)
        if n % 2 == 0:
            when = dice.random() * 0.02
            loop.call_later(when, task.cancel)
            if n % 6 == 0:
                loop.call_later(when + dice.random() * 0.003, task.cancel)
        if len(under_way) >= many:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                assert each.cancelled() or each.exception() is None, each.exception()
    for each in await asyncio.gather(*under_way, return_exceptions=True):
        assert each is None or isinstance(each, asyncio.CancelledError), each
    return answered


async def weathered(postgres: Any, count: int, autocommit: bool, seed: int) -> None:
    name = f"storm-{seed}-{autocommit}"
    async with opened(postgres, 6, name, kwargs={"autocommit": autocommit}) as pool:
        answered = await storm(pool, count, 20, random.Random(seed))
        assert 0 < answered < count
        await whole(postgres, pool, 6, name)
    await until(lambda: postgres.backends(name) == 0)


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("autocommit", [False, True])
async def test_hundreds_of_cancellations_lose_nothing(postgres: Any, autocommit: bool) -> None:
    await weathered(postgres, 400, autocommit, 7)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("autocommit", [False, True])
async def test_thousands_of_cancellations_lose_nothing(postgres: Any, autocommit: bool) -> None:
    await weathered(postgres, 5000, autocommit, 11)


class _Suspended:
    """Runs a coroutine as part of a task, and cancels that one at its n-th suspension, and once
    more `again` suspensions later."""

    def __init__(self, work: Coroutine[Any, Any, object], nth: int, again: int = 0) -> None:
        self.work = work
        self.at = {nth, nth + again}
        self.nth = nth
        self.seen = 0

    def __await__(self) -> Any:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = self.work.send(value) if error is None else self.work.throw(error)
            except StopIteration as stop:
                return stop.value
            self.seen += 1
            if self.seen in self.at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            value, error = None, None
            try:
                value = yield waited
            except BaseException as exc:
                error = exc


async def cancelled_at(nth: int, work: Coroutine[Any, Any, object], again: int = 0) -> bool:
    """Whether the work came to its n-th suspension, where it was cancelled."""
    holder = _Suspended(work, nth, again)

    async def run() -> None:
        await holder

    task = asyncio.get_running_loop().create_task(run())
    await asyncio.wait([task])
    reached = holder.seen >= nth
    if reached and not task.cancelled():
        assert isinstance(task.exception(), OutcomeUnknown), "the cancellation was swallowed"
    elif not reached:
        task.result()
    return reached


@pytest.mark.real_time
@pytest.mark.parametrize("crowded", [False, True])
async def test_a_cancellation_at_every_await_loses_nothing(postgres: Any, crowded: bool) -> None:
    name = f"awaits-{crowded}"
    async with opened(postgres, 2, name, check=AsyncConnectionPool.check_connection) as pool:

        async def use() -> None:
            async with pool.connection() as connection:
                async with connection.transaction():
                    await connection.execute("SELECT 1")
                await connection.execute("SELECT %s", (1,))

        async def hog() -> None:
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_sleep(0.02)")

        nth, more = 0, True
        while more:
            nth += 1
            hogs = [asyncio.create_task(hog()) for _ in range(4 if crowded else 0)]
            await asyncio.sleep(0)
            more = await cancelled_at(nth, use())
            if hogs:
                await asyncio.gather(*hogs)
        assert nth > 5
        await whole(postgres, pool, 2, name)


@pytest.mark.real_time
async def test_a_return_that_has_to_wait_is_finished_by_a_task_of_its_own(postgres: Any) -> None:
    async with opened(postgres, 1, "returned") as pool:
        connection = await pool.getconn()
        await connection.execute("SELECT 1")  # a transaction is open: it is rolled back
        async with pool._lock:
            task = asyncio.create_task(pool.putconn(connection))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await whole(postgres, pool, 1, "returned")


@pytest.mark.real_time
async def test_a_killed_backend_is_replaced(postgres: Any) -> None:
    async with opened(postgres, 3, "killed") as pool:
        async with holdfast.timeout(30), pool.connection() as connection:
            await asyncio.to_thread(
                postgres.ask, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid
            )
            with pytest.raises(errors.OperationalError):
                await connection.execute("SELECT pg_sleep(10)")
        await whole(postgres, pool, 3, "killed")


@pytest.mark.real_time
async def test_a_frozen_server_keeps_nobody_and_the_pool_recovers(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        async with opened(postgres, 2, "frozen", proxy.port) as pool:

            async def request() -> None:
                async with holdfast.timeout(0.3), pool.connection() as connection:
                    await connection.execute("SELECT pg_sleep(%s)", (0.01,))

            proxy.to_client.stall()
            tasks = [asyncio.create_task(request()) for _ in range(6)]
            done, rest = await asyncio.wait(tasks, timeout=2 * ENDED)
            assert not rest
            assert all(isinstance(task.exception(), DeadlineExceeded) for task in done)
            proxy.reset()
            proxy.to_client.heal()
            await until(lambda: pool.get_stats()["pool_available"] == 2)
            await request()


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_what_is_idle_is_closed_when_the_process_stops(postgres: Any) -> None:
    async with opened(postgres, 3, "idle") as pool:
        async with pool.connection() as connection:
            assert await pool.preclean(0.1) == 2
            await until(lambda: postgres.backends("idle") == 1)
            await connection.execute("SELECT 1")
        await until(lambda: postgres.backends("idle") == 0)
        async with pool.connection() as connection:  # it still works, for who comes late
            await connection.execute("SELECT 1")
        await until(lambda: postgres.backends("idle") == 0)


@pytest.mark.real_time
async def test_what_threads_have_left_idle_is_closed_too(postgres: Any) -> None:
    def opened_and_waited() -> ConnectionPool[Any]:
        made: ConnectionPool[Any] = ConnectionPool(
            postgres.dsn(), min_size=3, max_size=3, open=True,
            kwargs={"application_name": "idle threads"},
        )  # fmt: skip
        made.wait(PATIENCE)
        return made

    pool = await asyncio.to_thread(opened_and_waited)
    try:
        connection = pool.getconn()
        assert await pool.preclean(0.1) == 2
        await until(lambda: postgres.backends("idle threads") == 1)
        pool.putconn(connection)
        await until(lambda: postgres.backends("idle threads") == 0)
    finally:
        await asyncio.to_thread(pool.close)


@pytest.mark.real_time
async def test_pools_of_psycopg_take_the_class(postgres: Any) -> None:
    async with (
        psycopg_pool.AsyncConnectionPool(
            postgres.dsn(), min_size=1, connection_class=AsyncConnection, open=False
        ) as pool,
        holdfast.timeout(ENDED),
        pool.connection() as connection,
    ):
        assert connection.bounds_statements
        row = await (await connection.execute("SHOW statement_timeout")).fetchone()
        assert row != ("0",)
    gc.collect()


def test_fifty_threads_share_a_pool(postgres: Any) -> None:
    pool: ConnectionPool[Any]
    with ConnectionPool(
        postgres.dsn(), min_size=5, max_size=5, open=True, kwargs={"application_name": "shared"}
    ) as pool:

        def request(n: int) -> str:
            try:
                with holdfast.timeout(0.05 + 0.01 * (n % 10)), pool.connection() as connection:
                    row = connection.execute("SELECT %s::int, pg_sleep(0.02)", (n,)).fetchone()
                    assert row is not None
                    assert row[0] == n, "a row of another request"
            except DeadlineExceeded:
                return "expired"
            return "done"

        with ThreadPoolExecutor(50) as threads:
            outcomes = list(threads.map(request, range(300)))
        assert len(outcomes) == 300
        with ThreadPoolExecutor(5) as threads:

            def held(n: int) -> int:
                with pool.connection(timeout=PATIENCE) as connection:
                    connection.execute("SELECT pg_sleep(0.1)")
                    return n

            assert sorted(threads.map(held, range(5))) == list(range(5))
        assert pool.get_stats()["pool_size"] == 5
        assert postgres.backends("shared") == 5


# -- pipelines, resets, children -----------------------------------------------------------------


async def piped(pool: Any) -> None:
    async with pool.connection() as connection:
        assert connection._pipeline is None
        assert connection.pgconn.pipeline_status == 0
        async with connection.pipeline():
            first = await connection.execute("SELECT 1")
            async with connection.pipeline():
                second = await connection.execute("SELECT 2")
            assert await first.fetchone() == (1,)
            assert await second.fetchone() == (2,)


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("kind", [AsyncConnectionPool, psycopg_pool.AsyncConnectionPool])
async def test_no_connection_is_left_in_a_pipeline(postgres: Any, kind: Any) -> None:
    """Cut at each of its awaits, also twice; with the pool of psycopg_pool too."""
    name = f"piped-{kind.__module__}"
    pool = kind(
        postgres.dsn(), connection_class=AsyncConnection, min_size=1, max_size=1, open=False,
        kwargs={"application_name": name},
    )  # fmt: skip
    async with pool:
        await pool.wait(PATIENCE)
        for again in (0, 1, 2):
            nth, more = 0, True
            while more:
                nth += 1
                more = await cancelled_at(nth, piped(pool), again)
            assert nth > 1
        await piped(pool)


@pytest.mark.real_time
async def test_what_comes_back_in_pipeline_mode_is_closed(postgres: Any) -> None:
    kind = psycopg.AsyncConnection
    async with opened(postgres, 1, "stuck", connection_class=kind) as pool:
        connection = await pool.getconn()
        connection.pgconn.enter_pipeline_mode()
        await pool.putconn(connection)
        await whole(postgres, pool, 1, "stuck")
        assert connection.closed


@pytest.mark.real_time
@pytest.mark.parametrize("left", ["idle", "in a transaction"])
async def test_a_reset_does_not_keep_the_workers(
    postgres: Any, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.adapters.psycopg.pools.RESET_WITHIN", 0.3)

    async def reset(connection: Any) -> None:
        await connection.execute("SELECT 1")
        await connection.rollback()

    with FaultProxy(postgres.host, postgres.port) as proxy:
        async with opened(postgres, 2, "reset", proxy.port, reset=reset, num_workers=1) as pool:
            held = [await pool.getconn() for _ in range(2)]
            if left == "in a transaction":
                for connection in held:
                    await connection.execute("SELECT 1")
            proxy.to_client.stall()
            for connection in held:
                await pool.putconn(connection)
            await until(lambda: all(connection.closed for connection in held))
            proxy.reset()
            proxy.to_client.heal()
            await until(lambda: pool.get_stats()["pool_available"] == 2)


@pytest.mark.parametrize("left", ["idle", "in a transaction"])
def test_a_reset_does_not_keep_threads_either(
    postgres: Any, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.adapters.psycopg.pools.RESET_WITHIN", 0.3)

    def reset(connection: Any) -> None:
        connection.execute("SELECT 1")
        connection.rollback()

    with FaultProxy(postgres.host, postgres.port) as proxy:
        pool: ConnectionPool[Any] = ConnectionPool(
            postgres.dsn(port=proxy.port), min_size=1, max_size=1, reset=reset, num_workers=1,
            open=True,
        )  # fmt: skip
        with pool:
            connection = pool.getconn(PATIENCE)
            if left == "in a transaction":
                connection.execute("SELECT 1")
            proxy.to_client.stall()
            pool.putconn(connection)
            end = time.monotonic() + PATIENCE
            while not connection.closed:
                assert time.monotonic() < end, "the worker is never free"
                time.sleep(0.02)
            proxy.reset()
            proxy.to_client.heal()
            with pool.connection(PATIENCE) as other:
                assert other.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.real_time
async def test_the_pools_are_in_the_face_and_take_the_reserve_of_the_class(postgres: Any) -> None:
    assert face.AsyncConnectionPool is AsyncConnectionPool
    assert face.ConnectionPool is ConnectionPool
    with pytest.raises(AttributeError):
        _ = face.NoSuchThing

    class Careful(AsyncConnection[Any]):
        refuse_below = 5.0

    async with opened(postgres, 1, "careful", connection_class=Careful) as pool:
        async with holdfast.timeout(2):
            with pytest.raises(InsufficientBudget):
                await pool.getconn()
            with pytest.raises(InsufficientBudget):
                await Careful.connect(postgres.dsn())
        async with pool.connection() as connection:
            async with holdfast.timeout(60):
                await connection.execute("SELECT 1")
            async with holdfast.timeout(2):
                with pytest.raises(InsufficientBudget):
                    await connection.execute("SELECT 1")
                await connection.commit()
