"""Synchronous engines of SQLAlchemy in threads: PostgreSQL by plain drivers and by ours, SQLite."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import holdfast
from holdfast.adapters.sqlalchemy import instrument
from holdfast.domain.errors import OutcomeUnknown
from holdfast.testing.proxy import FaultProxy

pytestmark = [
    pytest.mark.real_time,
    # Of psycopg, when the connection of a stream that was cut is closed.
    pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open"),
]

ENDED = 5.0
NAME = "sa-sync"
FOREVER = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n
"""


@contextmanager
def engine_for(server: Any, driver: str, port: int | None = None, **more: Any) -> Iterator[Engine]:
    plain, _, held = driver.partition(" ")
    url = server.dsn(port=port, scheme=f"postgresql+{plain}")
    settings: dict[str, Any] = {"pool_size": 3, "max_overflow": 0}
    settings["connect_args"] = {"application_name": NAME}
    if held:
        module = import_module("holdfast.adapters.psycopg")
        dsn = server.dsn(port=port) + f"?application_name={NAME}"
        settings["creator"] = lambda: module.Connection.connect(dsn)
    engine = instrument(create_engine(url, **{**settings, **more}))
    try:
        yield engine
    finally:
        engine.dispose()
        gc.collect()


@contextmanager
def sqlite_in(place: Path, **more: Any) -> Iterator[Engine]:
    engine = instrument(create_engine(f"sqlite:///{place / 'test.db'}", **more))
    try:
        yield engine
    finally:
        engine.dispose()
        gc.collect()


DRIVERS = ["psycopg", "psycopg2", "psycopg ours"]
drivers = pytest.mark.parametrize("driver", DRIVERS)


@drivers
def test_a_statement_in_a_thread_ends_with_its_deadline(postgres: Any, driver: str) -> None:
    with engine_for(postgres, driver) as engine:
        began = time.monotonic()
        with (
            pytest.raises(holdfast.DeadlineExceeded) as caught,
            holdfast.timeout(0.3),
            Session(engine) as session,
        ):
            session.execute(text("SELECT pg_sleep(60), 'thread'"))
        assert time.monotonic() - began < ENDED
        error: Any = caught.value
        assert isinstance(error, sqlalchemy.exc.OperationalError)
        assert "pg_sleep" in error.statement
        assert error.orig is not None
        assert "deadline exceeded in scope 'timeout/S" in str(error)
        assert postgres.at_work("'thread'") == 0
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        with Session(engine) as session:
            assert session.execute(text("SELECT 1")).scalar() == 1


@drivers
def test_what_is_left_shrinks_within_a_transaction(postgres: Any, driver: str) -> None:
    asked = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    with engine_for(postgres, driver) as engine, Session(engine) as session:
        with holdfast.timeout(20.0):
            assert 19_000 < (session.execute(asked).scalar() or 0) <= 20_000
            with holdfast.timeout(2.0):
                assert 1_000 < (session.execute(asked).scalar() or 0) <= 2_000
            assert 18_000 < (session.execute(asked).scalar() or 0) <= 20_000
        assert session.execute(asked).scalar() == 0
        session.rollback()
        with holdfast.timeout(20.0):
            assert 19_000 < (session.execute(asked).scalar() or 0) <= 20_000
            with session.begin_nested() as inner, holdfast.timeout(2.0):
                assert 1_000 < (session.execute(asked).scalar() or 0) <= 2_000
                inner.rollback()
            assert 18_000 < (session.execute(asked).scalar() or 0) <= 20_000


@drivers
def test_streams_and_many_parameters_are_bounded_as_well(postgres: Any, driver: str) -> None:
    slow = text("SELECT n, pg_sleep(0.01) FROM generate_series(1, 100000) AS n")
    with engine_for(postgres, driver) as engine:
        with (  # noqa: PT012
            pytest.raises(holdfast.DeadlineExceeded),
            holdfast.timeout(0.3),
            engine.connect() as connection,
        ):
            streamed = connection.execution_options(yield_per=1000)
            for _ in streamed.execute(slow):
                pass
        if driver == "psycopg":
            return  # it has the server do them one by one, each of which is bounded by itself
        many = [{"takes": 0.05}] * 100
        began = time.monotonic()
        with (
            pytest.raises(holdfast.DeadlineExceeded),
            holdfast.timeout(0.3),
            engine.connect() as connection,
        ):
            connection.execute(text("SELECT pg_sleep(:takes)"), many)
        assert time.monotonic() - began < ENDED


@drivers
def test_a_thread_waits_for_a_place_within_the_deadline(postgres: Any, driver: str) -> None:
    with engine_for(postgres, driver, pool_size=1) as engine, engine.connect():
        began = time.monotonic()
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught, holdfast.timeout(0.2):
            engine.connect()
        assert time.monotonic() - began < ENDED
        assert isinstance(caught.value, holdfast.DeadlineExceeded)
        assert "pool size 1, overflow 0, 1 checked out" in str(caught.value)


@drivers
def test_a_spent_limit_is_refused_in_a_thread(postgres: Any, driver: str) -> None:
    with engine_for(postgres, driver) as engine, engine.connect() as connection:  # noqa: SIM117
        with (  # noqa: PT012
            pytest.raises(holdfast.InsufficientBudget),
            holdfast.timeout(0.05),
        ):
            time.sleep(0.06)
            connection.execute(text("SELECT 1"))


@drivers
def test_connecting_in_a_thread_is_bounded(postgres: Any, driver: str) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        with engine_for(postgres, driver, proxy.port) as engine:
            began = time.monotonic()
            with (
                pytest.raises(holdfast.DeadlineExceeded) as caught,
                holdfast.timeout(0.2),
            ):
                engine.connect()
            assert isinstance(caught.value, sqlalchemy.exc.OperationalError)
            # libpq counts in seconds, and takes two at least.
            assert time.monotonic() - began < ENDED


@drivers
def test_a_commit_whose_connection_is_lost_is_unknown(postgres: Any, driver: str) -> None:
    with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port) as engine,
    ):
        with pytest.raises(OutcomeUnknown) as caught, Session(engine) as session:  # noqa: PT012
            session.execute(text("SELECT 1"))
            proxy.cut()
            session.commit()
        assert isinstance(caught.value, sqlalchemy.exc.DBAPIError)
        assert not holdfast.is_retryable(caught.value)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "sa_rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@drivers
def test_a_flush_that_is_cut_in_the_middle_leaves_nothing(postgres: Any, driver: str) -> None:
    with engine_for(postgres, driver) as engine:
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        postgres.ask(
            "CREATE OR REPLACE FUNCTION sa_slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$"
        )
        postgres.ask(
            "CREATE TRIGGER slow BEFORE INSERT ON sa_rows FOR EACH ROW EXECUTE FUNCTION sa_slow()"
        )
        with (
            pytest.raises(holdfast.DeadlineExceeded),
            holdfast.timeout(0.5),
            Session(engine) as session,
            session.begin(),
        ):
            session.add_all(Row(id=n, name=str(n)) for n in range(20_000))
        assert postgres.ask("SELECT count(*) FROM sa_rows") == [(0,)]
        assert postgres.ask("SELECT 1 FROM pg_locks WHERE relation = 'sa_rows'::regclass") == []
        Base.metadata.drop_all(engine)


@drivers
async def test_threads_of_requests_leave_the_pool_whole(postgres: Any, driver: str) -> None:
    """As Flask does it: a session for each request, many more threads than places."""
    outcomes: list[str] = []

    def request(n: int) -> None:
        try:
            with holdfast.timeout(0.25), Session(engine) as session:
                takes = {"n": n, "takes": 0.002 * (n % 7) if n % 3 else 2.0}
                row = session.execute(text("SELECT CAST(:n AS int), pg_sleep(:takes)"), takes).one()
                assert row[0] == n
                session.commit()
        except holdfast.DeadlineExceeded:
            outcomes.append("late")
        else:
            outcomes.append("done")

    with engine_for(postgres, driver) as engine:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(12) as threads:
            calls = [
                loop.run_in_executor(threads, contextvars.copy_context().run, request, n)
                for n in range(60)
            ]
            await asyncio.wait(calls)
            assert [call.exception() for call in calls] == [None] * len(calls)
        assert len(outcomes) == 60
        assert "done" in outcomes
        assert "late" in outcomes
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert postgres.backends(NAME) <= 3
        assert postgres.at_work("pg_sleep") == 0


# -- SQLite --------------------------------------------------------------------------------------


def test_a_statement_of_sqlite_is_interrupted_at_its_deadline(tmp_path: Path) -> None:
    with sqlite_in(tmp_path) as engine:
        began = time.monotonic()
        with (
            pytest.raises(holdfast.DeadlineExceeded) as caught,
            holdfast.timeout(0.2),
            Session(engine) as session,
        ):
            session.execute(text(FOREVER))
        assert time.monotonic() - began < ENDED
        assert isinstance(caught.value, sqlalchemy.exc.OperationalError)
        with Session(engine) as session:
            assert session.execute(text("SELECT 1")).scalar() == 1


def test_rows_of_sqlite_that_take_too_long_are_interrupted(tmp_path: Path) -> None:
    with sqlite_in(tmp_path) as engine, pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012, SIM117
        with holdfast.timeout(0.2), engine.connect() as connection:
            rows = connection.execute(
                text(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                    "SELECT i FROM n"
                )
            )
            for _ in rows:
                pass


def test_a_lock_of_sqlite_is_waited_for_within_the_deadline(tmp_path: Path) -> None:
    with sqlite_in(tmp_path) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE locked (id int)"))
        with engine.begin() as writer:
            writer.execute(text("INSERT INTO locked VALUES (1)"))
            began = time.monotonic()
            with (
                pytest.raises(holdfast.DeadlineExceeded) as caught,
                holdfast.timeout(0.2),
                engine.begin() as other,
            ):
                other.execute(text("INSERT INTO locked VALUES (2)"))
            assert time.monotonic() - began < 3.0, "the lock was waited for as if without deadline"
            assert isinstance(caught.value, sqlalchemy.exc.OperationalError)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id FROM locked")).scalars().all() == [1]
            assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 5000


async def test_a_statement_in_a_thread_ends_with_the_scope_that_waits_for_it(
    tmp_path: Path,
) -> None:
    with sqlite_in(tmp_path) as engine:

        def work() -> None:
            with Session(engine) as session:
                session.execute(text(FOREVER))

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as threads:  # noqa: SIM117
            with pytest.raises(holdfast.Cancelled):  # noqa: PT012
                async with holdfast.scope("caller") as scope:
                    loop.call_later(0.1, scope.cancel)
                    await loop.run_in_executor(threads, contextvars.copy_context().run, work)
            # The executor is left when its thread is done.
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_scope_that_is_over_does_not_reach_later_statements(tmp_path: Path) -> None:
    with sqlite_in(tmp_path, pool_size=1) as engine:
        with holdfast.timeout(0.1), engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        time.sleep(0.11)
        counted = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000)"
        with engine.connect() as connection:
            rows = connection.execute(text(f"{counted} SELECT count(*) FROM n"))
            assert rows.scalar() == 300_000
