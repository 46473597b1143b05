"""Clusters of Redis: each way to a node ends in time, and no answer is mixed up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster

import holdfast
from holdfast.adapters.redis import instrument, pool_of, uninstrument
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, eventually_blocking
from tests.peers.redis import redis_running

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", name="proxy")
def cluster_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A proxy before a cluster that has one node."""
    options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
    with redis_running(*options) as server, FaultProxy("127.0.0.1", server.port) as proxy:
        with redis.Redis(port=server.port) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually_blocking(lambda: b"cluster_state:ok" in _info(admin))
        yield proxy


def _info(admin: Any) -> bytes:
    connection = admin.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "INFO")
        found: bytes = connection.read_response()
        return found
    finally:
        admin.connection_pool.release(connection)


def remapped(proxy: FaultProxy) -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": proxy.port, "decode_responses": True,
        "address_remap": lambda _: ("127.0.0.1", proxy.port),
    }  # fmt: skip


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_node_that_freezes_frees_the_caller(proxy: FaultProxy) -> None:
    client: Any = redis.asyncio.RedisCluster(**remapped(proxy))
    async with instrument(client):
        assert await client.set("a", "A")
        assert await client.pipeline().get("a").get("a").execute() == ["A", "A"]
        proxy.to_client.stall()
        for call in (client.get("a"), client.pipeline().get("a").execute()):
            began = monotonic()
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(BUDGET):
                    await call
            assert monotonic() - began < ENDED
        proxy.heal()
        async with holdfast.timeout(ENDED):
            assert await client.get("a") == "A"


@pytest.mark.real_time("asyncio", "uvloop")
async def test_each_answer_goes_to_who_asked(proxy: FaultProxy) -> None:
    client: Any = redis.asyncio.RedisCluster(**remapped(proxy), max_connections=10)
    dice = random.Random(9)
    seen = {"right": 0, "wrong": 0, "cut": 0}
    async with instrument(client):
        await client.mset_nonatomic({f"key-{n}": f"value-{n}" for n in range(20)})
        proxy.to_client.delay(0.003, jitter=0.003)

        async def work(number: int) -> None:
            for n in range(40):
                seconds = 4 * ENDED if n % 4 == 0 else dice.random() * 0.015
                task = asyncio.create_task(client.get(f"key-{number}"))
                handle = asyncio.get_running_loop().call_later(seconds, task.cancel)
                await asyncio.wait([task])
                handle.cancel()
                if task.cancelled():
                    seen["cut"] += 1
                else:
                    seen["right" if task.result() == f"value-{number}" else "wrong"] += 1

        await asyncio.gather(*(work(number) for number in range(8)))
        proxy.heal()
        assert seen["wrong"] == 0
        assert seen["cut"]
        assert seen["right"] >= 80


def test_in_threads_too(proxy: FaultProxy) -> None:
    client: Any = instrument(redis.RedisCluster(**remapped(proxy)))
    assert client.set("a", "A")
    assert client.pipeline().get("a").get("a").execute() == ["A", "A"]
    proxy.to_client.stall()
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(BUDGET):
        client.get("a")
    assert monotonic() - began < ENDED
    proxy.heal()
    with holdfast.timeout(ENDED):
        assert client.get("a") == "A"
    client.close()


def test_it_can_be_undone(proxy: FaultProxy) -> None:
    client: Any = redis.RedisCluster(**remapped(proxy))
    (node,) = client.get_nodes()
    kind = type(node.redis_connection.connection_pool)
    instrument(client, refuse_below=60.0)
    with pytest.raises(holdfast.InsufficientBudget), holdfast.timeout(30.0):
        client.get("a")
    assert asyncio.run(pool_of(client).preclean(1.0)) >= 0
    uninstrument(client)
    assert type(node.redis_connection.connection_pool) is kind
    with holdfast.timeout(30.0):
        client.get("a")
    client.close()
