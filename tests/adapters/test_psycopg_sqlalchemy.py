"""psycopg connections of ours below SQLAlchemy, which knows nothing of them."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

import holdfast
from holdfast.adapters.psycopg import AsyncConnection, Connection
from holdfast.adapters.psycopg.bounds import milliseconds
from holdfast.domain.errors import DeadlineExceeded

SHOW = text("SELECT current_setting('statement_timeout'), :n")
ENDED = 5.0


@pytest.mark.real_time("asyncio", "uvloop")
async def test_on_a_loop(postgres: Any) -> None:
    async def opened() -> AsyncConnection[Any]:
        return await AsyncConnection.connect(postgres.dsn(), application_name="toolkit")

    engine = create_async_engine("postgresql+psycopg://", async_creator=opened, pool_size=2)
    async with holdfast.timeout(30), engine.begin() as connection:
        shown, n = (await connection.execute(SHOW, {"n": 7})).one()
        assert n == 7
        assert 28_000 < milliseconds(shown) <= 30_000
        async with connection.begin_nested():
            await connection.execute(SHOW, {"n": 8})
    for mode in ("READ COMMITTED", "AUTOCOMMIT"):
        other = engine.execution_options(isolation_level=mode)
        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.15), other.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(100)"))
        assert postgres.at_work("pg_sleep") == 0
    assert postgres.backends("toolkit") <= 2
    await engine.dispose()


def test_in_a_thread(postgres: Any) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: Connection.connect(postgres.dsn())
    )
    with holdfast.timeout(30), engine.begin() as connection:
        shown, n = connection.execute(SHOW, {"n": 7}).one()
        assert n == 7
        assert 28_000 < milliseconds(shown) <= 30_000
    began = time.monotonic()
    with (
        pytest.raises(DBAPIError) as caught,
        holdfast.timeout(0.15),
        engine.connect() as connection,
    ):
        connection.execute(text("SELECT pg_sleep(100)"))
    assert isinstance(caught.value.orig, DeadlineExceeded)
    assert time.monotonic() - began < ENDED
    with suppress(DBAPIError), engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
