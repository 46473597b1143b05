"""Worker processes under the carrier laws, as far as they can be.

Nobody can tell a worker process that its caller has gone. So the laws of reach hold for deadlines,
which it reads, and not for a cancellation that comes before them. What still waits in the queue is
cancelled; see `tests/runtime/test_carry_bind.py`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from holdfast import carry
from holdfast.domain.context import Carried
from holdfast.domain.errors import DeadlineExceeded
from holdfast.runtime.ambient import timeout
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, Handler, Peer, Visit
from tests.laws.far_process import begin, far_side
from tests.laws.kinds import NotCancelled

WORKERS = 8


class Workers:
    """One pool for all tests of this file; its notes go to the peer of the test that runs."""

    pool: Any = None
    peer: Peer | None = None
    visits: dict[tuple[str, int], Visit]

    @classmethod
    def read(cls, notes: Any) -> None:
        while (note := notes.get()) is not None:
            kind, key, number, at, what, carried = note
            if cls.peer is None:
                continue
            if kind == "began":
                visit = cls.visits[key, number] = Visit(at, what, Carried(*carried))
                cls.peer.visits.setdefault(key, []).append(visit)
            elif (key, number) in cls.visits:
                cls.visits[key, number].ends.append((what, at))


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    notes: Any = context.SimpleQueue()
    reader = threading.Thread(target=Workers.read, args=[notes])
    reader.start()
    inner = ProcessPoolExecutor(WORKERS, context, begin, (notes,))
    with carry.executor(inner) as Workers.pool:
        list(Workers.pool.map(far_side, [f"warm{n}" for n in range(WORKERS)], [0.2] * WORKERS))
        yield
    notes.put(None)
    reader.join(10)
    notes.close()


class InProcesses:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        peer = getattr(handler, "__self__", None)
        assert isinstance(peer, Peer)
        Workers.peer, Workers.visits = peer, {}
        loop = asyncio.get_running_loop()

        async def call(key: str, takes: float) -> str:
            try:
                answer = await loop.run_in_executor(Workers.pool, far_side, key, takes)
            except DeadlineExceeded:
                # The process was quicker than the timer of the scope, whose end it is.
                await asyncio.sleep(0.1)
                raise
            here = key.partition(">")[0]
            # What it saw comes another way, and may be slower than the answer.
            while here not in peer.visits or here in peer.open_visits():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return answer

        try:
            yield call
        finally:
            Workers.peer = None


@pytest.mark.real_time
class TestProcesses(NotCancelled):
    carrier = InProcesses
    unit = 1.0
    slack = 0.5

    async def test_the_carrier_is_usable_after_many_cancellations(self) -> None:
        """What ran already when its caller was cancelled runs to its end, so that is waited for."""
        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(60):
                    task = group.start(call(f"x{n}", self.unit / 10))
                    asyncio.get_running_loop().call_later(n % 10 * self.unit / 50, task.cancel)
                    if n % 10 == 9:
                        await asyncio.sleep(self.unit / 5)
            for n in range(20):
                async with timeout(10 * self.unit):
                    assert await call(f"k{n}", 0.0) == f"k{n}"
            await asyncio.sleep(self.slack)
            assert not peer.open_visits()
