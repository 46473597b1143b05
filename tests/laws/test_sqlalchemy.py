"""SQLAlchemy under the carrier laws: on a loop and in threads, on PostgreSQL and on SQLite.

The far side is a statement that takes its time. On PostgreSQL a function tells by notices, which
come at once, that it has begun, with the time-out that it reads there, and that it is done. That it
was cancelled is seen from beside: it is no longer among what the server is at. On SQLite, which is
no server, functions of ours tell the same, and that they are called no more.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from holdfast.adapters.asyncpg import HeldConnection
from holdfast.adapters.sqlalchemy import instrument
from holdfast.domain.context import Carried
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.domain.instant import NEVER
from holdfast.runtime.clock import monotonic
from holdfast.testing.laws import Call, Peer, Visit
from tests.laws.kinds import StatementLaws

MOST = 64
MANY = ("concurrent", "every_call", "outlives", "many_cancellations")
"""Of the names of laws that make many calls at once."""
FUNCTION = """
CREATE OR REPLACE FUNCTION sa_visit(key text, takes float) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'began % % ms', key, (
        SELECT setting FROM pg_settings WHERE name = 'statement_timeout'
    );
    PERFORM pg_sleep(takes);
    RAISE NOTICE 'done %', key;
    RETURN key;
END $$
"""
STATEMENT = """
WITH RECURSIVE n(i) AS (
    SELECT began(:key)
    UNION ALL
    SELECT i + 1 FROM n WHERE waits(:key, :takes, (
        WITH RECURSIVE m(j) AS (SELECT n.i UNION ALL SELECT j + 1 FROM m LIMIT 200)
        SELECT count(*) FROM m
    ))
) SELECT :key FROM n LIMIT 1 OFFSET (SELECT count(*) - 1 FROM n)
"""
"""The inner part only makes steps, as many as between two looks at the clock."""
GONE = 0.1
"""Seconds after which a statement of SQLite that calls nobody is taken for ended."""


class Server(Peer):
    """The far side, as it tells of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.beats: dict[str, float] = {}

    # -- PostgreSQL ------------------------------------------------------------------------------

    def note(self, message: str) -> None:
        what, key, *rest = message.split()
        if what == "began":
            self.began(key, int(rest[0]) / 1000 or NEVER)
        else:
            # What is done may be seen from beside before its notice is read.
            self.visits[key][-1].ends[:] = [(what, monotonic())]

    async def look(self, dsn: str) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as beside:
            while True:
                before = self.open_visits()
                found = await beside.execute(
                    "SELECT query FROM pg_stat_activity WHERE state = 'active'"
                )
                texts = " ".join([text for (text,) in await found.fetchall()])
                for key in before:
                    for visit in self.visits[key]:
                        if not visit.ends and f"sa_visit('{key}'" not in texts:
                            visit.ends.append(("cancelled", monotonic()))
                await asyncio.sleep(0.02)

    # -- SQLite ----------------------------------------------------------------------------------

    def began(self, key: str, left: float) -> None:
        self.visits.setdefault(key, []).append(Visit(monotonic(), left, Carried()))

    def waits(self, key: str, takes: float) -> bool:
        visit = self.visits[key][-1]
        self.beats[key] = now = monotonic()
        if now - visit.began >= takes:
            visit.ends[:] = [("done", now)]
            return False
        time.sleep(min(0.005, takes))
        return True

    async def listen(self) -> None:
        while True:
            for key in self.open_visits():
                beat = self.beats.get(key, 0.0)
                for visit in self.visits[key]:
                    if not visit.ends and max(beat, visit.began) < monotonic() - GONE:
                        visit.ends.append(("cancelled", max(beat, visit.began)))
            await asyncio.sleep(0.01)

    def tells(self, record: Any) -> tuple[Callable[[str], int], Callable[..., bool]]:
        """The functions for one connection."""

        def began(key: str) -> int:
            state = record.info["holdfast"]
            self.began(key, state.limit - monotonic())
            return 1

        def waits(key: str, takes: float, _: int) -> bool:
            return self.waits(key, takes)

        return began, waits


@asynccontextmanager
async def on_loop(
    url: str, peer: Server, settings: dict[str, Any], warm: int
) -> AsyncGenerator[Call]:
    engine = instrument(create_async_engine(url, pool_size=MOST, max_overflow=0, **settings))

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        if engine.dialect.driver == "asyncpg":
            connection.driver_connection.add_log_listener(lambda _, m: peer.note(m.message))
        else:
            began, waits = peer.tells(record)
            connection.create_function("began", 1, began)
            connection.create_function("waits", 3, waits)

    async def call(key: str, takes: float) -> str:
        async with AsyncSession(engine) as session:
            if engine.dialect.name == "sqlite":
                found = await session.execute(text(STATEMENT), {"key": key, "takes": takes})
            else:
                found = await session.execute(text(f"SELECT sa_visit('{key}', {takes})"))
            return str(found.scalar_one())

    # The laws are about statements, not about how fast fifty connections are made.
    opened = [await engine.connect() for _ in range(warm)]
    for connection in opened:
        await connection.close()
    try:
        yield call
    finally:
        await engine.dispose()


@asynccontextmanager
async def in_threads(
    url: str, peer: Server, settings: dict[str, Any], warm: int
) -> AsyncGenerator[Call]:
    loop = asyncio.get_running_loop()
    engine = instrument(create_engine(url, pool_size=MOST, max_overflow=0, **settings))

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        if engine.dialect.driver == "psycopg":
            connection.add_notice_handler(lambda m: peer.note(m.message_primary))
        else:
            began, waits = peer.tells(record)
            connection.create_function("began", 1, began)
            connection.create_function("waits", 3, waits)

    def work(key: str, takes: float) -> str:
        with Session(engine) as session:
            if engine.dialect.name == "sqlite":
                found = session.execute(text(STATEMENT), {"key": key, "takes": takes})
            else:
                found = session.execute(text(f"SELECT sa_visit('{key}', {takes})"))
            return str(found.scalar_one())

    opened = [engine.connect() for _ in range(warm)]
    for connection in opened:
        connection.close()
    with ThreadPoolExecutor(MOST) as threads:

        async def call(key: str, takes: float) -> str:
            here = contextvars.copy_context()
            try:
                return await loop.run_in_executor(threads, here.run, work, key, takes)
            except InsufficientBudget:
                raise
            except DeadlineExceeded:
                # The thread was quicker than the timer of the scope, whose end it is.
                await asyncio.sleep(0.1)
                raise

        yield call
    engine.dispose()


class OfStatements(StatementLaws):
    unit = 0.8
    slack = 0.3
    opened: Any = staticmethod(on_loop)
    driver = "postgresql+asyncpg"
    settings: dict[str, Any] = {"connect_args": {"ssl": False}}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _server(self, request: Any, tmp_path: Path) -> None:
        self.warm = 50 if any(word in request.node.name for word in MANY) else 1
        if "every_call" in request.node.name:
            # Of forty at once the first has half of it, for a statement that takes the other half.
            request.instance.unit = 2 * type(self).unit
        if self.driver.startswith("sqlite"):
            self.url, self.dsn = f"{self.driver}:///{tmp_path / 'laws.db'}", ""
        else:
            server = request.getfixturevalue("postgres")
            server.ask(FUNCTION)
            self.url, self.dsn = server.dsn(scheme=self.driver), server.dsn()

    @asynccontextmanager
    async def crossing(self) -> AsyncGenerator[tuple[Peer, Call]]:
        peer = Server()
        beside = asyncio.create_task(peer.look(self.dsn) if self.dsn else peer.listen())
        try:
            async with self.opened(self.url, peer, self.settings, self.warm) as call:
                yield peer, call
        finally:
            beside.cancel()
            await asyncio.wait([beside])


@pytest.mark.real_time("uvloop")  # on the other loop there are all of its other tests
class TestAsyncpg(OfStatements):
    pass


@pytest.mark.real_time
class TestOurAsyncpg(OfStatements):
    settings = {"connect_args": {"ssl": False, "connection_class": HeldConnection}}  # noqa: RUF012

    # How finely the driver tells what is left is its own matter, and under the laws there.
    test_the_deadline_only_shrinks = None  # type: ignore[assignment]
    test_concurrent_calls_do_not_mix = None  # type: ignore[assignment]


@pytest.mark.real_time
class TestAiosqlite(OfStatements):
    driver = "sqlite+aiosqlite"
    settings = {}  # noqa: RUF012


@pytest.mark.real_time
class TestPsycopgInThreads(OfStatements):
    opened = staticmethod(in_threads)
    driver = "postgresql+psycopg"
    settings = {}  # noqa: RUF012

    # Nothing can be delivered to a thread that waits for a server; it ends with its deadline.
    test_an_explicit_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_from_above_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]


@pytest.mark.real_time
class TestSQLiteInThreads(OfStatements):
    opened = staticmethod(in_threads)
    driver = "sqlite"
    settings = {}  # noqa: RUF012

    # Between two steps SQLite looks whether its scope is cancelled; of a native cancellation, which
    # ends what waits for the thread, it cannot know.
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]
