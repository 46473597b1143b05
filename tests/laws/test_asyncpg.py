"""asyncpg under the carrier laws, before a real PostgreSQL, on both loops.

The far side is a function in the server. It tells by notices, which come at once, that it has
begun, with the time-out that it reads there, and that it is done. That it was cancelled is seen
from beside: it is no longer among what the server is at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from holdfast.adapters.asyncpg import create_pool
from holdfast.adapters.asyncpg.bounds import LEAST, SLACK, milliseconds_of
from holdfast.domain.context import Carried
from holdfast.runtime.ambient import remaining, timeout
from holdfast.runtime.clock import monotonic
from holdfast.testing.laws import Call, Peer, Visit
from tests.laws.kinds import StatementLaws

PLACES = 64
FUNCTION = """
CREATE OR REPLACE FUNCTION visit_a(key text, takes float) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'began % %', key, current_setting('statement_timeout');
    PERFORM pg_sleep(takes);
    RAISE NOTICE 'done %', key;
    RETURN key;
END $$
"""


class Server(Peer):
    """The far side, as its notices and its list of statements tell of it."""

    def note(self, _: Any, notice: Any) -> None:
        what, key, *rest = notice.message.split()
        if what == "began":
            left = milliseconds_of(rest[0]) / 1000 or float("inf")
            self.visits.setdefault(key, []).append(Visit(monotonic(), left, Carried()))
        else:
            # What is done may be seen from beside before its notice is read.
            self.visits[key][-1].ends[:] = [(what, monotonic())]

    async def look(self, dsn: str) -> None:
        beside = await asyncpg.connect(dsn)
        try:
            while True:
                before = self.open_visits()
                found = await beside.fetch(
                    "SELECT query FROM pg_stat_activity WHERE state = 'active'"
                )
                texts = " ".join([text for (text,) in found])
                for key in before:
                    for visit in self.visits[key]:
                        if not visit.ends and f"visit_a('{key}'" not in texts:
                            visit.ends.append(("cancelled", monotonic()))
                await asyncio.sleep(0.02)
        finally:
            beside.terminate()


def latest(left: float) -> float:
    """Seconds that the server may be told with `left` left: its time-out is set again seldom."""
    return max(left, LEAST / 1000) * (1 + 1 / SLACK) + 0.002


@pytest.mark.real_time("asyncio", "uvloop")
class TestAsyncpg(StatementLaws):
    unit = 0.6
    slack = 0.25

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Any) -> None:
        postgres.ask(FUNCTION)
        self.server = postgres

    @asynccontextmanager
    async def crossing(self) -> AsyncGenerator[tuple[Peer, Call]]:
        peer = Server()
        beside = asyncio.create_task(peer.look(self.server.dsn()))
        pool = await create_pool(self.server.dsn(), min_size=4, max_size=PLACES)

        async def call(key: str, takes: float) -> str:
            async with pool.acquire() as connection:
                connection.add_log_listener(peer.note)
                try:
                    return str(await connection.fetchval(f"SELECT visit_a('{key}', $1)", takes))
                finally:
                    with suppress(asyncpg.InterfaceError):  # it was closed meanwhile
                        connection.remove_log_listener(peer.note)

        try:
            yield peer, call
        finally:
            await pool.close()
            beside.cancel()
            await asyncio.wait([beside])

    granted = staticmethod(latest)

    async def test_the_deadline_only_shrinks(self) -> None:
        """It arrives, not earlier than it is, and later by the bound that is stated at most.

        The server's time-out is the second guard; the client ends the statement at the deadline.
        """
        async with self.crossing() as (peer, call):
            for n, budget in enumerate((self.unit, 7.123456 * self.unit, 3600.0)):
                async with timeout(budget):
                    left = remaining()
                    await call(f"k{n}", 0.0)
                    after = remaining()
                (visit,) = peer.visits[f"k{n}"]
                assert after <= visit.left <= latest(left)
