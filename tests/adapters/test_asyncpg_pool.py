"""asyncpg's pool: waiting for a place, giving it back, closing; and many cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any, cast

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import HeldPool, create_pool
from holdfast.domain.errors import InsufficientBudget, OutcomeUnknown
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_asyncpg import BOTH, ENDED, TOLD, none_at_work, until, within
from tests.peers.postgres import Postgres


def now() -> float:
    return asyncio.get_running_loop().time()


def soon(call: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_soon(call)


async def pool_of(server: Postgres, name: str, **options: Any) -> HeldPool:
    port = options.pop("port", None)
    options = {"min_size": 0, "max_size": 2, **options}
    settings = {"application_name": name}
    return await create_pool(server.dsn(port=port), server_settings=settings, **options)


# -- waiting for a place ---------------------------------------------------------------------------


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("inner", [False, True])
async def test_waiting_for_a_place_ends_with_the_deadline(postgres: Postgres, inner: bool) -> None:
    pool = await pool_of(postgres, "waiting")
    one, two = await pool.acquire(), await pool.acquire()
    at = now()
    with pytest.raises(holdfast.DeadlineExceeded, match="2 of 2 connections in use") as caught:
        await within(0.2, lambda: pool.fetchval("SELECT 1"), inner=inner)
    assert now() - at < ENDED
    if inner:
        assert isinstance(caught.value, asyncpg.QueryCanceledError)
    await pool.release(one)
    async with holdfast.timeout(ENDED):
        assert await pool.fetchval("SELECT 1") == 1
    await pool.release(two)
    await pool.close()


@pytest.mark.real_time
async def test_a_time_out_of_its_own_says_how_many_are_in_use(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "own", max_size=1)
    async with pool.acquire():
        with pytest.raises(TimeoutError, match="1 of 1 connections in use"):
            await pool.acquire(timeout=0.05)
    await pool.close()


@pytest.mark.real_time
async def test_a_place_is_not_asked_for_when_too_little_is_left(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "refused", refuse_below=0.1)
    async with holdfast.timeout(0.05):
        with pytest.raises(InsufficientBudget):
            await pool.fetchval("SELECT 1")
    assert pool.get_size() == 0
    await pool.close()


# -- giving it back --------------------------------------------------------------------------------


@pytest.mark.real_time(*BOTH)
async def test_giving_back_after_the_deadline_keeps_the_connection(postgres: Postgres) -> None:
    """What was cut is ended, proven usable, and used again: by nobody who inherits anything."""
    pool = await pool_of(postgres, "kept", max_size=1)
    pids: set[int] = set()
    for n in range(5):
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(0.1), pool.acquire() as connection:
                pids.add(connection.get_server_pid())
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL application_name = 'x{n}'")
                    await connection.fetch("SELECT pg_sleep(91)")
        assert await pool.fetchval(TOLD) == 0
        async with pool.acquire() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SHOW application_name") == "kept"
    assert len(pids) == 1
    assert postgres.backends("kept") == 1
    await none_at_work(postgres, "pg_sleep(91)")
    await pool.close()


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("when", ["query", "block", "idle"])
async def test_giving_back_to_a_frozen_server_is_bounded(postgres: Postgres, when: str) -> None:
    """The caller is free after the grace, and the place is there for the next one."""
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        pool = await pool_of(postgres, "frozen", port=proxy.port, max_size=1, grace=0.3)

        async def work() -> None:
            async with pool.acquire() as connection:
                await connection.fetchval("SELECT 1")
                proxy.to_client.stall()
                proxy.to_server.stall()
                if when == "query":
                    await connection.fetchval("SELECT 2")
                elif when == "block":
                    async with connection.transaction():
                        raise AssertionError

        at = now()
        if when == "idle":
            async with holdfast.timeout(30.0):
                await work()  # it has all that it wanted: it need not know
        else:
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.3):
                    await work()
        assert now() - at < ENDED
        assert pool.get_idle_size() == 0
        proxy.heal()
        async with holdfast.timeout(ENDED):
            assert await pool.fetchval("SELECT 3") == 3
        await pool.close()
    await until(lambda: postgres.backends("frozen") == 0, "a backend is left")


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("point", ["acquire", "connect", "query", "release", "close"])
async def test_a_cancellation_at_any_point_loses_no_place(postgres: Postgres, point: str) -> None:
    """asyncpg 431, 467, 547, 1156 and 1356: a hang, or a place or a socket that is lost."""
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        pool = await pool_of(postgres, "points", port=proxy.port, max_size=1, grace=0.3)
        if point != "connect":
            await pool.fetchval("SELECT 1")

        async def acquiring() -> None:
            held = await pool.acquire()
            try:
                async with asyncio.timeout(0.2):
                    await pool.acquire()
            finally:
                await pool.release(held)

        async def connecting() -> None:
            proxy.to_client.stall()
            await pool.fetchval("SELECT 1")

        async def querying() -> None:
            await pool.fetch("SELECT pg_sleep(92)")

        async def releasing() -> None:
            connection = await pool.acquire()
            proxy.to_client.stall()
            await pool.release(connection)

        async def closing() -> None:
            proxy.to_client.stall()
            async with pool.acquire() as connection:
                await connection.close()

        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "acquire": acquiring, "connect": connecting, "query": querying, "release": releasing,
            "close": closing,
        }  # fmt: skip
        at = now()
        task = asyncio.ensure_future(steps[point]())
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        with suppress(asyncio.CancelledError):
            await task
        assert now() - at < ENDED
        proxy.heal()
        async with holdfast.timeout(ENDED):
            for n in range(3):
                assert await pool.fetchval("SELECT $1::int", n) == n
        async with holdfast.timeout(ENDED):
            await pool.close()
    await until(lambda: postgres.backends("points") == 0, "a backend is left")


@pytest.mark.real_time
async def test_a_killed_backend_is_replaced(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "killed", max_size=1)
    task = asyncio.create_task(pool.fetch("SELECT pg_sleep(93)"))
    await until(lambda: postgres.at_work("pg_sleep(93)"), "it has not begun")
    postgres.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'killed'"
    )
    with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.AdminShutdownError)):
        await task
    assert await pool.fetchval("SELECT 4") == 4
    await pool.close()


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("when", ["before", "at once", "soon", "later"])
async def test_a_connection_that_is_lost_while_it_is_given_back(
    postgres: Postgres, when: str
) -> None:
    """What was done is done: to leave the block is no error, and the place is there again, once."""
    pool = await pool_of(postgres, "lost", max_size=1)
    loop = asyncio.get_running_loop()
    for n in range(10):
        async with pool.acquire() as place:
            assert await place.fetchval("SELECT $1::int", n) == n
            lose = cast("Callable[[], None]", place._con.terminate)
            if when == "before":
                lose()
            elif when == "at once":
                loop.call_soon(lose)
            elif when == "soon":
                loop.call_soon(soon, lose)
            else:
                loop.call_later(0.0005 * n, lose)
        await asyncio.sleep(0.006)  # who has it next must not lose it
        one = await pool.acquire(timeout=ENDED)
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.01)
        await pool.release(one)
    await pool.close()


@pytest.mark.real_time(*BOTH)
async def test_a_place_that_others_have_already_is_not_given_back(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "others", max_size=1)
    place = await pool.acquire()
    giving = asyncio.ensure_future(pool.release(place))
    while place._con is not None and not giving.done():
        place._con.terminate()
        await asyncio.sleep(0)
    other = await pool.acquire(timeout=ENDED)
    await giving
    assert await other.fetchval("SELECT 5") == 5
    await pool.release(other)
    await pool.close()


@pytest.mark.real_time
async def test_what_the_next_one_needs_stays_set(postgres: Postgres) -> None:
    """A place that is used with the same budget again and again is told once."""
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        pool = await pool_of(postgres, "again", port=proxy.port, max_size=1)

        async def sent(budget: float) -> int:
            before = proxy.connections[0].to_server
            async with holdfast.timeout(budget):
                assert await pool.fetchval(TOLD) <= budget * 1126
            return proxy.connections[0].to_server - before

        await pool.fetchval(TOLD)
        sizes = [await sent(300.0) for _ in range(6)]
        assert len({*sizes[1:]}) == 1
        assert sizes[1] < sizes[0] + len(";SET statement_timeout = 301056;")
        assert await pool.fetchval(TOLD) == 0
        async with pool.acquire() as connection:
            await connection.execute("SET statement_timeout = '7s'")
            assert await connection.fetchval(TOLD) == 7000
        assert await pool.fetchval(TOLD) == 0, "what others set by hand is gone"
        await pool.close()


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.real_time(*BOTH)
async def test_closing_is_bounded_by_the_deadline(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "closing")
    held = await pool.acquire()
    at = now()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.2):
            await pool.close()
    assert now() - at < ENDED
    assert pool.get_size() == 0
    assert "released" in repr(held)
    await until(lambda: postgres.backends("closing") == 0, "a backend is left")


@pytest.mark.real_time
async def test_a_stop_closes_what_is_idle_first(postgres: Postgres) -> None:
    pool = await pool_of(postgres, "stopping", min_size=3, max_size=4)
    async with pool.acquire() as connection:
        assert await pool.preclean(0.05) == 2
        assert await connection.fetchval("SELECT 1") == 1
        await until(lambda: postgres.backends("stopping") == 1, "an idle one is left")
    await until(lambda: postgres.backends("stopping") == 0, "one stayed idle for long")
    assert await pool.fetchval("SELECT 2") == 2, "what is under way may still need one"
    await pool.close()


# -- many ------------------------------------------------------------------------------------------


async def cancellations(server: Postgres, count: int, places: int = 8) -> None:
    """Every statement selects its own number; most are cut, in all ways, at random."""
    pool = await pool_of(server, "soak", min_size=places, max_size=places, grace=5.0)
    dice, wrong = Random(41), list[tuple[int, Any]]()
    gate = asyncio.Semaphore(4 * places)
    loop = asyncio.get_running_loop()

    async def one(n: int, way: int) -> None:
        nap = dice.random() * 0.01
        async with pool.acquire() as connection:
            if way % 3 == 0:
                async with connection.transaction():
                    await connection.execute("SELECT 1")
                    got = await connection.fetchval("SELECT $1::int FROM pg_sleep($2)", n, nap)
            elif way % 3 == 1:
                got = int((await connection.fetch(f"SELECT {n % 50} FROM pg_sleep($1)", nap))[0][0])
                got += n - n % 50
            else:
                got = await connection.fetchval("SELECT $1::int FROM pg_sleep($2)", n, nap)
        if got != n:
            wrong.append((n, got))

    async def cut(n: int) -> None:
        way, after, again = dice.randrange(6), dice.random() * 0.012, dice.random() * 0.003
        async with gate:
            try:
                if way < 3:
                    async with holdfast.timeout(after + 0.0001):
                        await one(n, way)
                else:
                    task = asyncio.create_task(one(n, way))
                    handles = [loop.call_later(after, task.cancel)]
                    if way == 5:  # again, in the middle of what the first one has begun
                        handles.append(loop.call_later(after + again, task.cancel))
                    await asyncio.wait([task])
                    for handle in handles:
                        handle.cancel()
                    if not task.cancelled():
                        task.result()
            except (holdfast.DeadlineExceeded, OutcomeUnknown):
                pass

    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(cut(n))
    assert not wrong, wrong[:5]
    await until(lambda: pool.get_idle_size() == pool.get_size(), "a place is held still")
    for n in range(3 * places):
        assert await pool.fetchval("SELECT $1::int", n) == n
    await until(lambda: server.backends("soak") == pool.get_size(), "backends and pool differ")
    await none_at_work(server, "pg_sleep($2)")
    held = [await pool.acquire() for _ in range(places)]
    await until(lambda: server.backends("soak") == places, "a place is lost")
    for connection in held:
        await pool.release(connection)
    await pool.close()
    await until(lambda: server.backends("soak") == 0, "a backend is left")


@pytest.mark.real_time(*BOTH)
async def test_random_cancellations(postgres: Postgres) -> None:
    """As many backends as the pool has places, and no row of another request."""
    await cancellations(postgres, 300)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.real_time(*BOTH)
async def test_five_thousand_random_cancellations(postgres: Postgres) -> None:
    await cancellations(postgres, 5000)


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("clients", [2, 2000])
async def test_few_and_many_clients(postgres: Postgres, clients: int) -> None:
    pool = await pool_of(postgres, "clients", max_size=5)

    async def one(n: int) -> bool:
        async with holdfast.timeout(50.0 + n % 7):
            return bool(await pool.fetchval("SELECT $1::int", n) == n)

    assert all(await asyncio.gather(*(one(n) for n in range(clients))))
    assert postgres.backends("clients") <= 5
    await pool.close()
