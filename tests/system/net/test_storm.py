"""Random faults under many calls at once: each call ends in time, and afterwards all works."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import holdfast
from bench.net.cell import counted
from holdfast.testing.proxy import FaultProxy
from tests.system.net.test_kept_connections import BLOCKING, BODY, ON_LOOP, Server

pytestmark = [pytest.mark.system, pytest.mark.soak, pytest.mark.timeout(120)]

SECONDS = 8.0
CALLERS = 16
LATE = 2.0
FAULTS: tuple[Callable[[FaultProxy, random.Random], object], ...] = (
    lambda proxy, dice: proxy.to_client.stall(),
    lambda proxy, dice: proxy.to_server.stall(),
    lambda proxy, dice: proxy.to_client.trickle(dice.choice([50, 2_000, 20_000])),
    lambda proxy, dice: proxy.to_client.limit(dice.randrange(6_000), "cut"),
    lambda proxy, dice: proxy.to_client.limit(dice.randrange(6_000), "reset"),
    lambda proxy, dice: proxy.to_client.delay(0.1, 0.05),
    lambda proxy, dice: proxy.to_client.cut(),
    lambda proxy, dice: proxy.cut(),
    lambda proxy, dice: proxy.reset(),
    lambda proxy, dice: proxy.refuse(),
    lambda proxy, dice: proxy.blackhole(),
)


@contextmanager
def stormy(seed: int) -> Iterator[FaultProxy]:
    """A proxy in front of a good server, with faults that come and go for some seconds."""
    server = Server()
    over = threading.Event()
    dice = random.Random(seed)

    def storm(proxy: FaultProxy) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and not over.is_set():
            dice.choice(FAULTS)(proxy, dice)
            over.wait(dice.uniform(0.01, 0.15))
            proxy.heal()
            over.wait(dice.uniform(0.0, 0.1))

    try:
        with FaultProxy("127.0.0.1", server.port, chance=dice.random) as proxy:
            thread = threading.Thread(target=storm, args=[proxy], name="storm")
            thread.start()
            yield proxy
            over.set()
            thread.join()
    finally:
        server.close()


def raging() -> bool:
    return any(thread.name == "storm" for thread in threading.enumerate())


class Seen:
    """How the calls ended."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.worst = 0.0

    @contextmanager
    def call(self, limit: float) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        except holdfast.DeadlineExceeded:
            self.ends["deadline"] += 1
        except Exception as exc:
            self.ends[type(exc).__name__] += 1
        else:
            self.ends["ok"] += 1
        self.worst = max(self.worst, time.monotonic() - begun - limit)

    def check(self) -> None:
        print(dict(self.ends), round(self.worst, 3))
        assert self.worst < LATE
        assert self.ends["ok"] > 100
        assert self.ends["deadline"] > 5
        # What is wrong with a connection is an error of the network, not of our code.
        assert not {"AttributeError", "RuntimeError", "TypeError", "ValueError"} & set(self.ends)


@pytest.mark.real_time("asyncio")
@pytest.mark.parametrize("client", list(ON_LOOP))
async def test_on_a_loop(client: str) -> None:
    seen, dice = Seen(), random.Random(1)
    call, close = ON_LOOP[client]()
    before = counted()
    with stormy(2) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/"

        async def caller() -> None:
            while raging():
                limit = dice.uniform(0.02, 0.3)
                with seen.call(limit):
                    async with holdfast.timeout(limit):
                        assert await call(url) == len(BODY)
                await asyncio.sleep(0.001)

        await asyncio.wait([asyncio.ensure_future(caller()) for _ in range(CALLERS)])
        proxy.heal()
        assert [await call(url) for _ in range(3)] == [len(BODY)] * 3
        await close()
        await asyncio.sleep(0.05)
    seen.check()
    assert counted()[0] - before[0] == Counter()


@pytest.mark.parametrize("client", list(BLOCKING))
def test_in_threads(client: str, caplog: pytest.LogCaptureFixture) -> None:
    # pytest keeps what urllib3 logs, errors with their tracebacks, and so its pools: they close
    # their connections when nobody refers to them any more.
    caplog.set_level(logging.CRITICAL, "urllib3")
    seen = Seen()
    call, close = BLOCKING[client]()
    before = counted()
    with stormy(3) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/"

        def caller(seed: int) -> None:
            dice = random.Random(seed)
            while raging():
                limit = dice.uniform(0.02, 0.3)
                with seen.call(limit), holdfast.timeout(limit):
                    assert call(url) == len(BODY)

        threads = [threading.Thread(target=caller, args=[seed]) for seed in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        proxy.heal()
        assert [call(url) for _ in range(3)] == [len(BODY)] * 3
        close()
    seen.check()
    assert counted()[0] - before[0] == Counter()
