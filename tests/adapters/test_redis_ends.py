"""How a command of Redis ends that was sent and not answered, and what its errors say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import holdfast
from holdfast.adapters.redis.blocking import rule_for
from holdfast.adapters.redis.errors import named
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import variant
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, eventually, of_loop, of_thread

pytestmark = pytest.mark.system
SLOW_RETRIES = ConstantBackoff(60.0)


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


# -- a cancellation that is not ours ---------------------------------------------------------------


async def in_exec(client: Any, proxy: FaultProxy) -> Any:
    """A task that waits for the answer to its `EXEC`."""
    await client.set("n", 0)
    proxy.to_client.stall()
    return client.pipeline().incr("n").execute()


async def done_once(client: Any, proxy: FaultProxy) -> None:
    proxy.heal()
    assert await client.get("n") == "1"


@pytest.mark.parametrize("keep", [0.0, 1.0])
@pytest.mark.parametrize("under", [False, True], ids=["bare", "scope"])
@pytest.mark.real_time
async def test_a_native_cancellation_of_a_transaction_arrives(
    proxy: FaultProxy, redis_server: Any, keep: float, under: bool
) -> None:
    async with of_loop(proxy.port, keep=keep) as client, of_loop(redis_server.port) as admin:
        work = await in_exec(client, proxy)

        async def transaction() -> Any:
            if not under:
                return await work
            async with holdfast.timeout(60.0):
                return await work

        task = asyncio.create_task(transaction())
        await eventually(lambda: was_done(admin))
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cut:
            await task
        assert task.cancelled()
        assert "may have been done" in notes_of(cut.value)
        await done_once(client, proxy)


async def was_done(admin: Any) -> bool:
    return await admin.get("n") == "1"


def notes_of(error: BaseException | None) -> str:
    found = ""
    while error is not None:
        found += "".join(getattr(error, "__notes__", ()))
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.real_time
async def test_a_time_out_of_asyncio_in_a_transaction_is_one(proxy: FaultProxy) -> None:
    async with of_loop(proxy.port) as client:
        work = await in_exec(client, proxy)
        with pytest.raises(TimeoutError) as cut:
            async with holdfast.timeout(60.0), asyncio.timeout(BUDGET):
                await work
        assert type(cut.value) is TimeoutError
        await done_once(client, proxy)


@pytest.mark.real_time
async def test_a_task_group_gets_the_error_that_ended_it_alone(proxy: FaultProxy) -> None:
    async def fails() -> None:
        await asyncio.sleep(BUDGET)
        raise ValueError("of a sibling")

    async with of_loop(proxy.port) as client:
        work = await in_exec(client, proxy)

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(work)
                group.create_task(fails())

        with pytest.raises(ExceptionGroup) as failed:
            await asyncio.create_task(both())  # Python 3.11 leaves a cancellation behind
        assert [type(one) for one in failed.value.exceptions] == [ValueError]
        await done_once(client, proxy)


@pytest.mark.real_time
async def test_both_in_one_turn_are_a_cancellation(proxy: FaultProxy) -> None:
    scopes: list[holdfast.Scope] = []

    async def transaction() -> None:
        async with holdfast.timeout(60.0) as scope:
            scopes.append(scope)
            await work

    async with of_loop(proxy.port) as client:
        work = await in_exec(client, proxy)
        task = asyncio.create_task(transaction())
        await asyncio.sleep(BUDGET)
        scopes[0].cancel("enough")
        task.cancel()
        await asyncio.wait([task], timeout=ENDED)
        assert task.cancelled()
        proxy.heal()


@pytest.mark.real_time
async def test_a_pipeline_cut_while_it_gives_its_place_back_is_empty(redis_server: Any) -> None:
    async with of_loop(redis_server.port, blocking=True, options={"max_connections": 1}) as client:
        await client.ping()
        pipeline = client.pipeline(transaction=False).incr("once")
        entered, forever = asyncio.Event(), asyncio.Event()

        async def release(_: Any) -> None:
            entered.set()
            await forever.wait()

        pool, pipeline.connection_pool = client.connection_pool, Slow(client.connection_pool)
        pipeline.connection_pool.release = release
        task = asyncio.create_task(pipeline.execute())
        await asyncio.wait_for(entered.wait(), ENDED)
        task.cancel()
        await asyncio.wait([task], timeout=ENDED)
        assert task.cancelled()
        assert not pipeline.command_stack
        await pool.disconnect()


class Slow:
    """A pool, with methods that can be set."""

    release: Any

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


# -- another attempt, for which there is no time ---------------------------------------------------


@pytest.mark.real_time
async def test_what_was_sent_is_not_told_to_be_refused(
    proxy: FaultProxy, redis_server: Any
) -> None:
    options = {"retry": AsyncRetry(SLOW_RETRIES, 3)}
    async with of_loop(proxy.port, options=options) as client, of_loop(redis_server.port) as admin:
        await client.set("n", 0)
        proxy.to_client.stall()
        task = asyncio.create_task(_within(20.0, client.incr("n")))
        await eventually(lambda: was_done(admin))
        proxy.reset()
        error = await task
    assert isinstance(error, holdfast.DeadlineExceeded)
    assert not isinstance(error, holdfast.InsufficientBudget)
    assert isinstance(error, redis.TimeoutError)
    assert isinstance(error.__cause__, redis.ConnectionError)
    assert "INCR" in str(error)
    assert "it was sent, and its answer has not come; another attempt: not begun" in str(error)


async def _within(seconds: float, work: Any) -> Exception | None:
    try:
        async with holdfast.timeout(seconds):
            await work
    except Exception as exc:
        return exc
    return None


@pytest.mark.real_time
async def test_nor_when_the_next_attempt_does_not_connect(proxy: FaultProxy) -> None:
    """The first attempt was sent; of the second there is no connection, and no third."""
    backoff = ConstantBackoff(0.0)
    options = {"retry": AsyncRetry(backoff, 3), "health_check_interval": 3600}
    async with of_loop(proxy.port, options=options) as client:
        await client.set("n", 0)
        proxy.to_client.stall()
        task = asyncio.create_task(_within(20.0, client.incr("n")))
        await asyncio.sleep(BUDGET)
        backoff.compute = lambda failures: 60.0 if failures > 1 else 0.0  # type: ignore[method-assign]
        for connection in client.connection_pool._in_use_connections:
            connection.retry._backoff.compute = backoff.compute
        proxy.refuse()
        proxy.reset()
        error = await task
        proxy.heal()
    assert isinstance(error, holdfast.DeadlineExceeded)
    assert not isinstance(error, holdfast.InsufficientBudget)
    assert "INCR" in str(error)


def test_in_threads_neither(proxy: FaultProxy, redis_server: Any) -> None:
    with of_thread(proxy.port, options={"retry": Retry(SLOW_RETRIES, 3)}) as client:
        client.set("n", 0)
        proxy.to_client.stall()
        cutting = threading.Timer(BUDGET, proxy.reset)
        cutting.start()
        with pytest.raises(holdfast.DeadlineExceeded, match="INCR") as cut, holdfast.timeout(20.0):
            client.incr("n")
        cutting.join()
        assert not isinstance(cut.value, holdfast.InsufficientBudget)
        assert "it was sent, and its answer has not come" in str(cut.value)
        proxy.heal()
        assert client.get("n") == "1"


# -- what errors say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("GET", "GET"),
        (b"get", "get"),
        ("AUTH default hunter2", "AUTH"),
        (b"AUTH hunter2", "AUTH"),
        ("AUTH\thunter2", "AUTH"),
        ("CONFIG SET requirepass hunter2", "CONFIG SET"),
        ("ACL SETUSER me >hunter2", "ACL SETUSER"),
        ("CLIENT INFO", "CLIENT INFO"),
        ("SET key hunter2", "SET"),
        ("", ""),
    ],
)
def test_a_name_has_no_arguments(command: Any, name: str) -> None:
    assert named(command) == name


def test_an_error_tells_no_secret(proxy: FaultProxy) -> None:
    with of_thread(proxy.port) as client:
        client.ping()
        proxy.to_client.stall()
        with pytest.raises(holdfast.DeadlineExceeded) as cut, holdfast.timeout(BUDGET):
            client.execute_command("AUTH default hunter2")
        assert "timeout/AUTH" in str(cut.value)
        assert "hunter2" not in str(cut.value)


@pytest.mark.parametrize("group", ["block", "streams", "g"])
@pytest.mark.parametrize("consumer", ["block", b"STREAMS", "c"])
def test_a_group_may_have_any_name(group: str, consumer: Any) -> None:
    rule: Any = rule_for("XREADGROUP")
    args = ("XREADGROUP", "GROUP", group, consumer, "BLOCK", 7000, "STREAMS", "s", ">")
    assert rule.at(args) == 5
    assert rule.at((*args[:4], "COUNT", 1, *args[4:])) == 7
    assert rule.at((*args[:4], "STREAMS", "block", ">")) is None


class Mixin:
    """Nothing."""


def test_classes_are_not_kept_for_ever() -> None:
    for n in range(1000):
        variant(Mixin, Retry, Settings(keep=float(n)))
    assert variant.cache_info().currsize <= 256
