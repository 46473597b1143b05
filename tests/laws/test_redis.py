"""redis-py under the carrier laws, before a real Redis: on both loops, and in threads.

The far side is a command that waits, `BLPOP key`, and somebody who pushes to `key` when its time
has come. What it was told is read where it arrives, by `MONITOR`; that nobody waits any more is
seen in the list of clients.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis
import redis.asyncio

from holdfast.adapters.redis import instrument
from holdfast.adapters.redis.settings import MARGIN
from holdfast.domain.context import Carried
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.runtime.ambient import timeout
from holdfast.runtime.clock import monotonic
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, CarrierLaws, Peer, Visit

LEAST = 0.02
PLACES = 64


class Server(Peer):
    """The far side, as it is seen from beside."""

    def __init__(self, port: int) -> None:
        super().__init__()
        # Instrumented, as a plain one swallows a cancellation now and then, on Python 3.11.
        self.beside: Any = instrument(redis.asyncio.Redis(port=port, decode_responses=True))
        self.takes: dict[str, float] = {}
        self.waiting: dict[str, tuple[Visit, str]] = {}
        self.pushed: set[str] = set()
        self.ready = asyncio.Event()

    async def listen(self) -> None:
        """Note what arrives."""
        async with self.beside.monitor() as monitor, tasks() as pushing:
            self.ready.set()
            async for told in monitor.listen():
                words = told["command"].split()
                if words[0] != "BLPOP":
                    continue
                key, seconds = words[1], float(words[2])
                visit = Visit(monotonic(), seconds or float("inf"), Carried())
                where = f"{told['client_address']}:{told['client_port']}"
                if where in self.waiting:
                    self.end(where)
                self.visits.setdefault(key, []).append(visit)
                self.waiting[where] = (visit, key)
                pushing.start(self.push(key, self.takes[key]))

    async def push(self, key: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if any(key == other for _, other in self.waiting.values()):
            self.pushed.add(key)
            await self.beside.rpush(key, key)

    async def look(self) -> None:
        """Note who waits no more."""
        while True:
            asked = list(self.waiting)
            clients = {one["addr"]: one for one in await self.beside.client_list()}
            for where in asked:
                if "b" not in clients.get(where, {"flags": ""})["flags"] and where in self.waiting:
                    self.end(where)
            await asyncio.sleep(0.01)

    def end(self, where: str) -> None:
        visit, key = self.waiting.pop(where)
        visit.ends.append(("done" if key in self.pushed else "cancelled", monotonic()))


@pytest.mark.real_time("asyncio", "uvloop")
class TestRedis(CarrierLaws):
    unit = 1.0
    slack = 0.35  # the margin of the time-out at the server is a part of it
    least = LEAST

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.port = redis_server.port
        with redis.Redis(port=self.port) as admin:
            admin.flushall()

    @asynccontextmanager
    async def popping(self) -> AsyncGenerator[Callable[[str], Any]]:
        """What pops."""
        client: Any = redis.asyncio.Redis(
            port=self.port, decode_responses=True, max_connections=PLACES
        )
        async with instrument(client, refuse_below=LEAST):
            await client.ping()  # what comes is measured
            yield lambda key: client.blpop(key, 0)

    @asynccontextmanager
    async def crossing(self) -> AsyncGenerator[tuple[Peer, Call]]:
        peer = Server(self.port)
        beside = [asyncio.create_task(peer.listen()), asyncio.create_task(peer.look())]
        await peer.ready.wait()
        async with self.popping() as pop:

            async def call(key: str, takes: float) -> str:
                peer.takes[key] = takes
                _, value = await pop(key)
                return str(value)

            try:
                yield peer, call
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.wait(beside)
                await peer.beside.aclose()

    # A command calls nobody on, and a Redis knows nothing of requests: there are neither hops nor
    # identities behind it.
    test_the_deadline_only_shrinks_over_many_hops = None  # type: ignore[assignment]
    test_a_cancellation_reaches_over_many_hops = None  # type: ignore[assignment]
    test_identity_and_stage_are_unchanged = None  # type: ignore[assignment]

    async def test_concurrent_calls_do_not_mix(self) -> None:
        """Fifty at once, each with its own deadline; see above for identities."""
        answers: dict[str, str] = {}

        async def caller(n: int) -> None:
            async with timeout(self.unit * (2 + n)):
                answers[f"k{n}"] = await call(f"k{n}", self.unit * (n % 7) / 14)

        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(50):
                    group.start(caller(n))
            for n in range(50):
                (visit,) = peer.visits[f"k{n}"]
                assert visit.left <= self.unit * (2 + n), f"k{n} got another's deadline"
                assert answers[f"k{n}"] == f"k{n}", "an answer went to another caller"


@pytest.mark.real_time
class TestRedisInThreads(TestRedis):
    @asynccontextmanager
    async def popping(self) -> AsyncGenerator[Callable[[str], Any]]:
        client: Any = redis.Redis(port=self.port, decode_responses=True, max_connections=PLACES)
        instrument(client, refuse_below=LEAST)
        client.ping()
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(PLACES) as threads:

            async def pop(key: str) -> Any:
                here = contextvars.copy_context()
                try:
                    return await loop.run_in_executor(threads, here.run, client.blpop, key, 0)
                except InsufficientBudget:
                    raise
                except DeadlineExceeded:
                    # The thread was quicker than the timer of the scope, whose end it is.
                    await asyncio.sleep(2 * MARGIN)
                    raise

            yield pop
        with suppress(redis.RedisError):
            client.close()

    # A thread is not cancelled; what it waits for ends with its deadline, and here is none.
    test_an_explicit_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_from_above_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]
