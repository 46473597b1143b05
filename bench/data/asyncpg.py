"""Figure data.asyncpg: what the carrier of asyncpg adds to a statement, and how fast one is ended.

`SELECT 1` over loopback, on one connection, through a pool, and through pgbouncer in transaction
mode (there without a cache of statements, as asyncpg wants it). How often an answer is waited for.
And how long after a cancellation a statement is gone at the server: not when the caller is free,
which is at once for both. The plain client is asyncpg as it comes. The servers are those of the
tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any, Final

import holdfast
from bench._harness import (
    Case,
    Cell,
    Check,
    Sheet,
    Table,
    Tell,
    absent,
    compare,
    duel,
    new_loop,
    rounds,
)
from tests.peers.postgres import Postgres, pgbouncer_running, postgres_running

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "asyncpg, over loopback"
GOAL: Final = 1.10
GONE: Final = 0.020
LIMIT: Final = 30.0
BATCH: Final = 8
PLAIN: Final = "plain"
OURS: Final = "ours, under a deadline"
UNBOUND: Final = "ours, no deadline"
DIRECT: Final = "SELECT 1"
POOL: Final = "through a pool"
BOUNCER: Final = "through pgbouncer"
CANCEL: Final = "cancel to gone"
VARIANTS: Final[list[dict[str, Any]]] = (
    []
    if absent("asyncpg")
    else [{"loop": loop} for loop in ("asyncio", "uvloop") if not absent(loop)]
)

Run = Callable[[int], Awaitable[object]]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table | Sheet]:
    loop = variant["loop"]
    table = Table(f"{TITLE}: {loop}", "us", [DIRECT, POOL, BOUNCER])
    ended = Table(f"A statement that is cancelled, until it is gone: {loop}", "ms", [CANCEL])
    with (
        postgres_running() as server,
        pgbouncer_running(server) as bouncer,
        asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner,
    ):
        for point, peer in ((DIRECT, server), (POOL, server), (BOUNCER, bouncer)):
            cells = runner.run(_measured(peer, point, rounds(quick, 100), tell))
            compare(table, point, {case: cell.per(BATCH) for case, cell in cells.items()})
        table.goal(OURS, DIRECT, GOAL)
        gone = runner.run(_cancelled(server, rounds(quick, 60), tell))
        compare(ended, CANCEL, gone)
        median = gone["ours"].median
        ended.checks.append(Check("median, ours", Cell(median, median), GONE, "ms"))
        sheets = [] if loop == "uvloop" else [runner.run(_trips(server, bouncer))]
    return [table, ended, *sheets]


# -- statements ------------------------------------------------------------------------------------


async def _measured(peer: Postgres, point: str, count: int, tell: Tell) -> Any:
    async with _contenders(peer, point) as (plain, ours, unbound):
        cases = [
            Case(PLAIN, _bare(plain)),
            Case(OURS, _bound(ours)),
            Case(UNBOUND, _bare(unbound)),
        ]
        return await duel(cases, count, tell, point)


@asynccontextmanager
async def _contenders(peer: Postgres, point: str) -> AsyncGenerator[tuple[Any, Any, Any]]:
    import asyncpg

    from holdfast.adapters.asyncpg import connect, create_pool

    options: dict[str, Any] = {"statement_cache_size": 0} if point == BOUNCER else {}
    if point == POOL:
        size: dict[str, Any] = {"min_size": 1, "max_size": 1}
        made: list[Any] = [
            await make(peer.dsn(), **size)
            for make in (asyncpg.create_pool, create_pool, create_pool)
        ]
    else:
        # One with a deadline and one without: to and fro on one, each would be told anew.
        made = [await make(peer.dsn(), **options) for make in (asyncpg.connect, connect, connect)]
    try:
        yield made[0], made[1], made[2]
    finally:
        for client in made:
            await client.close()


def _bare(client: Any) -> Run:
    async def run(batches: int) -> None:
        for _ in range(batches * BATCH):
            await client.fetchval("SELECT 1")

    return run


def _bound(client: Any) -> Run:
    async def run(batches: int) -> None:
        for _ in range(batches):
            async with holdfast.timeout(LIMIT):
                for _ in range(BATCH):
                    await client.fetchval("SELECT 1")

    return run


# -- the end of a statement ------------------------------------------------------------------------


async def _cancelled(server: Postgres, count: int, tell: Tell) -> dict[str, Cell]:
    import asyncpg

    from holdfast.adapters.asyncpg import connect

    eye = await asyncpg.connect(server.dsn())
    asks = await eye.prepare("SELECT state = 'active' FROM pg_stat_activity WHERE pid = $1")
    clients: dict[str, Any] = {
        "plain asyncpg": await asyncpg.connect(server.dsn()),
        "ours": await connect(server.dsn()),
    }
    samples: dict[str, list[float]] = {name: [] for name in clients}
    for n in range(count):
        for name, client in clients.items():
            samples[name].append(await _gone(client, asks))
        tell((n + 1) / count, CANCEL)
    for client in (eye, *clients.values()):
        await client.close()
    return {name: Cell.of(values) for name, values in samples.items()}


async def _gone(client: Any, asks: Any) -> float:
    pid = client.get_server_pid()
    task = asyncio.create_task(client.fetch("SELECT pg_sleep(30)"))
    while not await asks.fetchval(pid):  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.001)
    begun = perf_counter()
    task.cancel()
    while await asks.fetchval(pid):  # a look takes a tenth of a millisecond
        pass
    took = perf_counter() - begun
    with suppress(asyncio.CancelledError):
        await task
    await client.fetchval("SELECT 1")
    return took


# -- round trips -----------------------------------------------------------------------------------


class _Counting(asyncio.Protocol):
    """Before a protocol: counts how often, after something was sent, an answer came."""

    def __init__(self, protocol: Any, transport: Any) -> None:
        self.inner = protocol
        self.turns = 0
        self.bytes = 0
        self._sent = False
        write = transport.write

        def writing(data: Any) -> None:
            self._sent = True
            self.bytes += len(data)
            write(data)

        vars(transport)["write"] = writing
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self.turns += self._sent
        self._sent = False
        self.inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()


async def _trips(server: Postgres, bouncer: Postgres) -> Sheet:
    columns = ["SELECT 1", "waits for an answer", "bytes sent, first", "bytes sent, next"]
    sheet = Sheet(f"{TITLE}: round trips", columns)
    for point, peer in ((DIRECT, server), (BOUNCER, bouncer)):
        turns: dict[str, int] = {}
        async with _contenders(peer, point) as clients:
            for name, client in zip((PLAIN, OURS), clients, strict=False):
                await client.fetchval("SELECT 1")
                count = _Counting(client._protocol, client._transport)
                sent: list[int] = []
                async with holdfast.timeout(LIMIT):
                    for _ in range(2):
                        before, count.turns = count.bytes, 0
                        await client.fetchval("SELECT 1")
                        sent.append(count.bytes - before)
                turns[name] = count.turns
                where = "directly" if point == DIRECT else point
                sheet.rows.append([f"{name}, {where}", str(count.turns), *map(str, sent)])
        ratio = turns[OURS] / turns[PLAIN]
        sheet.checks.append(Check(f"waits for an answer, {point}", Cell(ratio, ratio), 1.0))
    return sheet
