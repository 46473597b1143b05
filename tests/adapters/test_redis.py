"""redis-py on a loop: what ends in time, what is refused, what is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

import holdfast
from holdfast.adapters.redis import instrument, pool_of, uninstrument
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, KINDS, eventually, listed, of_loop
from tests.peers.redis import redis_running

pytestmark = pytest.mark.system


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


# -- deadlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.real_time("asyncio", "uvloop")
async def test_what_it_does_is_what_it_did(redis_server: Any, kind: str) -> None:
    async with of_loop(redis_server.port, kind) as client, holdfast.timeout(30.0):
        assert await client.set("plain", "1")
        assert await client.get("plain") == "1"
        assert await client.execute_command("echo", "x" * 100_000) == "x" * 100_000
        await client.hset("hash", mapping={"a": "1"})
        assert await client.hgetall("hash") == {"a": "1"}
        pipeline = client.pipeline().incr("plain").get("plain")
        assert await pipeline.execute() == [2, "2"]
        pipeline = client.pipeline(transaction=False).incr("plain").get("plain")
        assert await pipeline.execute() == [3, "3"]
        with pytest.raises(redis.ResponseError):
            await client.lpush("plain", "x")
        assert await client.get("plain") == "3"
        (connection,) = client.connection_pool._available_connections
        assert connection.owed == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_frozen_server_frees_the_caller_at_the_deadline(
    proxy: FaultProxy, kind: str
) -> None:
    async with of_loop(proxy.port, kind) as client:
        await client.ping()
        proxy.to_client.stall()
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.get("a")
        assert BUDGET <= monotonic() - began < ENDED
        proxy.heal()
        assert await client.ping()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_server_that_takes_nothing_frees_the_caller_too(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port, keep=0.0) as client:
        await client.ping()
        proxy.to_server.stall()
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.set("big", "x" * 40_000_000)
        assert monotonic() - began < ENDED
        proxy.heal()
        assert await client.ping()


@pytest.mark.parametrize(
    "options", [{}, {"password": "secret", "db": 3}, {"health_check_interval": 1}]
)
@pytest.mark.real_time
async def test_the_handshake_ends_at_the_deadline(
    proxy: FaultProxy, options: dict[str, Any]
) -> None:
    async with of_loop(proxy.port, options=options) as client:
        proxy.to_client.stall()
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.get("a")
        assert monotonic() - began < ENDED


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_dial_that_gets_no_answer_ends_at_the_deadline(proxy: FaultProxy) -> None:
    proxy.blackhole()
    async with of_loop(proxy.port) as client:
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.get("a")
        assert monotonic() - began < ENDED


@pytest.mark.real_time
async def test_bytes_that_trickle_do_not_hold_the_deadline_up(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port) as client:
        await client.set("long", "x" * 1000)
        proxy.to_client.trickle(20.0)
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.get("long")
        assert monotonic() - began < ENDED
        proxy.heal()
        assert await client.get("long") == "x" * 1000


@pytest.mark.real_time("asyncio", "uvloop")
async def test_waiting_for_a_place_ends_at_the_deadline(redis_server: Any) -> None:
    options = {"max_connections": 1, "timeout": None}
    async with of_loop(redis_server.port, blocking=True, options=options) as client:
        pool = client.connection_pool
        taken = await pool.get_connection()
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.ping()
        assert monotonic() - began < ENDED
        await pool.release(taken)
        assert await client.ping()


@pytest.mark.real_time
async def test_a_waiter_that_leaves_hands_on_its_place(redis_server: Any) -> None:
    """It was woken and cancelled in the same moment: the next one must hear of the place."""
    options = {"max_connections": 1, "timeout": None}
    async with of_loop(redis_server.port, blocking=True, options=options) as client:
        pool = client.connection_pool
        for _ in range(20):
            taken = await pool.get_connection()
            first = asyncio.create_task(pool.get_connection())
            second = asyncio.create_task(pool.get_connection())
            await asyncio.sleep(0.001)
            await pool.release(taken)
            first.cancel()
            await pool.release(await asyncio.wait_for(second, ENDED))
            await asyncio.wait([first])
            if not first.cancelled():
                await pool.release(first.result())


@pytest.mark.real_time
async def test_too_little_is_refused_before_anything_is_sent(redis_server: Any) -> None:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        async with of_loop(proxy.port, refuse_below=0.5) as client:
            with pytest.raises(holdfast.InsufficientBudget) as refused:
                async with holdfast.timeout(0.3):
                    await client.get("a")
            assert isinstance(refused.value, redis.TimeoutError)
            assert proxy.opened == 0
            await client.ping()
            (before,) = proxy.connections
            pipeline = client.pipeline()
            await pipeline.watch("a")
            (before,) = proxy.connections
            with pytest.raises(holdfast.InsufficientBudget):
                async with holdfast.timeout(0.3):
                    await pipeline.get("a")
            (after,) = proxy.connections
            assert after.to_server == before.to_server
            await pipeline.reset()


# -- retries ---------------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_an_attempt_for_which_there_is_no_time_is_not_begun(proxy: FaultProxy) -> None:
    options = {"retry": Retry(ConstantBackoff(60.0), 5)}
    proxy.refuse()
    async with of_loop(proxy.port, options=options) as client:
        began = monotonic()
        with pytest.raises(holdfast.InsufficientBudget) as refused:
            async with holdfast.timeout(20.0):
                await client.get("a")
        assert monotonic() - began < ENDED
        assert isinstance(refused.value.__cause__, redis.ConnectionError)


@pytest.mark.real_time
async def test_attempts_share_one_budget(proxy: FaultProxy) -> None:
    options = {"retry": Retry(ConstantBackoff(0.02), 1_000_000)}
    proxy.refuse()
    async with of_loop(proxy.port, options=options) as client:
        began = monotonic()
        with pytest.raises((holdfast.DeadlineExceeded, redis.ConnectionError)):
            async with holdfast.timeout(BUDGET):
                await client.get("a")
        assert monotonic() - began < ENDED
        proxy.heal()
        async with holdfast.timeout(ENDED):
            assert await client.ping()


@pytest.mark.real_time
async def test_a_server_that_is_killed_and_comes_back(redis_server: Any) -> None:
    with redis_running() as server:
        async with of_loop(server.port) as client:
            await client.ping()
            waiting = asyncio.create_task(client.blpop("nothing", 30))
            await eventually(lambda: any(one["cmd"] == "blpop" for one in listed(server.port)))
            with redis.Redis(port=server.port) as admin:
                admin.shutdown(nosave=True)
            began = monotonic()
            with pytest.raises((holdfast.DeadlineExceeded, redis.ConnectionError)):
                async with holdfast.timeout(1.0):
                    await client.ping()
            assert monotonic() - began < ENDED
            waiting.cancel()
            await asyncio.wait([waiting])
            with redis_running(port=server.port):
                async with holdfast.timeout(ENDED):
                    assert await client.ping()


# -- the object itself -----------------------------------------------------------------------------


@pytest.mark.real_time
async def test_it_can_be_undone_and_done_again(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port, ours=False) as client:
        pool = client.connection_pool
        kinds = type(client), type(pool), pool.connection_class
        await client.ping()
        for _ in range(2):
            assert instrument(client, refuse_below=1.0) is client
            with pytest.raises(holdfast.InsufficientBudget):
                async with holdfast.timeout(0.5):
                    await client.ping()
            assert instrument(client) is client
            assert isinstance(client, kinds[0])
            async with holdfast.timeout(ENDED):
                assert await client.ping()
            assert uninstrument(client) is client
            assert (type(client), type(pool), pool.connection_class) == kinds
            assert type(pool._available_connections[0]) is kinds[2]
            assert await client.ping()
        assert proxy.opened == 1


def test_what_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="no client"):
        instrument(object())
    with pytest.raises(TypeError, match="no client"):
        uninstrument(42)
    with pytest.raises(TypeError, match="instrumented"):
        pool_of(redis.asyncio.Redis())
    with pytest.raises(ValueError, match="seconds"):
        instrument(redis.asyncio.Redis(), margin=-1.0)


@pytest.mark.real_time
async def test_a_stop_closes_what_is_idle(redis_server: Any) -> None:
    async with of_loop(redis_server.port) as client:
        await asyncio.gather(*(client.ping() for _ in range(3)))
        assert await pool_of(client).preclean(0.1) == 3
        await eventually(lambda: not listed(redis_server.port))
        assert await client.ping()
        await eventually(lambda: not listed(redis_server.port))
        assert await client.ping()
        await eventually(lambda: not listed(redis_server.port))
        await eventually(lambda: client.connection_pool._available_connections[0].idling is None)
