"""Figure data.sqlalchemy: what the adapter adds to `SELECT 1` through a session.

A session of its own for each, as requests have them: a place in the pool, BEGIN, the statement,
ROLLBACK, against a real PostgreSQL over loopback; and SQLite in memory, where there is no network
to hide behind. With our drivers, which tell the server in the same message; with plain ones, where
asyncpg and psycopg pay a round trip for that; and without a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["VARIANTS", "measure"]

TITLE: Final = "SELECT 1 through a session of SQLAlchemy"
PLAIN: Final = "plain"
OURS: Final = "instrumented, our driver, under a deadline"
TOLD: Final = "instrumented, plain driver, under a deadline"
UNBOUND: Final = "instrumented, plain driver, no deadline"
GOAL: Final = 1.10
BATCH: Final = 4
LIMIT: Final = 30.0
ENGINES: Final = ("asyncpg", "psycopg", "psycopg2", "sqlite")
VARIANTS: Final[list[dict[str, Any]]] = (
    [] if absent("sqlalchemy", "asyncpg", "psycopg") else [{"engine": name} for name in ENGINES]
)
GOALS: Final = {"asyncpg": OURS, "psycopg": OURS, "psycopg2": TOLD}

Run = Callable[[int], Awaitable[object]]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    name = variant["engine"]
    table = Table(f"{TITLE}: {name}", "us", ["statement"])
    count = rounds(quick, 120)
    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        if name == "sqlite":
            cells = runner.run(_measured(name, None, count, tell))
        else:
            from tests.peers.postgres import postgres_running

            with postgres_running() as server:
                cells = runner.run(_measured(name, server, count, tell))
    compare(table, "statement", {case: cell.per(BATCH) for case, cell in cells.items()})
    if name in GOALS:
        table.goal(GOALS[name], "statement", GOAL)
    if name in ("asyncpg", "psycopg"):
        table.notes.append("A plain driver's server is told in a round trip per transaction.")
    return [table]


async def _measured(name: str, server: Any, count: int, tell: Tell) -> Any:
    make = _on_loop if name == "asyncpg" else _in_threads
    async with AsyncExitStack() as stack:
        cases = [
            Case(PLAIN, make(stack, name, server)),
            Case(TOLD, make(stack, name, server, ours=True, bound=True)),
            Case(UNBOUND, make(stack, name, server, ours=True)),
        ]
        if name in ("asyncpg", "psycopg"):
            cases.insert(1, Case(OURS, make(stack, name, server, ours=True, bound=True, held=True)))
        return await duel(cases, count, tell, name)


def _on_loop(
    stack: AsyncExitStack,
    name: str,
    server: Any,
    ours: bool = False,
    bound: bool = False,
    held: bool = False,
) -> Run:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from holdfast.adapters.asyncpg import HeldConnection
    from holdfast.adapters.sqlalchemy import instrument

    arguments: dict[str, Any] = {"ssl": False}
    if held:
        arguments["connection_class"] = HeldConnection
    engine = create_async_engine(
        server.dsn(scheme=f"postgresql+{name}"), connect_args=arguments, pool_size=1
    )
    stack.push_async_callback(engine.dispose)
    if ours:
        instrument(engine)
    statement = text("SELECT 1")

    async def once() -> None:
        async with AsyncSession(engine) as session:
            await session.execute(statement)

    async def run(batches: int) -> None:
        for _ in range(batches):
            if bound:
                async with holdfast.timeout(LIMIT):
                    for _ in range(BATCH):
                        await once()
            else:
                for _ in range(BATCH):
                    await once()

    return run


def _in_threads(
    stack: AsyncExitStack,
    name: str,
    server: Any,
    ours: bool = False,
    bound: bool = False,
    held: bool = False,
) -> Run:
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import SingletonThreadPool

    from holdfast.adapters.psycopg import Connection
    from holdfast.adapters.sqlalchemy import instrument

    thread = stack.enter_context(ThreadPoolExecutor(1))  # SQLite in memory lives in its thread
    settings: dict[str, Any] = {}
    if held:
        dsn = server.dsn()
        settings["creator"] = lambda: Connection.connect(dsn)
    if server is None:
        engine = create_engine("sqlite://", poolclass=SingletonThreadPool)
    else:
        engine = create_engine(server.dsn(scheme=f"postgresql+{name}"), pool_size=1, **settings)
    stack.callback(lambda: thread.submit(engine.dispose).result())
    if ours:
        instrument(engine)
    statement = text("SELECT 1")

    def once() -> None:
        with Session(engine) as session:
            session.execute(statement)

    def work(batches: int) -> None:
        for _ in range(batches):
            if bound:
                with holdfast.timeout(LIMIT):
                    for _ in range(BATCH):
                        once()
            else:
                for _ in range(BATCH):
                    once()

    async def run(batches: int) -> None:
        await asyncio.get_running_loop().run_in_executor(thread, work, batches)

    return run
