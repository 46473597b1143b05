"""What a command of redis-py that is cut leaves behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import holdfast
from holdfast.adapters.redis import instrument, uninstrument
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import ENDED, KINDS, eventually, listed, of_loop

pytestmark = pytest.mark.system


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_connection_whose_answer_comes_is_kept(
    proxy: FaultProxy, redis_server: Any, native: bool
) -> None:
    async with of_loop(proxy.port, options={"max_connections": 1}) as client:
        await client.mset({"a": "A", "b": "B"})
        (before,) = listed(redis_server.port)
        proxy.to_client.delay(0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05) if native else holdfast.timeout(0.05):
                await client.get("a")
        assert await client.get("b") == "B"
        (after,) = listed(redis_server.port)
        assert after["id"] == before["id"]


@pytest.mark.real_time
async def test_one_whose_answer_does_not_come_is_closed(
    proxy: FaultProxy, redis_server: Any
) -> None:
    async with of_loop(proxy.port, keep=0.2, options={"max_connections": 1}) as client:
        await client.mset({"a": "A", "b": "B"})
        proxy.to_client.stall()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await client.get("a")
        await eventually(lambda: not listed(redis_server.port))
        proxy.heal()
        assert await client.get("b") == "B"


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_connection_goes_on_being_made(proxy: FaultProxy) -> None:
    """Each caller leaves in the midst of it, and yet there is one in the end."""
    proxy.to_client.delay(0.1)
    async with of_loop(proxy.port, options={"max_connections": 1}) as client:
        for _ in range(4):
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.05):
                    await client.ping()
        async with holdfast.timeout(ENDED):
            assert await client.ping()
        assert proxy.opened == 1


@pytest.mark.real_time
async def test_a_single_connection_gets_its_own_answers(proxy: FaultProxy) -> None:
    client: Any = redis.asyncio.Redis(
        port=proxy.port, single_connection_client=True, decode_responses=True
    )
    async with instrument(client):
        await client.mset({"a": "A", "b": "B"})
        proxy.to_client.delay(0.2)
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await client.get("a")
        assert await client.get("b") == "B"


@pytest.mark.real_time
async def test_it_is_not_undone_meanwhile(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port) as client:
        await client.ping()
        proxy.to_client.stall()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await client.get("a")
        with pytest.raises(holdfast.UsageError, match="under way"):
            uninstrument(client)
        proxy.heal()
        assert await client.ping()


@pytest.mark.real_time
async def test_closing_does_not_wait_for_answers(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port, keep=3600.0) as client:
        await client.ping()
        proxy.to_client.stall()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await client.get("a")
        began = monotonic()
    assert monotonic() - began < ENDED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ours", [False, True], ids=["plain", "ours"])
@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_cancellation_is_never_swallowed(redis_server: Any, kind: str, ours: bool) -> None:
    """At each step of a command in turn. Plain redis-py loses some on Python 3.11."""
    async with of_loop(redis_server.port, kind, ours=ours) as client:
        swallowed: list[int] = []
        for steps in range(40):
            await client.ping()
            task = asyncio.create_task(client.echo("x"))
            for _ in range(steps % 20):
                await asyncio.sleep(0)
            if task.cancel():
                await asyncio.wait([task])
                if not task.cancelled():
                    swallowed.append(steps)
        if ours:
            assert not swallowed
        elif sys.version_info < (3, 12):
            assert swallowed, "redis-py does better now: say so on the page"
