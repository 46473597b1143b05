"""redis-py on a loop: what ends, what is refused, and what a cancellation leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
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


# -- commands that wait at the server --------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.blpop("nothing", 0),
        lambda c: c.brpop(["nothing", "none"], 60),
        lambda c: c.blmove("nothing", "none", 0),
        lambda c: c.brpoplpush("nothing", "none", 0),
        lambda c: c.bzpopmin("nothing", 0),
        lambda c: c.bzpopmax("nothing", 60),
        lambda c: c.blmpop(0, 1, "nothing", direction="LEFT"),
        lambda c: c.bzmpop(0, 1, ["nothing"], min=True),
        lambda c: c.xread({"nothing": "$"}, block=0),
        lambda c: c.xread({"nothing": "$"}, count=2, block=60_000),
        lambda c: c.execute_command("blpop", "nothing", "0"),
        lambda c: c.execute_command(b"BLPOP", "nothing", 0),
    ],
)
@pytest.mark.real_time
async def test_the_server_stops_waiting_a_little_sooner(redis_server: Any, call: Any) -> None:
    async with of_loop(redis_server.port, options={"socket_timeout": 0.15}) as client:
        await client.ping()
        (before,) = listed(redis_server.port)
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.4):
                await call(client)
        (after,) = listed(redis_server.port)
        assert after["id"] == before["id"], "the connection was not kept"
        assert await client.ping()


@pytest.mark.real_time
async def test_where_no_scope_ends_the_wait_the_error_says_who_had_nothing(
    redis_server: Any,
) -> None:
    async with of_loop(redis_server.port) as client:
        with suppress(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.4):
                task = asyncio.create_task(client.blpop("nothing", 0))  # which is not the scope's
                await asyncio.wait([task])
        with pytest.raises(holdfast.DeadlineExceeded) as late:
            await task
        assert isinstance(late.value, redis.TimeoutError)
        assert "the server had nothing for 0." in str(late.value)


@pytest.mark.real_time
async def test_groups_and_replicas_wait_no_longer_either(redis_server: Any) -> None:
    async with of_loop(redis_server.port) as client:
        await client.delete("stream")
        await client.xgroup_create("stream", "group", mkstream=True)
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.5):
                await client.xreadgroup("group", "me", {"stream": ">"}, block=0)
        async with holdfast.timeout(0.8):
            assert await client.wait(3, 0) == 0  # what it has got is its answer
        assert await client.execute_command("WAIT", 0, 0) == 0


@pytest.mark.real_time
async def test_a_time_out_of_the_users_own_is_left_alone(redis_server: Any) -> None:
    async with of_loop(redis_server.port) as client, holdfast.timeout(ENDED):
        assert await client.blpop("nothing", 0.05) is None
        assert await client.xread({"nothing": "$"}, block=50) in ({}, [], None)


@pytest.mark.real_time("asyncio", "uvloop")
async def test_what_is_pushed_is_not_lost_to_a_deadline(redis_server: Any) -> None:
    """Pushed around the time-out, over and over: it comes out, or stays in."""
    port = redis_server.port
    async with of_loop(port) as client, of_loop(port, options={"max_connections": 4}) as other:
        await client.delete("jobs")
        await other.ping()
        got = 0
        for n in range(12):
            async with holdfast.timeout(5.0):
                pushing = asyncio.create_task(_later(other, 0.05 + 0.01 * n, f"job-{n}"))
            with suppress(TimeoutError):
                async with holdfast.timeout(0.24):
                    await client.blpop("jobs", 0)
                    got += 1
            await pushing
        assert got + await client.llen("jobs") == 12


async def _later(client: Any, seconds: float, value: str) -> None:
    await asyncio.sleep(seconds)
    await client.rpush("jobs", value)


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_wait_that_is_cancelled_ends_at_the_server(redis_server: Any) -> None:
    port = redis_server.port
    async with of_loop(port) as client:
        for limit in (None, 60.0):
            task = asyncio.create_task(_popping(client, limit))
            await eventually(lambda: any(one["cmd"] == "blpop" for one in listed(port)))
            task.cancel()
            await asyncio.wait([task])
            await eventually(lambda: not any(one["cmd"] == "blpop" for one in listed(port)))


async def _popping(client: Any, limit: float | None) -> None:
    if limit is None:
        await client.blpop("nothing", 0)
    else:
        async with holdfast.timeout(limit):
            await client.blpop("nothing", 0)


# -- transactions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 1.0])
@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_transaction_without_an_answer_has_an_unknown_outcome(
    proxy: FaultProxy, redis_server: Any, keep: float
) -> None:
    async with of_loop(proxy.port, keep=keep) as client:
        await client.set("n", 0)
        proxy.to_client.stall()
        with pytest.raises(holdfast.OutcomeUnknown) as cut:
            async with holdfast.timeout(BUDGET):
                await client.pipeline().incr("n").execute()
        assert isinstance(cut.value, redis.TimeoutError)
        proxy.heal()
        assert await client.get("n") == "1", "it was done, once"


@pytest.mark.real_time
async def test_a_transaction_cut_by_the_server_is_not_tried_again(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port) as client:
        await client.set("n", 0)
        proxy.to_client.stall()
        task = asyncio.create_task(client.pipeline().incr("n").execute())
        await asyncio.sleep(BUDGET)
        proxy.reset()
        with pytest.raises(holdfast.OutcomeUnknown):
            await task
        proxy.heal()
        assert await client.get("n") == "1"


@pytest.mark.real_time
async def test_one_that_was_not_sent_is_known_not_to_be_done(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port, keep=0.0) as client:
        await client.delete("big")
        proxy.to_server.stall()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(BUDGET):
                await client.pipeline().set("big", "x" * 40_000_000).execute()
        proxy.heal()
        assert not await client.exists("big")


@pytest.mark.real_time("asyncio", "uvloop")
async def test_what_was_watched_is_forgotten_when_time_is_up(
    proxy: FaultProxy, redis_server: Any
) -> None:
    options = {"max_connections": 1}
    async with of_loop(proxy.port, options=options) as client:
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            await _watching(client, proxy)
        assert monotonic() - began < ENDED
        proxy.heal()
        await client.set("n", 5)
        assert await client.pipeline().get("n").execute() == ["5"]


async def _watching(client: Any, proxy: FaultProxy) -> None:
    async with holdfast.timeout(BUDGET), client.pipeline() as pipeline:
        await pipeline.watch("n")
        proxy.to_client.stall()
        await pipeline.get("n")


@pytest.mark.real_time
async def test_a_pipeline_that_goes_on_after_a_cut_gets_its_own_answers(
    proxy: FaultProxy,
) -> None:
    async with of_loop(proxy.port, options={"max_connections": 1}) as client:
        await client.mset({"a": "A", "b": "B"})
        async with client.pipeline() as pipeline:
            await pipeline.watch("c")
            proxy.to_client.stall()
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(BUDGET):
                    await pipeline.get("a")
            proxy.heal()
            assert await pipeline.get("b") == "B"
        assert await client.get("a") == "A"


@pytest.mark.parametrize("ours", [False, True], ids=["plain", "ours"])
@pytest.mark.real_time
async def test_a_callback_that_fails_leaves_no_answer_behind(redis_server: Any, ours: bool) -> None:
    """The rest of a pipeline's answers; with redis-py 8.1 alone the next caller gets one."""
    async with of_loop(redis_server.port, ours=ours, options={"max_connections": 1}) as client:
        await client.mset({"a": "A", "b": "B"})

        def broken(_: Any, **__: Any) -> Any:
            raise ValueError("of the callback")

        client.set_response_callback("GET", broken)
        with pytest.raises(ValueError, match="of the callback"):
            await client.pipeline(transaction=False).get("a").echo("not yours").execute()
        del client.response_callbacks["GET"]
        assert await client.get("b") == ("B" if ours else "not yours")


# -- being cut -------------------------------------------------------------------------------------


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
async def test_closing_does_not_wait_for_answers(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port, keep=3600.0) as client:
        await client.ping()
        proxy.to_client.stall()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await client.get("a")
        began = monotonic()
    assert monotonic() - began < ENDED


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
