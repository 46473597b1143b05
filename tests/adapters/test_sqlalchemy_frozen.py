"""A server that freezes: whoever waits for it is free at the deadline and a grace."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import holdfast
from holdfast.adapters.sqlalchemy import instrument
from holdfast.domain.errors import OutcomeUnknown
from holdfast.runtime.ambient import now
from holdfast.testing.proxy import FaultProxy
from tests.adapters import test_sqlalchemy_sync as sync
from tests.adapters.test_sqlalchemy import ENDED, drivers, engine_for

pytestmark = pytest.mark.real_time


def freeze(proxy: FaultProxy, scope: holdfast.Scope, *, answers_only: bool = False) -> float:
    """From now on nothing comes and nothing goes, and the deadline is near; when that began."""
    proxy.to_client.stall()
    if not answers_only:
        proxy.to_server.stall()
    scope.move_deadline(now() + 0.2)
    return asyncio.get_running_loop().time()


@drivers
@pytest.mark.parametrize("moment", ["execute", "rollback", "close", "dispose"])
async def test_a_frozen_server_frees_the_caller(postgres: Any, driver: str, moment: str) -> None:
    async with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port) as engine,
    ):
        instrument(engine, grace=0.2)
        loop = asyncio.get_running_loop()
        began = 0.0

        async def work() -> None:
            nonlocal began
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT 1"))
                began = freeze(proxy, scope)
                if moment == "execute":
                    await session.execute(text("SELECT 2"))
                elif moment == "rollback":
                    await session.rollback()

        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(60.0) as scope:
                if moment == "dispose":
                    async with engine.connect():
                        pass
                    began = freeze(proxy, scope)
                    await engine.dispose()
                else:
                    await work()
                await asyncio.sleep(ENDED)
        assert loop.time() - began < ENDED
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        proxy.heal()
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 3"))).scalar() == 3


@drivers
async def test_a_commit_that_is_answered_within_the_grace_is_a_commit(
    postgres: Any, driver: str
) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS sa_late (id int)")
    async with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port) as engine,
    ):
        done = False
        with pytest.raises(holdfast.DeadlineExceeded) as caught:  # noqa: PT012
            async with holdfast.timeout(60.0) as scope, engine.begin() as connection:
                await connection.execute(text("INSERT INTO sa_late VALUES (1)"))
                proxy.to_client.delay(0.3)
                scope.move_deadline(now() + 0.1)
                await connection.commit()
                done = True
                await asyncio.sleep(ENDED)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert done
        assert postgres.ask("SELECT count(*) FROM sa_late") == [(1,)]
        postgres.ask("DROP TABLE sa_late")


@drivers
async def test_many_connections_are_closed_within_one_grace(postgres: Any, driver: str) -> None:
    async with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        engine_for(postgres, driver, proxy.port, pool_size=30) as engine,
    ):
        opened = [await engine.connect() for _ in range(30)]
        for connection in opened:
            await connection.close()
        proxy.to_client.stall()
        proxy.to_server.stall()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with suppress(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await engine.dispose()
        assert loop.time() - began < 2 * ENDED, "each had a grace of its own"


def test_a_frozen_server_frees_a_thread_that_has_a_driver_of_ours(postgres: Any) -> None:
    with (
        FaultProxy(postgres.host, postgres.port) as proxy,
        sync.engine_for(postgres, "psycopg ours", proxy.port) as engine,
    ):
        for moment in ("execute", "close"):
            began = time.monotonic()
            with (  # noqa: PT012
                pytest.raises(holdfast.DeadlineExceeded),
                holdfast.timeout(0.3),
                Session(engine) as session,
            ):
                session.execute(text("SELECT 1"))
                proxy.to_client.stall()
                if moment == "execute":
                    session.execute(text("SELECT 2"))
            assert time.monotonic() - began < ENDED
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            proxy.heal()
