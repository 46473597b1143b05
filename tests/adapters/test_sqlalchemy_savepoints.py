"""Savepoints whose time is over: what was done in them is undone, and the rest stays usable.

A rollback to a savepoint that is refused, or comes to nothing, would have the rows of its block
committed with the others, although its caller was told that it has failed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import holdfast
from holdfast.runtime.ambient import now
from holdfast.testing.proxy import FaultProxy
from tests.adapters import test_sqlalchemy_aiosqlite as aiosqlite
from tests.adapters import test_sqlalchemy_sync as sync
from tests.adapters.test_sqlalchemy import ENDED, drivers, engine_for

pytestmark = pytest.mark.real_time

ROWS = "SELECT n FROM sa_saved ORDER BY n"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
in_threads = pytest.mark.parametrize("driver", [*sync.DRIVERS, "sqlite"])
on_loop = pytest.mark.parametrize(
    "driver", ["asyncpg", "psycopg", "asyncpg ours", "psycopg ours", "aiosqlite"]
)


def insert(n: int) -> Any:
    return text(f"INSERT INTO sa_saved VALUES ({n})")


@pytest.fixture
def engines(postgres: Any, tmp_path: Path) -> Any:
    postgres.ask("DROP TABLE IF EXISTS sa_saved")
    postgres.ask("CREATE TABLE sa_saved (n int)")
    kinds = {
        "sqlite": lambda: sync.sqlite_in(tmp_path),
        "aiosqlite": lambda: aiosqlite.engine_in(tmp_path),
    }

    def make(driver: str) -> Any:
        if "sqlite" in driver:
            with sync.sqlite_in(tmp_path) as engine, engine.begin() as connection:
                connection.execute(text("CREATE TABLE sa_saved (n int)"))
            return kinds[driver]()
        return sync.engine_for(postgres, driver)

    return make


@pytest.fixture
def engines_on_loop(postgres: Any, engines: Any) -> Any:
    def make(driver: str) -> Any:
        return engines(driver) if driver == "aiosqlite" else engine_for(postgres, driver)

    return make


# -- the time is over between statements ---------------------------------------------------------


@on_loop
@pytest.mark.parametrize("end", ["cancellation", "error", "release"])
async def test_a_savepoint_is_undone_when_its_time_is_over(
    engines_on_loop: Any, driver: str, end: str
) -> None:
    async with engines_on_loop(driver) as engine:
        with suppress(sqlalchemy.exc.PendingRollbackError):
            async with engine.begin() as connection:
                await connection.execute(insert(1))
                with pytest.raises((holdfast.DeadlineExceeded, KeyError)) as caught:  # noqa: PT012
                    async with holdfast.timeout(0.1), connection.begin_nested():
                        await connection.execute(insert(2))
                        if end == "cancellation":
                            await asyncio.sleep(ENDED)
                        time.sleep(0.15)  # noqa: ASYNC251 - so that nothing can be cancelled
                        if end == "error":
                            raise KeyError
                if end != "release":
                    assert not isinstance(caught.value, holdfast.InsufficientBudget)
                await connection.execute(insert(3))
        async with engine.connect() as connection:
            found = (await connection.execute(text(ROWS))).scalars().all()
        # Where the release was cut all of the transaction may be undone.
        assert found in ([[1, 3], []] if end == "release" else [[1, 3]])


@in_threads
@pytest.mark.parametrize("end", ["error", "release"])
def test_a_savepoint_of_a_thread_is_undone_when_its_time_is_over(
    engines: Any, driver: str, end: str
) -> None:
    with engines(driver) as engine:
        with engine.begin() as connection:
            connection.execute(insert(1))
            with (  # noqa: PT012
                pytest.raises((holdfast.DeadlineExceeded, KeyError)),
                holdfast.timeout(0.1),
                connection.begin_nested(),
            ):
                connection.execute(insert(2))
                time.sleep(0.15)
                if end == "error":
                    raise KeyError
            connection.execute(insert(3))
        with engine.connect() as connection:
            assert connection.execute(text(ROWS)).scalars().all() == [1, 3]


# -- a statement is cut --------------------------------------------------------------------------


@on_loop
async def test_a_transaction_goes_on_after_a_savepoint_in_which_a_statement_was_cut(
    engines_on_loop: Any, driver: str
) -> None:
    slow = f"{ENDLESS} SELECT count(*) FROM n" if driver == "aiosqlite" else "SELECT pg_sleep(60)"
    async with engines_on_loop(driver) as engine:
        went_on = True
        try:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(insert(1))
                with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
                    async with holdfast.timeout(0.2), session.begin_nested():
                        await session.execute(insert(2))
                        await session.execute(text(slow))
                await session.execute(insert(3))
        except (sqlalchemy.exc.PendingRollbackError, sqlalchemy.exc.InvalidRequestError):
            went_on = False  # the connection of a plain driver is thrown away
        assert went_on or driver in ("asyncpg", "psycopg")
        async with engine.connect() as connection:
            found = (await connection.execute(text(ROWS))).scalars().all()
        assert found == ([1, 3] if went_on else [])


@in_threads
def test_a_transaction_of_a_thread_goes_on_after_a_savepoint_in_which_a_statement_was_cut(
    engines: Any, driver: str
) -> None:
    slow = f"{ENDLESS} SELECT count(*) FROM n" if driver == "sqlite" else "SELECT pg_sleep(60)"
    with engines(driver) as engine:
        with Session(engine) as session, session.begin():
            session.execute(insert(1))
            with (  # noqa: PT012
                pytest.raises(holdfast.DeadlineExceeded) as caught,
                holdfast.timeout(0.2),
                session.begin_nested(),
            ):
                session.execute(insert(2))
                session.execute(text(slow))
            assert not isinstance(caught.value, holdfast.InsufficientBudget)
            session.execute(insert(3))
        with engine.connect() as connection:
            assert connection.execute(text(ROWS)).scalars().all() == [1, 3]


@drivers
async def test_a_savepoint_that_a_frozen_server_does_not_undo_ends_its_transaction(
    postgres: Any, engines: Any, driver: str
) -> None:
    async with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port) as engine,
    ):
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises((sqlalchemy.exc.SQLAlchemyError, OSError)):  # noqa: PT012
            async with engine.begin() as connection:
                await connection.execute(insert(1))
                with suppress(holdfast.DeadlineExceeded):
                    async with holdfast.timeout(60.0) as scope, connection.begin_nested():
                        await connection.execute(insert(2))
                        proxy.to_client.stall()
                        scope.move_deadline(now() + 0.1)
                        await asyncio.sleep(ENDED)
                proxy.heal()
                await connection.execute(insert(3))
        assert loop.time() - began < ENDED
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert postgres.ask(ROWS) == []


# -- SQLite undoes more --------------------------------------------------------------------------


def test_sqlite_that_undoes_all_when_it_is_interrupted_is_not_gone_on_with(engines: Any) -> None:
    """Interrupted while it writes, it rolls back the transaction, and would begin another."""
    with engines("sqlite") as engine:
        for nested in (False, True):
            with pytest.raises(sqlalchemy.exc.PendingRollbackError), engine.begin() as connection:  # noqa: PT012
                connection.execute(insert(1))
                with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.1):  # noqa: PT012
                    inner = connection.begin_nested() if nested else None
                    try:
                        connection.execute(text(f"INSERT INTO sa_saved {ENDLESS} SELECT i FROM n"))
                    finally:
                        if inner is not None:
                            inner.rollback()
                if nested:
                    connection.execute(insert(3))
        with engine.begin() as connection:
            connection.execute(insert(4))
        with engine.connect() as connection:
            assert connection.execute(text(ROWS)).scalars().all() == [4]


@pytest.mark.parametrize("nested", [False, True])
async def test_aiosqlite_that_undoes_all_when_it_is_interrupted_is_not_gone_on_with(
    engines: Any, nested: bool
) -> None:
    endless = text(f"INSERT INTO sa_saved {ENDLESS} SELECT i FROM n")
    async with engines("aiosqlite") as engine:
        with pytest.raises(sqlalchemy.exc.PendingRollbackError):  # noqa: PT012
            async with engine.begin() as connection:
                await connection.execute(insert(1))
                with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
                    async with holdfast.timeout(0.1):
                        if nested:
                            async with connection.begin_nested():
                                await connection.execute(endless)
                        await connection.execute(endless)
                if nested:
                    await connection.execute(insert(3))
        async with engine.begin() as connection:
            await connection.execute(insert(4))
        async with engine.connect() as connection:
            assert (await connection.execute(text(ROWS))).scalars().all() == [4]
