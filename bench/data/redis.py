"""Figure data.redis: what the carrier of redis-py adds to a command, on a loop and in threads.

`GET` of a short value over loopback, one after the other on one connection, and a pipeline of a
hundred of them. The plain client is one as redis-py makes it. The server is that of the tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds
from tests.peers.redis import redis_running

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "redis-py, over loopback"
GOAL: Final = 1.10
LIMIT: Final = 30.0
BATCH: Final = 8
MANY: Final = 100
PLAIN: Final = "plain"
OURS: Final = "instrumented, under a deadline"
UNBOUND: Final = "instrumented, no deadline"
GET: Final = "GET"
PIPELINE: Final = f"pipeline of {MANY}"
VARIANTS: Final[list[dict[str, Any]]] = (
    []
    if absent("redis")
    else [
        {"client": "redis.asyncio", "loop": "asyncio"},
        *([] if absent("uvloop") else [{"client": "redis.asyncio", "loop": "uvloop"}]),
        {"client": "redis, in a thread", "loop": "asyncio"},
    ]
)

Make = Callable[[int, bool], Any]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    name, loop = variant["client"], variant["loop"]
    on_loop = name == "redis.asyncio"
    title = f"{TITLE}: {name}" + (f", {loop}" if on_loop else "")
    table = Table(title, "us", [GET, PIPELINE])
    count = rounds(quick, 100)
    with redis_running() as server, asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        cases = _on_loop if on_loop else _in_thread
        for point, per in ((GET, BATCH), (PIPELINE, 1)):
            cells = runner.run(_measured(cases, server.port, point, count, tell))
            compare(table, point, {case: cell.per(per) for case, cell in cells.items()})
            table.goal(OURS, point, GOAL)
    return [table]


async def _measured(
    cases: Callable[..., Any], port: int, point: str, count: int, tell: Tell
) -> Any:
    async with cases(port, point) as made:
        return await duel(made, count, tell, point)


@asynccontextmanager
async def _on_loop(port: int, point: str) -> AsyncGenerator[list[Case]]:
    import redis.asyncio

    from holdfast.adapters.redis import instrument

    plain: Any = redis.asyncio.Redis(port=port)
    ours: Any = instrument(redis.asyncio.Redis(port=port))

    def bare(client: Any) -> Callable[[int], Awaitable[object]]:
        async def gets(batches: int) -> None:
            for _ in range(batches * BATCH):
                await client.get("key")

        async def pipelines(batches: int) -> None:
            for _ in range(batches):
                await _filled(client).execute()

        return gets if point == GET else pipelines

    def bound(client: Any) -> Callable[[int], Awaitable[object]]:
        async def gets(batches: int) -> None:
            for _ in range(batches):
                async with holdfast.timeout(LIMIT):
                    for _ in range(BATCH):
                        await client.get("key")

        async def pipelines(batches: int) -> None:
            for _ in range(batches):
                async with holdfast.timeout(LIMIT):
                    await _filled(client).execute()

        return gets if point == GET else pipelines

    await plain.set("key", "value")
    yield [Case(PLAIN, bare(plain)), Case(OURS, bound(ours)), Case(UNBOUND, bare(ours))]
    await plain.aclose()
    await ours.aclose()


@asynccontextmanager
async def _in_thread(port: int, point: str) -> AsyncGenerator[list[Case]]:
    import redis

    from holdfast.adapters.redis import instrument

    plain: Any = redis.Redis(port=port)
    ours: Any = instrument(redis.Redis(port=port))

    def working(client: Any, limit: float) -> Callable[[int], Awaitable[object]]:
        def work(batches: int) -> None:
            for _ in range(batches):
                if limit:
                    with holdfast.timeout(limit):
                        one(client)
                else:
                    one(client)

        async def run(batches: int) -> None:
            await asyncio.get_running_loop().run_in_executor(None, work, batches)

        return run

    def one(client: Any) -> None:
        if point == PIPELINE:
            _filled(client).execute()
            return
        for _ in range(BATCH):
            client.get("key")

    plain.set("key", "value")
    yield [
        Case(PLAIN, working(plain, 0.0)),
        Case(OURS, working(ours, LIMIT)),
        Case(UNBOUND, working(ours, 0.0)),
    ]
    plain.close()
    ours.close()


def _filled(client: Any) -> Any:
    pipeline = client.pipeline(transaction=False)
    for _ in range(MANY):
        pipeline.get("key")
    return pipeline
