"""Cancellation at every await of a session's life, and at random, against a real PostgreSQL.

Afterwards the pool has all its places, the server exactly the pool's backends, none of them at work
or in a transaction, and the tables what the callers were told.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import types
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

import holdfast
from holdfast.domain.errors import OutcomeUnknown
from tests.adapters.test_sqlalchemy import NAME, drivers, engine_for, until

pytestmark = [
    pytest.mark.real_time,
    # Of psycopg, when the connection of a stream that was cut is closed.
    pytest.mark.filterwarnings("ignore:.*AsyncServerCursor.*deleted while still open"),
]

AT_MOST = 60
"""Suspensions of a life; each test ends when a life has fewer than it was to be cut at."""


@types.coroutine
def driven(
    coro: Coroutine[Any, Any, Any], at: int, cut: Callable[[], object], seen: list[int]
) -> Generator[Any, Any, Any]:
    """`coro`, with `cut` called when it suspends for the `at`th time."""
    step: Callable[[], Any] = lambda: coro.send(None)  # noqa: E731
    while True:
        try:
            waiter = step()
        except StopIteration as done:
            return done.value
        seen[0] += 1
        if seen[0] == at:
            cut()
        try:
            yield waiter
        except BaseException as exc:
            step = lambda exc=exc: coro.throw(exc)  # type: ignore[misc] # noqa: E731
        else:
            step = lambda: coro.send(None)  # noqa: E731


async def life(engine: AsyncEngine, key: int, told: dict[int, str]) -> None:
    told[key] = "cut"
    async with AsyncSession(engine) as session:
        await session.execute(text("INSERT INTO sa_life VALUES (:key, 1)"), {"key": key})
        result = await session.stream(
            text("SELECT generate_series(1, 500) AS n"), execution_options={"yield_per": 100}
        )
        assert [row.n async for row in result] == list(range(1, 501))
        await session.execute(text("INSERT INTO sa_life VALUES (:key, 2)"), {"key": key})
        try:
            await session.commit()
        except OutcomeUnknown:
            told[key] = "unknown"
            raise
        told[key] = "done"
        await session.execute(text("SELECT * FROM sa_life"))
        await session.rollback()


async def cut_by_task(work: Callable[[], Any], at: int, seen: list[int]) -> None:
    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await driven(work(), at, task.cancel, seen)

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled():
        assert isinstance(task.exception(), OutcomeUnknown | None)


async def cut_by_scope(work: Callable[[], Any], at: int, seen: list[int]) -> None:
    try:
        async with holdfast.timeout(60.0) as scope:
            await driven(work(), at, lambda: scope.cancel("the test"), seen)
    except holdfast.ScopeEnded:
        pass


async def cut_by_anyio(work: Callable[[], Any], at: int, seen: list[int]) -> None:
    try:
        with anyio.CancelScope() as scope:
            await driven(work(), at, scope.cancel, seen)
    except OutcomeUnknown:
        pass


def rows_are_as_told(server: Any, told: dict[int, str]) -> None:
    found = Counter(key for (key,) in server.ask("SELECT key FROM sa_life"))
    for key, what in told.items():
        if what == "done":
            assert found[key] == 2, f"call {key} was committed, and has {found[key]} rows"
        elif what == "cut":
            assert found[key] == 0, f"call {key} was rolled back, and has {found[key]} rows"
        else:
            assert found[key] in (0, 2), f"half of call {key} is there"


async def pool_is_whole(server: Any, engine: AsyncEngine, size: int) -> None:
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    gc.collect()  # what psycopg was connecting when it was cancelled goes with its object
    await until(lambda: server.backends(NAME) <= size, "there are more backends than places")
    busy = (
        "SELECT state, query FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
    )
    await until(lambda: not server.ask(busy, NAME), "a backend is at work, or in a transaction")


@drivers
@pytest.mark.parametrize("cut", [cut_by_task, cut_by_scope, cut_by_anyio])
async def test_a_session_may_be_cut_anywhere(postgres: Any, driver: str, cut: Any) -> None:
    postgres.ask("DROP TABLE IF EXISTS sa_life")
    postgres.ask("CREATE TABLE sa_life (key int, part int)")
    told: dict[int, str] = {}
    async with engine_for(postgres, driver, pool_size=2) as engine:
        for at in range(1, AT_MOST):
            seen = [0]
            await cut(lambda at=at: life(engine, at, told), at, seen)
            pool: Any = engine.pool
            assert pool.checkedout() == 0
            if at % 8 == 0:  # what one has left is still there after some others
                await pool_is_whole(postgres, engine, 2)
            if seen[0] < at:
                break
        else:
            raise AssertionError("a life has more suspensions than the test cuts at")
        await pool_is_whole(postgres, engine, 2)
        assert told[at] == "done"
        assert at > 8
        rows_are_as_told(postgres, told)
    await until(lambda: postgres.backends(NAME) == 0, "a backend is left")
    postgres.ask("DROP TABLE sa_life")


async def storm(server: Any, driver: str, count: int, size: int = 8) -> None:
    """Calls with answers of their own, `count` of which are cut at random; the rest must match."""
    dice = random.Random(5)
    answers: list[tuple[int, Any]] = []
    async with engine_for(server, driver, pool_size=size) as engine:

        async def request(key: int) -> None:
            limit = dice.random() / 30 if dice.random() < 0.4 else 60.0
            if driver.startswith("psycopg"):
                # What it was connecting when it was cut stays open until it is collected.
                async with AsyncSession(engine) as session:
                    await session.connection()
                    async with holdfast.timeout(limit):
                        await ask(session, key)
            else:
                async with holdfast.timeout(limit), AsyncSession(engine) as session:
                    await ask(session, key)

        async def ask(session: AsyncSession, key: int) -> None:
            row = (
                await session.execute(
                    text("SELECT CAST(:key AS int), pg_sleep(:takes)"),
                    {"key": key, "takes": dice.random() / 100},
                )
            ).one()
            answers.append((key, row[0]))
            await session.commit()

        keys, cut = itertools.count(), 0
        loop = asyncio.get_running_loop()
        while cut < count:
            wave = [asyncio.create_task(request(next(keys))) for _ in range(4 * size)]
            for task in wave:
                if dice.random() < 0.6:
                    loop.call_later(dice.random() / 40, task.cancel)
            await asyncio.wait(wave)
            for task in wave:
                if task.cancelled():
                    cut += 1
                elif task.exception() is not None:
                    with pytest.raises((OutcomeUnknown, holdfast.DeadlineExceeded)):
                        await task
                    cut += 1
            del wave, task  # with the frames that they were cut in
        await pool_is_whole(server, engine, size)
        assert all(key == answer for key, answer in answers), "a row went to another request"
        assert answers
        # Every place of the pool works.
        opened = [await engine.connect() for _ in range(size)]
        for connection in opened:
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1
            await connection.close()
        await until(lambda: server.backends(NAME) == size, "not the pool's size of backends")


@drivers
async def test_many_cancellations_leave_the_pool_whole(postgres: Any, driver: str) -> None:
    await storm(postgres, driver, 200)


@pytest.mark.soak
@pytest.mark.timeout(900)
@drivers
async def test_thousands_of_cancellations_leave_the_pool_whole(postgres: Any, driver: str) -> None:
    await storm(postgres, driver, 5000)
