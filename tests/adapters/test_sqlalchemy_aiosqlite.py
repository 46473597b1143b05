"""SQLite by aiosqlite: what runs in its thread is interrupted, and the connection stays usable."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import holdfast
from holdfast.adapters.sqlalchemy import instrument
from tests.adapters.test_sqlalchemy_sync import ENDED, FOREVER

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def engine_in(place: Path | None, **more: Any) -> AsyncIterator[AsyncEngine]:
    path = "" if place is None else f"/{place / 'test.db'}"
    engine = instrument(create_async_engine(f"sqlite+aiosqlite://{path}", **more))
    try:
        yield engine
    finally:
        await engine.dispose()
        gc.collect()


async def answers(engine: AsyncEngine) -> bool:
    async with AsyncSession(engine) as session:
        return (await session.execute(text("SELECT 1"))).scalar() == 1


async def test_a_statement_ends_with_its_deadline(tmp_path: Path) -> None:
    async with engine_in(tmp_path, pool_size=1) as engine:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2), AsyncSession(engine) as session:
                await session.execute(text(FOREVER))
        assert await answers(engine)
        assert loop.time() - began < ENDED
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_statement_ends_when_it_is_cancelled(tmp_path: Path, how: str) -> None:
    async with engine_in(tmp_path, pool_size=1) as engine:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def request() -> None:
            async with holdfast.scope("request") as scope, AsyncSession(engine) as session:
                if how == "scope":
                    loop.call_later(0.1, scope.cancel)
                await session.execute(text(FOREVER))

        task = asyncio.create_task(request())
        if how == "task":
            loop.call_later(0.1, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), holdfast.Cancelled)
        assert await answers(engine)
        assert loop.time() - began < ENDED


async def test_a_database_in_memory_survives_a_cancellation() -> None:
    """It lives in its one connection, which SQLAlchemy throws away when it is cancelled."""
    async with engine_in(None) as engine:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE kept (id int)"))
            await connection.execute(text("INSERT INTO kept VALUES (7)"))
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(0.2), AsyncSession(engine) as session, session.begin():
                await session.execute(text("INSERT INTO kept VALUES (8)"))
                await session.execute(text(FOREVER))
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT id FROM kept"))).scalars().all() == [7]


async def test_a_lock_is_waited_for_within_the_deadline(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE locked (id int)"))
        async with engine.begin() as writer:
            await writer.execute(text("INSERT INTO locked VALUES (1)"))
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.2), engine.begin() as other:
                    await other.execute(text("INSERT INTO locked VALUES (2)"))
            assert loop.time() - began < 3.0, "the lock was waited for as if without deadline"
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT id FROM locked"))
            assert found.scalars().all() == [1]


async def test_a_place_in_the_pool_is_waited_for_within_the_deadline(tmp_path: Path) -> None:
    async with engine_in(tmp_path, pool_size=1, max_overflow=0) as engine, engine.connect():
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
            async with holdfast.timeout(0.2):
                await engine.connect()
        assert isinstance(caught.value, holdfast.DeadlineExceeded)
