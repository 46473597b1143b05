"""Pools of engines in a stop, transactions through a pooler, and the ways to write a commit."""

from __future__ import annotations

import asyncio
import gc
import pickle
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

import holdfast
from holdfast.adapters.sqlalchemy import instrument, pool_of
from holdfast.domain.errors import OutcomeUnknown
from holdfast.testing.proxy import FaultProxy
from tests.adapters import test_sqlalchemy_sync as sync
from tests.adapters.test_sqlalchemy import ENDED, NAME, drivers, engine_for, until
from tests.adapters.test_sqlalchemy_frozen import freeze

pytestmark = pytest.mark.real_time


# -- in a stop ---------------------------------------------------------------------------------


async def test_idle_connections_are_closed_first(postgres: Any) -> None:
    async with engine_for(postgres, pool_size=3) as engine:
        pool: Any = engine.pool
        async with engine.connect() as one, engine.connect() as two, engine.connect() as three:
            for each in (one, two, three):
                await each.execute(text("SELECT 1"))
            await three.close()
            await two.close()
            cleaned = pool_of(engine)
            assert await cleaned.preclean(0.1) == 2
            assert (pool.checkedout(), pool.checkedin()) == (1, 0)
            await one.execute(text("SELECT 1"))
            await until(lambda: postgres.backends(NAME) == 1, "idle connections are open")
        # What comes back is closed when it has been idle for a while.
        await until(lambda: pool.checkedin() == 0, "an idle connection is kept")
        await until(lambda: postgres.backends(NAME) == 0, "an idle connection is open")
        async with engine.connect() as again:
            assert (await again.execute(text("SELECT 1"))).scalar() == 1


async def test_idle_connections_of_threads_are_closed_first(postgres: Any) -> None:
    with sync.engine_for(postgres, "psycopg2") as engine:
        with engine.connect() as held, engine.connect():
            pass
        assert await pool_of(engine).preclean(0.1) == 2
        await until(lambda: postgres.backends(sync.NAME) == 0, "idle connections are open")
        with engine.connect() as held:
            assert held.execute(text("SELECT 1")).scalar() == 1


async def test_a_pool_that_keeps_nothing_has_no_part_in_a_stop(postgres: Any) -> None:
    engine = instrument(
        create_engine(postgres.dsn(scheme="postgresql+psycopg2"), poolclass=NullPool)
    )
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert await pool_of(engine).preclean(1.0) == 0
    with pytest.raises(TypeError, match="neither an Engine"):
        pool_of(object())


# -- behind a pooler ---------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_no_bound_reaches_the_next_client_of_a_pooler(pgbouncer: Any, driver: str) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    arguments: dict[str, Any] = {"prepare_threshold": None} if driver == "psycopg" else {}
    with sync.engine_for(pgbouncer, driver, connect_args=arguments) as engine:
        for n in range(8):
            with holdfast.timeout(10.0 + n), engine.connect() as connection:
                assert 8_000 < (connection.execute(asked).scalar() or 0) <= 10_000 + 1_000 * n
            with engine.connect() as other:
                assert other.execute(asked).scalar() == 0
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.3), engine.begin() as cut:
            cut.execute(text("SELECT pg_sleep(60)"))
        with engine.connect() as other:
            assert other.execute(asked).scalar() == 0


# -- the ways to write a commit ------------------------------------------------------------------


@drivers
@pytest.mark.parametrize("how", ["session.commit", "session.begin", "engine.begin"])
async def test_a_commit_without_an_answer_is_never_rolled_back(
    postgres: Any, driver: str, how: str
) -> None:
    insert = text("INSERT INTO sa_ways VALUES (1)")
    postgres.ask("DROP TABLE IF EXISTS sa_ways")
    postgres.ask("CREATE TABLE sa_ways (id int)")
    async with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port) as engine,
    ):
        loop = asyncio.get_running_loop()
        began = 0.0

        async def work() -> None:
            nonlocal began
            if how == "engine.begin":
                async with engine.begin() as connection:
                    await connection.execute(insert)
                    began = freeze(proxy, scope, answers_only=True)
            elif how == "session.begin":
                async with AsyncSession(engine) as session, session.begin():
                    await session.execute(insert)
                    began = freeze(proxy, scope, answers_only=True)
            else:
                async with AsyncSession(engine) as session:
                    await session.execute(insert)
                    began = freeze(proxy, scope, answers_only=True)
                    await session.commit()

        with pytest.raises(OutcomeUnknown) as caught:
            async with holdfast.timeout(60.0) as scope:
                await work()
        assert loop.time() - began < ENDED
        error: Any = caught.value
        assert isinstance(error, sqlalchemy.exc.DBAPIError)
        assert not holdfast.is_retryable(error)
        assert isinstance(pickle.loads(pickle.dumps(error)), OutcomeUnknown)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await until(lambda: bool(postgres.ask("SELECT 1 FROM sa_ways")), "it was not committed")
    await asyncio.sleep(0.1)
    assert postgres.ask("SELECT count(*) FROM sa_ways") == [(1,)], "it was committed again"
    postgres.ask("DROP TABLE sa_ways")


@drivers
async def test_a_commit_after_the_deadline_is_not_sent(postgres: Any, driver: str) -> None:
    postgres.ask("DROP TABLE IF EXISTS sa_refused")
    postgres.ask("CREATE TABLE sa_refused (id int)")
    async with engine_for(postgres, driver) as engine:
        with pytest.raises(holdfast.DeadlineExceeded) as caught:  # noqa: PT012
            async with holdfast.timeout(10.0) as scope, engine.begin() as connection:
                await connection.execute(text("INSERT INTO sa_refused VALUES (1)"))
                scope.move_deadline(scope.opened_at)
        assert not isinstance(caught.value, OutcomeUnknown)
        await until(
            lambda: postgres.ask("SELECT count(*) FROM sa_refused") == [(0,)], "it was committed"
        )
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    gc.collect()
    postgres.ask("DROP TABLE sa_refused")


def test_in_autocommit_a_plain_server_is_not_told(postgres: Any) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    with (
        sync.engine_for(postgres, "psycopg2", isolation_level="AUTOCOMMIT") as engine,
        holdfast.timeout(5.0),
        engine.connect() as connection,
    ):
        assert connection.execute(asked).scalar() == 0
        connection.execute(text("VACUUM pg_class"))


def test_a_server_need_not_be_told(postgres: Any) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    with sync.engine_for(postgres, "psycopg2") as engine:
        instrument(engine, tell_server=False)
        with holdfast.timeout(5.0), engine.connect() as connection:
            assert connection.execute(asked).scalar() == 0
        with pytest.raises(ValueError, match="a grace finite"):
            instrument(engine, grace=float("inf"))


def test_errors_go_to_other_processes(postgres: Any) -> None:
    with sync.engine_for(postgres, "psycopg2", pool_size=1) as engine:
        with (
            pytest.raises(holdfast.DeadlineExceeded) as late,
            holdfast.timeout(0.2),
            engine.connect() as connection,
        ):
            connection.execute(text("SELECT pg_sleep(10)"))
        with (
            engine.connect(),
            pytest.raises(holdfast.DeadlineExceeded) as full,
            holdfast.timeout(0.1),
        ):
            engine.connect()
    for error, kind in (
        (late.value, sqlalchemy.exc.OperationalError),
        (full.value, sqlalchemy.exc.TimeoutError),
    ):
        twin = pickle.loads(pickle.dumps(error))
        assert isinstance(twin, kind)
        assert str(twin) == str(error)
        assert twin.cause == error.cause
