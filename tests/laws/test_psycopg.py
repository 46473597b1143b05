"""psycopg under the carrier laws, before a real PostgreSQL: on loops, and in threads.

The far side is a function in the server. It tells by notices, which come at once, that it has
begun, with the time-out that it reads there, and that it is done. That it was cancelled is seen
from beside: it is no longer among what the server is at.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from holdfast.adapters.psycopg.bounds import GRACE, milliseconds
from holdfast.adapters.psycopg.pools import AsyncConnectionPool, ConnectionPool
from holdfast.domain.context import Carried
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.runtime.clock import monotonic
from holdfast.testing.laws import Call, Peer, Visit
from tests.laws.kinds import StatementLaws

MOST = 64
FUNCTION = """
CREATE OR REPLACE FUNCTION visit(key text, takes float) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'began % %', key, current_setting('statement_timeout');
    PERFORM pg_sleep(takes);
    RAISE NOTICE 'done %', key;
    RETURN key;
END $$
"""


class Server(Peer):
    """The far side, as its notices and its list of statements tell of it."""

    def note(self, notice: Any) -> None:
        what, key, *rest = (notice.message_primary or "").split()
        if what == "began":
            left = milliseconds(rest[0]) / 1000 or float("inf")
            self.visits.setdefault(key, []).append(Visit(monotonic(), left, Carried()))
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
                        if not visit.ends and f"visit('{key}'" not in texts:
                            visit.ends.append(("cancelled", monotonic()))
                await asyncio.sleep(0.02)


@asynccontextmanager
async def on_loop(server: Any, peer: Server, autocommit: bool) -> AsyncGenerator[Call]:
    async def configure(connection: Any) -> None:
        connection.add_notice_handler(peer.note)

    pool = AsyncConnectionPool(
        server.dsn(), min_size=4, max_size=MOST, open=False, configure=configure,
        kwargs={"autocommit": autocommit},
    )  # fmt: skip

    async def call(key: str, takes: float) -> str:
        async with pool.connection() as connection:
            cursor = await connection.execute(f"SELECT visit('{key}', %s)", (takes,))
            (answer,) = await cursor.fetchone() or ("",)
            return str(answer)

    async with pool:
        yield call


@asynccontextmanager
async def in_threads(server: Any, peer: Server, autocommit: bool) -> AsyncGenerator[Call]:
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(
        server.dsn(), min_size=4, max_size=MOST, open=False,
        configure=lambda connection: connection.add_notice_handler(peer.note),
        kwargs={"autocommit": autocommit},
    )  # fmt: skip

    def work(key: str, takes: float) -> str:
        with pool.connection() as connection:
            row = connection.execute(f"SELECT visit('{key}', %s)", (takes,)).fetchone()
            return "" if row is None else str(row[0])

    with pool, ThreadPoolExecutor(MOST) as threads:

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


class OfStatements(StatementLaws):
    unit = 0.5
    slack = GRACE + 0.15  # what a statement gets to end, on a machine that is busy
    opened: Any = staticmethod(on_loop)
    autocommit = False

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Any) -> None:
        postgres.ask(FUNCTION)
        self.server = postgres

    @asynccontextmanager
    async def crossing(self) -> AsyncGenerator[tuple[Peer, Call]]:
        peer = Server()
        beside = asyncio.create_task(peer.look(self.server.dsn()))
        try:
            async with self.opened(self.server, peer, self.autocommit) as call:
                yield peer, call
        finally:
            beside.cancel()
            await asyncio.wait([beside])


@pytest.mark.real_time("asyncio")
class TestInTransactions(OfStatements):
    pass


@pytest.mark.real_time("uvloop")
class TestInAutocommit(OfStatements):
    autocommit = True


@pytest.mark.real_time
class TestInThreads(OfStatements):
    opened = staticmethod(in_threads)

    # Nothing can be delivered to a thread: a native cancellation ends what waits for it, and not
    # itself. One of a scope it sees by itself, a little later.
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]
