"""Figure data.psycopg: what a deadline adds to a statement of psycopg, and how soon one is ended.

`SELECT 1` over loopback: inside an open transaction, as a transaction of its own, and in autocommit
mode without and with a parameter. The plain connection has no limit at all. Round trips are counted
by libpq's own trace. "Gone" is the time from `task.cancel()` until another connection sees the
server at nothing any more.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import holdfast
from bench._harness import (
    Case,
    Cell,
    Check,
    Row,
    Sheet,
    Table,
    Tell,
    absent,
    compare,
    duel,
    new_loop,
    rounds,
)

__all__ = ["VARIANTS", "measure"]

ON_LOOP: Final = "asyncio"
THREADS: Final = "threads"
VARIANTS: Final = [] if absent("psycopg") else [{"api": ON_LOOP}, {"api": THREADS}]
PLAIN: Final = "plain"
OURS: Final = "ours, under a deadline"
UNBOUND: Final = "ours, no deadline"
INSIDE: Final = "in a transaction"
WHOLE: Final = "BEGIN to COMMIT"
AUTO: Final = "autocommit"
WITH: Final = "autocommit, a parameter"
POINTS: Final = (INSIDE, WHOLE, AUTO, WITH)
GOAL: Final = 1.10
GONE_GOAL: Final = 0.020
BATCH: Final = 8
LIMIT: Final = 30.0


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table | Sheet]:
    from tests.peers.postgres import postgres_running

    api = variant["api"]
    table = Table(f"SELECT 1 by psycopg, over loopback: {api}", "us", list(POINTS))
    found: list[Table | Sheet] = [table]
    with ExitStack() as stack:
        server = stack.enter_context(postgres_running())
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: new_loop("asyncio")))
        prepare = _on_loop if api == ON_LOOP else _in_threads
        for done, point in enumerate(POINTS):

            def part(share: float, what: str, done: int = done) -> None:
                tell((done + share) / (len(POINTS) + 1), what)

            cells = runner.run(prepare(server.dsn(), point, rounds(quick, 60), part))
            compare(table, point, {name: cell.per(BATCH) for name, cell in cells.items()})
        table.goal(OURS, INSIDE, GOAL)
        table.notes.append(
            "outside of an open transaction the server has a second command to run: `SET LOCAL` "
            "with the `BEGIN`, or with the statement; no round trip more"
        )
        if api == ON_LOOP:
            found.append(runner.run(_trips(server.dsn())))
            found.append(runner.run(_gone(server, 5 if quick else 40, tell)))
    return found


# -- statements ----------------------------------------------------------------------------------


def _autocommit(point: str) -> bool:
    return point in (AUTO, WITH)


async def _on_loop(dsn: str, point: str, count: int, tell: Tell) -> dict[str, Cell]:
    import psycopg

    from holdfast.adapters.psycopg import AsyncConnection

    how = {"autocommit": _autocommit(point)}
    plain = await psycopg.AsyncConnection.connect(dsn, **how)
    ours, unbound = (
        await AsyncConnection.connect(dsn, **how),
        await AsyncConnection.connect(dsn, **how),
    )
    cases = [
        Case(PLAIN, _free(_work(plain, point))),
        Case(OURS, _bound(_work(ours, point))),
        Case(UNBOUND, _free(_work(unbound, point))),
    ]
    try:
        return await duel(cases, count, tell, point)
    finally:
        for connection in (plain, ours, unbound):
            await connection.close()


Work = Callable[[], Awaitable[object]]


def _work(connection: Any, point: str) -> Work:
    async def whole() -> None:
        await connection.execute("SELECT 1")
        await connection.commit()

    if point == WHOLE:
        return whole
    if point == WITH:
        return lambda: connection.execute("SELECT %s", (1,))
    return lambda: connection.execute("SELECT 1")


def _bound(work: Work) -> Callable[[int], Awaitable[object]]:
    async def run(batches: int) -> None:
        for _ in range(batches):
            async with holdfast.timeout(LIMIT):
                for _ in range(BATCH):
                    await work()

    return run


def _free(work: Work) -> Callable[[int], Awaitable[object]]:
    async def run(batches: int) -> None:
        for _ in range(batches * BATCH):
            await work()

    return run


async def _in_threads(dsn: str, point: str, count: int, tell: Tell) -> dict[str, Cell]:
    import psycopg

    from holdfast.adapters.psycopg import Connection

    how = {"autocommit": _autocommit(point)}
    opened = [psycopg.connect(dsn, **how), Connection.connect(dsn, **how)]
    opened.append(Connection.connect(dsn, **how))

    def work(connection: Any, batches: int, bound: bool) -> None:
        for _ in range(batches):
            if bound:
                with holdfast.timeout(LIMIT):
                    once(connection)
            else:
                once(connection)

    def once(connection: Any) -> None:
        for _ in range(BATCH):
            if point == WITH:
                connection.execute("SELECT %s", (1,))
            else:
                connection.execute("SELECT 1")
            if point == WHOLE:
                connection.commit()

    def case(name: str, connection: Any, bound: bool) -> Case:
        async def run(batches: int) -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, work, connection, batches, bound)

        return Case(name, run)

    names = zip((PLAIN, OURS, UNBOUND), opened, (False, True, False), strict=True)
    try:
        return await duel([case(*each) for each in names], count, tell, point)
    finally:
        for connection in opened:
            connection.close()


# -- round trips ---------------------------------------------------------------------------------


async def _trips(dsn: str) -> Sheet:
    import psycopg

    from holdfast.adapters.psycopg import AsyncConnection

    sheet = Sheet("Round trips of a statement of psycopg", ["", *POINTS])
    counts: dict[str, list[int]] = {}
    for name, kind in ((PLAIN, psycopg.AsyncConnection), (OURS, AsyncConnection)):
        for point in POINTS:
            connection = await kind.connect(dsn, autocommit=_autocommit(point))
            async with holdfast.timeout(LIMIT):
                await connection.execute("SELECT 0")
                if point == WHOLE:
                    await connection.commit()
                counts.setdefault(name, []).append(await _counted(connection, point))
            await connection.close()
        sheet.rows.append([name, *map(str, counts[name])])
    most = max(ours / plain for plain, ours in zip(counts[PLAIN], counts[OURS], strict=True))
    sheet.checks.append(Check("round trips, ours over plain", Cell(most, most), 1.0))
    return sheet


async def _counted(connection: Any, point: str) -> int:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "trace"
        with path.open("wb") as file:
            connection.pgconn.trace(file.fileno())
            await _work(connection, point)()
            connection.pgconn.untrace()
        said = [line.split() for line in path.read_text().splitlines()]
    return sum(1 for words in said if "F" in words[:4] and {"Query", "Sync"} & set(words))


# -- cancelled -----------------------------------------------------------------------------------


async def _gone(server: Any, count: int, tell: Tell) -> Table:
    import psycopg

    from holdfast.adapters.psycopg import AsyncConnection

    table = Table(
        "Cancelled to gone at the server, psycopg", "ms", ["gone", "caller free"], ratio=False
    )
    beside = await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True)
    for name, kind in ((PLAIN, psycopg.AsyncConnection), (OURS, AsyncConnection)):
        gone, free = await _cancelled(kind, server.dsn(), beside, count)
        table.rows.append(Row(name, {"gone": gone, "caller free": free}))
        tell(1.0, f"cancelled, {name}")
    await beside.close()
    ours = table.cell(OURS, "gone")
    table.checks.append(
        Check("ours, gone, median", Cell(ours.median, ours.median), GONE_GOAL, "ms")
    )
    return table


async def _cancelled(kind: Any, dsn: str, beside: Any, count: int) -> tuple[Cell, Cell]:
    """Seconds until a cancelled statement is gone at the server, and until the task is done."""
    gone: list[float] = []
    free: list[float] = []
    began = 0.0

    def done(_: object) -> None:
        free.append(perf_counter() - began)

    for _ in range(count):
        connection = await kind.connect(dsn, autocommit=True)
        pid = connection.info.backend_pid
        task = asyncio.ensure_future(connection.execute("SELECT pg_sleep(100)"))
        while not await _busy(beside, pid):  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.001)
        task.add_done_callback(done)
        began = perf_counter()
        task.cancel()
        while await _busy(beside, pid):
            pass
        gone.append(perf_counter() - began)
        await asyncio.wait([task])
        await asyncio.sleep(0)
        await connection.close()
    return _middle(gone), _middle(free)


async def _busy(beside: Any, pid: int) -> bool:
    found = await beside.execute(
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", (pid,)
    )
    return await found.fetchone() is not None


def _middle(samples: list[float]) -> Cell:
    return Cell(min(samples), statistics.median(samples))
