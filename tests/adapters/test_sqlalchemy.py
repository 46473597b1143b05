"""Engines of SQLAlchemy on a loop, against a real PostgreSQL, by plain drivers and by ours."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import holdfast
from holdfast.adapters.sqlalchemy import instrument, uninstrument
from holdfast.testing.proxy import FaultProxy

pytestmark = pytest.mark.real_time

ENDED = 5.0
PATIENCE = 10.0
NAME = "sa-tests"


def url(server: Any, driver: str, port: int | None = None) -> str:
    return str(server.dsn(port=port, scheme=f"postgresql+{driver}"))


def options(driver: str) -> dict[str, Any]:
    """What `create_async_engine` is told for a driver, by its name here."""
    plain, _, held = driver.partition(" ")
    if plain == "asyncpg":
        # Without `ssl` asyncpg first asks for TLS, and when it is cancelled then, leaves a future
        # with an error that nobody looks at.
        arguments: dict[str, Any] = {"server_settings": {"application_name": NAME}, "ssl": False}
        if held:
            module = import_module("holdfast.adapters.asyncpg")
            arguments["connection_class"] = module.HeldConnection
    else:
        arguments = {"application_name": NAME}
        if held:
            module = import_module("holdfast.adapters.psycopg")
            arguments["async_creator_fn"] = module.AsyncConnection.connect
    return {"connect_args": arguments}


@asynccontextmanager
async def engine_for(
    server: Any, driver: str = "asyncpg", port: int | None = None, **more: Any
) -> AsyncIterator[AsyncEngine]:
    settings = {"pool_size": 3, "max_overflow": 0, **options(driver), **more}
    engine = create_async_engine(url(server, driver.partition(" ")[0], port), **settings)
    instrument(engine)
    try:
        yield engine
    finally:
        await engine.dispose()
        gc.collect()


async def until(condition: Callable[[], bool], what: str) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.02)


DRIVERS = ["asyncpg", "psycopg", "asyncpg ours", "psycopg ours"]
drivers = pytest.mark.parametrize("driver", DRIVERS)


# -- deadlines ---------------------------------------------------------------------------------


@drivers
async def test_a_statement_ends_with_its_deadline_at_the_server_too(
    postgres: Any, driver: str
) -> None:
    async with engine_for(postgres, driver) as engine:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.3), AsyncSession(engine) as session:
                await session.execute(text("SELECT pg_sleep(60), 'one'"))
        assert loop.time() - began < ENDED
        await until(lambda: postgres.at_work("'one'") == 0, "the statement runs on")
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_server_is_told_what_is_left(postgres: Any, driver: str) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    async with engine_for(postgres, driver) as engine:
        async with holdfast.timeout(20.0), AsyncSession(engine) as session:
            first = (await session.execute(asked)).scalar()
            second = (await session.execute(asked)).scalar()
            assert first is not None
            assert 19_000 < first <= 20_000
            assert second == first, "it was told again, which is not needed"
            async with holdfast.timeout(5.0):
                assert 4_000 < ((await session.execute(asked)).scalar() or 0) <= 5_000
            assert 18_000 < ((await session.execute(asked)).scalar() or 0) <= 20_000
        async with AsyncSession(engine) as session:
            assert (await session.execute(asked)).scalar() == 0
            async with holdfast.timeout(5.0):
                assert 4_000 < ((await session.execute(asked)).scalar() or 0) <= 5_000
            assert (await session.execute(asked)).scalar() == 0


async def test_a_bound_of_the_servers_own_is_never_loosened(postgres: Any) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    arguments = {"server_settings": {"application_name": NAME, "statement_timeout": "3s"}}
    async with engine_for(postgres, connect_args=arguments) as engine, AsyncSession(engine) as own:
        async with holdfast.timeout(20.0):
            assert (await own.execute(asked)).scalar() == 3_000
        async with holdfast.timeout(2.0):
            assert 1_000 < ((await own.execute(asked)).scalar() or 0) <= 2_000
        assert (await own.execute(asked)).scalar() == 3_000


@drivers
async def test_a_spent_limit_is_refused_before_anything_is_sent(postgres: Any, driver: str) -> None:
    asked = text("SELECT pg_backend_pid()")
    async with engine_for(postgres, driver, pool_size=1) as engine:
        async with engine.connect() as connection:
            known = (await connection.execute(asked)).scalar()
        async with engine.connect() as connection:
            with pytest.raises(holdfast.InsufficientBudget) as caught:  # noqa: PT012
                async with holdfast.timeout(10.0) as scope:
                    scope.move_deadline(scope.opened_at)
                    await connection.execute(text("SELECT 1, 'refused'"))
            assert isinstance(caught.value, sqlalchemy.exc.OperationalError)
            assert "/SELECT'" in str(caught.value), "the text of a statement is nobody's matter"
            assert "refused" not in str(caught.value)
        async with engine.connect() as connection:
            assert (await connection.execute(asked)).scalar() == known, "it was thrown away"


# -- the pool ----------------------------------------------------------------------------------


@drivers
async def test_a_place_in_the_pool_is_waited_for_within_the_deadline(
    postgres: Any, driver: str
) -> None:
    async with engine_for(postgres, driver, pool_size=1) as engine, engine.connect() as held:
        await held.execute(text("SELECT 1"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
            async with holdfast.timeout(0.2):
                await engine.connect()
        assert loop.time() - began < ENDED
        assert isinstance(caught.value, holdfast.DeadlineExceeded)
        assert "pool size 1, overflow 0, 1 checked out" in str(caught.value)


async def test_the_pools_own_time_out_stays_its_own(postgres: Any) -> None:
    async with (
        engine_for(postgres, pool_size=1, pool_timeout=0.05) as engine,
        engine.connect(),
        holdfast.timeout(60.0),
    ):
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
            await engine.connect()
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)


async def test_a_pool_that_is_made_anew_is_bounded_as_well(postgres: Any) -> None:
    async with engine_for(postgres, pool_size=1) as engine:
        await engine.dispose()
        async with engine.connect():
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.1):
                    await engine.connect()


@drivers
async def test_connecting_ends_with_the_deadline(postgres: Any, driver: str) -> None:
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        async with engine_for(postgres, driver, proxy.port) as engine:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.2):
                    await engine.connect()
            assert loop.time() - began < ENDED
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# -- cancellation ------------------------------------------------------------------------------


@drivers
async def test_locks_are_released_when_a_request_is_cancelled(postgres: Any, driver: str) -> None:
    postgres.ask("DROP TABLE IF EXISTS sa_locks")
    postgres.ask("CREATE TABLE sa_locks AS SELECT 1 AS id")
    async with engine_for(postgres, driver) as engine:
        begun = asyncio.Event()

        async def request() -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text("SELECT * FROM sa_locks FOR UPDATE"))
                begun.set()
                await session.execute(text("SELECT pg_sleep(60), 'locked'"))

        task = asyncio.create_task(request())
        await begun.wait()
        await until(lambda: postgres.at_work("'locked'") == 1, "it does not run")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with holdfast.timeout(ENDED), AsyncSession(engine) as session:
            await session.execute(text("SELECT * FROM sa_locks FOR UPDATE"))
        await until(lambda: postgres.at_work("'locked'") == 0, "the statement runs on")
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    postgres.ask("DROP TABLE sa_locks")


async def test_what_is_undone_is_as_it_was(postgres: Any) -> None:
    async with engine_for(postgres) as engine:
        kind = type(engine.pool)
        uninstrument(uninstrument(engine))
        assert type(engine.pool) is not kind
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            async with holdfast.timeout(0.2), engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(10)"))
        assert not isinstance(caught.value, sqlalchemy.exc.SQLAlchemyError)
    with pytest.raises(TypeError, match="neither an Engine nor an AsyncEngine"):
        instrument(object())  # type: ignore[type-var]
