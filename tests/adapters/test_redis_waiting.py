"""Commands of Redis that wait at the server, and transactions, within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio

import holdfast
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, eventually, listed, of_loop

pytestmark = pytest.mark.system


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


# -- commands that wait at the server --------------------------------------------------------------


WAITING: list[Any] = [
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
]


@pytest.mark.real_time("asyncio", "uvloop")
async def test_the_server_stops_waiting_a_little_sooner(redis_server: Any) -> None:
    """So connections are kept, although the time-out of the socket is much shorter."""
    async with of_loop(redis_server.port, options={"socket_timeout": 0.15}) as client:
        await asyncio.gather(*(client.ping() for _ in WAITING))
        before = {one["id"] for one in listed(redis_server.port)}

        async def waits(call: Any) -> None:
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.6):
                    await call(client)

        await asyncio.gather(*map(waits, WAITING))
        assert before == {one["id"] for one in listed(redis_server.port)}
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
    """The rest of a pipeline's answers; with redis-py 8 alone the next caller gets one."""
    if not ours and int(redis.__version__.split(".")[0]) < 8:
        return
    async with of_loop(redis_server.port, ours=ours, options={"max_connections": 1}) as client:
        await client.mset({"a": "A", "b": "B"})

        def broken(_: Any, **__: Any) -> Any:
            raise ValueError("of the callback")

        client.set_response_callback("GET", broken)
        with pytest.raises(ValueError, match="of the callback"):
            await client.pipeline(transaction=False).get("a").echo("not yours").execute()
        del client.response_callbacks["GET"]
        assert await client.get("b") == ("B" if ours else "not yours")
