"""Thousands of calls of redis-py that are cut at random: each answer goes to who asked for it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

import holdfast
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import ENDED, KINDS, eventually, listed, of_loop

pytestmark = pytest.mark.system

SIZE = 10
KEYS = 50


class Crowd:
    """Callers that leave at random, and check what they get.

    Args:
        client: theirs.
        total: calls.
        native: whether they are cut by `task.cancel()`, or by their scope.
    """

    def __init__(self, client: Any, total: int, native: bool) -> None:
        self.client = client
        self.left = total
        self.native = native
        self.dice = random.Random(total)
        self.seen: Counter[str] = Counter()

    async def work(self) -> None:
        while self.left > 0:
            self.left -= 1
            # Most leave soon, some stay for the answer: they would notice one that is not theirs.
            seconds = self.dice.random() * 0.02 + 0.0001 if self.left % 5 else 4 * ENDED
            try:
                if self.native:
                    task = asyncio.create_task(self.call(self.left))
                    handle = asyncio.get_running_loop().call_later(seconds, task.cancel)
                    try:
                        await task
                    finally:
                        handle.cancel()
                else:
                    async with holdfast.timeout(seconds):
                        await self.call(self.left)
            except (asyncio.CancelledError, holdfast.ScopeEnded):
                self.seen["cut"] += 1

    async def call(self, number: int) -> None:
        key, token = number % KEYS, f"token-{number}"
        kind = self.dice.randrange(4)
        expected: Any
        got: Any
        if kind == 0:
            expected, got = token, await self.client.echo(token)
        elif kind == 1:
            expected, got = f"value-{key}", await self.client.get(f"key-{key}")
        else:
            pipeline = self.client.pipeline(transaction=kind == 2)
            pipeline.get(f"key-{key}").echo(token).get(f"key-{(key + 1) % KEYS}")
            expected = [f"value-{key}", token, f"value-{(key + 1) % KEYS}"]
            got = await pipeline.execute()
        self.seen["answered" if got == expected else "WRONG"] += 1


async def soaked(
    port: int,
    kind: str,
    total: int,
    native: bool,
    *,
    blocking: bool = True,
    keep: float = 1.0,
    least: int = 15,
) -> None:
    options: dict[str, Any] = {"max_connections": SIZE, "retry": Retry(ConstantBackoff(0.01), 5)}
    if blocking:
        options["timeout"] = None
    with FaultProxy("127.0.0.1", port, chance=random.Random(3).random) as proxy:
        async with of_loop(
            proxy.port, kind, blocking=blocking, options=options, keep=keep
        ) as client:
            await client.mset({f"key-{n}": f"value-{n}" for n in range(KEYS)})
            proxy.to_client.delay(0.003, jitter=0.003)
            crowd = Crowd(client, total, native)
            # A pool that does not wait has one place to spare for what a cut caller leaves behind.
            callers = 2 * SIZE if blocking else SIZE // 2
            await asyncio.gather(*(crowd.work() for _ in range(callers)))
            assert crowd.seen["WRONG"] == 0
            assert crowd.seen["cut"] >= least
            assert crowd.seen["answered"] >= total // 5
            proxy.heal()
            pool = client.connection_pool
            await eventually(lambda: not pool._in_use_connections)
            assert len(pool._available_connections) <= SIZE
            await eventually(lambda: len(listed(port)) <= SIZE)
            async with asyncio.timeout(ENDED):
                texts = [f"after-{n}" for n in range(SIZE)]
                assert await asyncio.gather(*map(client.echo, texts)) == texts
            await eventually(lambda: len(listed(port)) <= SIZE)


@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.real_time("asyncio", "uvloop")
async def test_each_answer_goes_to_who_asked(redis_server: Any, kind: str, native: bool) -> None:
    await soaked(redis_server.port, kind, 300, native)


@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
@pytest.mark.parametrize("keep", [0.0, 1.0])
@pytest.mark.real_time("asyncio", "uvloop")
async def test_so_it_does_from_a_pool_that_does_not_wait(
    redis_server: Any, native: bool, keep: float
) -> None:
    await soaked(redis_server.port, "hiredis-3", 300, native, blocking=False, keep=keep)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "native", "keep"),
    [("hiredis-3", False, 1.0), ("python-2", True, 1.0)],
    ids=["scope", "native"],
)
@pytest.mark.real_time("asyncio", "uvloop")
async def test_twenty_thousand_cancellations(
    redis_server: Any, kind: str, native: bool, keep: float
) -> None:
    await soaked(
        redis_server.port, kind, 85_000 if keep else 55_000, native, keep=keep, least=20_000
    )


@pytest.mark.parametrize("clients", [2, pytest.param(2000, marks=pytest.mark.soak)])
@pytest.mark.real_time("asyncio", "uvloop")
async def test_many_clients_of_one_server_that_freezes(redis_server: Any, clients: int) -> None:
    """All are free at their deadline, and all go on when it thaws."""
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        async with of_loop(
            proxy.port, blocking=True, options={"max_connections": 20, "timeout": None}
        ) as client:
            await client.ping()
            proxy.to_client.stall()
            late: Counter[str] = Counter()

            async def one() -> None:
                try:
                    async with holdfast.timeout(0.3):
                        await client.get("a")
                except holdfast.DeadlineExceeded:
                    late["late"] += 1

            async with asyncio.timeout(4 * ENDED):
                await asyncio.gather(*(one() for _ in range(clients)))
            assert late["late"] == clients
            proxy.heal()
            async with asyncio.timeout(4 * ENDED):
                texts = [str(n) for n in range(clients)]
                assert await asyncio.gather(*map(client.echo, texts)) == texts
            await eventually(lambda: len(listed(redis_server.port)) <= 20)
