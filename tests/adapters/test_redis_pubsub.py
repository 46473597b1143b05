"""Subscriptions: a wait ends, the subscription stays, and no message is lost or mixed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

import holdfast
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, KINDS, listed, of_loop, of_thread

pytestmark = pytest.mark.system


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


async def subscribed(client: Any, channel: str) -> Any:
    subscription = client.pubsub(ignore_subscribe_messages=True)
    await subscription.subscribe(channel)
    await subscription.get_message(timeout=ENDED)
    return subscription


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.real_time("asyncio", "uvloop")
async def test_waits_that_end_lose_no_message(proxy: FaultProxy, kind: str) -> None:
    """Hundreds of waits are cut, most of them in the midst of a message."""
    proxy.to_client.trickle(20_000.0)
    texts = [f"{n}:" + "x" * (n * 7 % 60) for n in range(120)]
    async with of_loop(proxy.port, kind) as client:
        subscription = await subscribed(client, "news")
        (before,) = [one["id"] for one in listed(proxy_port(proxy)) if one["sub"] == "1"]
        heard: list[str] = []

        async def publish() -> None:
            for text in texts:
                await client.publish("news", text)

        publishing = asyncio.create_task(publish())
        n = 0
        until = monotonic() + 4 * ENDED
        while len(heard) < len(texts):
            assert monotonic() < until
            n += 1
            with suppress(TimeoutError):
                async with holdfast.timeout(0.0005 + n * 0.618 % 1 * 0.003):
                    if n % 2:
                        message = await subscription.get_message(timeout=None)
                    else:
                        message = await anext(subscription.listen())
                    heard.append(message["data"])
        await publishing
        assert heard == texts
        (after,) = [one["id"] for one in listed(proxy_port(proxy)) if one["sub"] == "1"]
        assert after == before
        await subscription.aclose()


def proxy_port(proxy: FaultProxy) -> int:
    return proxy._server[1]


@pytest.mark.real_time
async def test_a_message_comes_after_waits_that_were_cut(redis_server: Any) -> None:
    async with of_loop(redis_server.port) as client:
        subscription = await subscribed(client, "late")
        for _ in range(3):
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.05):
                    await subscription.get_message(timeout=60.0)
        await client.publish("late", "here")
        message = await subscription.get_message(timeout=ENDED)
        assert message["data"] == "here"
        assert await subscription.get_message(timeout=0.01) is None
        await subscription.aclose()
        assert (await client.ping()) is True


@pytest.mark.real_time
async def test_a_subscription_that_was_broken_is_taken_up_again(proxy: FaultProxy) -> None:
    retry = Retry(ConstantBackoff(0.01), 20)
    async with of_loop(proxy.port, options={"retry": retry}) as client:
        subscription = await subscribed(client, "again")
        proxy.reset()
        async with holdfast.timeout(ENDED):
            message = None
            while message is None:
                await client.publish("again", "back")
                message = await subscription.get_message(timeout=0.1)
        assert message["data"] == "back"
        await subscription.aclose()


# -- in threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_waits_no_longer_and_stays_subscribed(redis_server: Any, kind: str) -> None:
    with of_thread(redis_server.port, kind) as client:
        subscription = client.pubsub(ignore_subscribe_messages=True)
        subscription.subscribe("thread")
        subscription.get_message(timeout=ENDED)
        (before,) = [one["id"] for one in listed(redis_server.port) if one["sub"] == "1"]
        for wait in (
            lambda: subscription.get_message(timeout=60.0),
            lambda: subscription.get_message(timeout=None),
            lambda: next(subscription.listen()),
        ):
            began = monotonic()
            with pytest.raises(holdfast.DeadlineExceeded) as late, holdfast.timeout(BUDGET):
                wait()
            assert monotonic() - began < ENDED
            assert isinstance(late.value, redis.TimeoutError)
        client.publish("thread", "here")
        assert subscription.get_message(timeout=ENDED)["data"] == "here"
        (after,) = [one["id"] for one in listed(redis_server.port) if one["sub"] == "1"]
        assert after == before
        subscription.close()
        with holdfast.timeout(ENDED):
            assert client.ping()


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_is_cut_in_a_message_gets_it_later(proxy: FaultProxy, kind: str) -> None:
    with of_thread(proxy.port, kind) as client:
        subscription = client.pubsub(ignore_subscribe_messages=True)
        subscription.subscribe("slow")
        subscription.get_message(timeout=ENDED)
        proxy.to_client.trickle(200.0)
        with of_thread(proxy_port(proxy), kind) as other:
            other.publish("slow", "x" * 200)
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(BUDGET):
            subscription.get_message(timeout=60.0)
        proxy.heal()
        assert subscription.get_message(timeout=ENDED)["data"] == "x" * 200
        subscription.close()
