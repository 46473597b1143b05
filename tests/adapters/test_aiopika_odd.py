"""RabbitMQ: cancellations of others, handlers that raise what is no `Exception`, and counts."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest

import holdfast
from holdfast.adapters.aiopika import ConfirmMissing, Consumer, publish
from holdfast.adapters.aiopika.verdicts import attempted, attempts_of, deliveries_of
from holdfast.domain.errors import OutcomeUnknown
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_aiopika import (
    FakeMessage,
    FakeQueue,
    consuming,
    opened,
    until,
    until_count,
)


class OddError(BaseException):
    """No `Exception`."""


# -- publishing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["task", "scope"])
@pytest.mark.real_time
async def test_a_cancellation_in_the_same_turn_as_a_scopes_arrives(
    rabbitmq: Any, first: str
) -> None:
    scopes: list[holdfast.Scope] = []

    async def publishing() -> None:
        async with holdfast.timeout(60) as scope:
            scopes.append(scope)
            await publish(exchange, aio_pika.Message(b"1"), place.queue.name)

    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with (
            opened(rabbitmq) as place,
            await aio_pika.connect(rabbitmq.url(port=proxy.port)) as connection,
        ):
            exchange = (await connection.channel()).default_exchange
            proxy.to_client.stall()
            task = asyncio.create_task(publishing())
            await until_count(place, 1)
            if first == "task":
                task.cancel()
                scopes[0].cancel("enough")
            else:
                scopes[0].cancel("enough")
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            proxy.to_client.resume()


class FakeChannel:
    """A channel of a connection that is being made anew."""

    is_closed = False

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def get_underlay_channel(self) -> None:
        await self.opened.wait()


class FakeExchange:
    name = "jobs"

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.sent: list[Any] = []

    async def publish(self, message: Any, *args: Any, **options: Any) -> None:
        self.sent.append(message)


async def test_without_a_connection_nothing_was_sent() -> None:
    exchange: Any = FakeExchange()
    with pytest.raises(holdfast.DeadlineExceeded, match="nothing was sent") as ended:
        async with holdfast.timeout(0.5):
            await publish(exchange, aio_pika.Message(b"1"), "jobs")
    assert not isinstance(ended.value, OutcomeUnknown | ConfirmMissing)
    assert not exchange.sent


async def test_what_waited_for_a_connection_says_what_is_left_then() -> None:
    exchange: Any = FakeExchange()
    async with holdfast.timeout(10):
        asyncio.get_running_loop().call_later(4, exchange.channel.opened.set)
        await publish(exchange, aio_pika.Message(b"1"), "jobs")
        assert 5900 <= int(exchange.sent[0].properties.expiration) <= 6000
    exchange.channel.opened.clear()
    async with holdfast.timeout(10):
        asyncio.get_running_loop().call_later(4, exchange.channel.opened.set)
        with pytest.raises(holdfast.InsufficientBudget, match="8 s needed"):
            await publish(exchange, aio_pika.Message(b"1"), "jobs", refuse_below=8)
    assert len(exchange.sent) == 1


# -- what a handler raises -------------------------------------------------------------------------


async def cancelled_by_itself(message: Any) -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def odd(message: Any) -> None:
    raise OddError("of the handler")


async def generator_exit(message: Any) -> None:
    raise GeneratorExit


@pytest.mark.parametrize("raises", [cancelled_by_itself, odd, generator_exit])
@pytest.mark.real_time
async def test_what_is_no_exception_is_a_failure_too(
    rabbitmq: Any, raises: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(message: Any) -> None:
        if message.body == b"bad":
            await raises(message)

    async with opened(rabbitmq) as place:
        with caplog.at_level(logging.ERROR, "holdfast.aiopika"):
            async with consuming(place, handle, prefetch=1, attempts=2) as consumer:
                await place.send(b"bad")
                assert (await place.dead_letter()).body == b"bad"
                await place.send(b"good")  # it goes on
                await until(lambda: consumer.counts["done"])
        assert consumer.counts["failed"] == 2
        assert consumer.counts["cut"] == 0
    assert "failed, attempt 2 of 2" in caplog.records[-1].message


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_process_puts_the_message_back(kind: Any) -> None:
    message = FakeMessage()

    async def handle(_: Any) -> None:
        raise kind

    async def main() -> None:
        queue = FakeQueue()
        consumer = Consumer(queue, handle)  # type: ignore[arg-type]
        running = asyncio.create_task(consumer.run())
        while queue.callback is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await queue.callback(message)
        await running

    with pytest.raises(kind):
        asyncio.run(main())
    assert message.told == ["requeue"]


async def test_a_stop_while_a_handler_waits_for_what_was_cancelled_is_no_failure() -> None:
    """The handler's own `CancelledError` and a native cancellation: then it was cut."""
    queue, message = FakeQueue(), FakeMessage()
    begun = asyncio.Event()

    async def handle(_: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    consumer = Consumer(queue, handle)  # type: ignore[arg-type]
    running = asyncio.create_task(consumer.run())
    await until(lambda: queue.callback)
    await queue.callback(message)
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert message.told == ["requeue"]
    assert consumer.counts == {"cut": 1}


# -- a channel that confirms nothing ---------------------------------------------------------------


@pytest.mark.real_time
async def test_without_confirms_there_is_one_attempt(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None:
        raise ValueError("cannot be done")

    async with opened(rabbitmq) as place:
        channel = await place.connection.channel(publisher_confirms=False)
        place.queue = await channel.get_queue(place.queue.name)
        with pytest.raises(holdfast.UsageError, match="publisher_confirms=True"):
            await Consumer(place.queue, handle).run()
        async with consuming(place, handle, attempts=1) as consumer:
            await place.send(b"poison")
            assert (await place.dead_letter()).body == b"poison"
        assert consumer.counts == {"failed": 1, "rejected": 1}


# -- counts that travel ----------------------------------------------------------------------------


@pytest.mark.real_time
async def test_a_dead_letter_that_is_put_back_is_tried_as_often_again(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None:
        raise ValueError("cannot be done")

    async with opened(rabbitmq) as place:
        await place.send(b"poison")
        async with consuming(place, handle, attempts=3) as consumer:
            for again in (1, 2):
                dead = await place.dead_letter()
                assert consumer.counts["failed"] == 3 * again
                if again == 1:
                    await asyncio.sleep(1.1)  # the broker tells deaths by the second
                    back = aio_pika.Message(dead.body, headers=dict(dead.headers))
                    await place.exchange.publish(back, place.queue.name)


@pytest.mark.real_time
async def test_a_count_of_another_queue_is_not_this_ones(rabbitmq: Any) -> None:
    """A consumer of the dead letters has its own attempts."""

    async def handle(message: Any) -> None:
        raise ValueError("cannot be done")

    async with opened(rabbitmq) as place, opened(rabbitmq) as other:
        await place.send(b"poison")
        async with consuming(place, handle, attempts=3):
            dead = await place.dead_letter()
        async with consuming(other, handle, attempts=3) as consumer:
            moved = aio_pika.Message(dead.body, headers=dict(dead.headers))
            await other.exchange.publish(moved, other.queue.name)
            await other.dead_letter()
        assert consumer.counts["failed"] == 3


@pytest.mark.real_time
async def test_a_count_of_deliveries_that_a_publisher_wrote_counts_for_nothing(
    rabbitmq: Any,
) -> None:
    seen: list[bytes] = []

    async def handle(message: Any) -> None:
        seen.append(message.body)

    async with opened(rabbitmq) as place, consuming(place, handle) as consumer:
        forged = aio_pika.Message(b"x", headers={"x-delivery-count": 999})
        await place.exchange.publish(forged, place.queue.name)
        await until(lambda: seen)
    assert consumer.counts["poison"] == 0


def died(queue: str, count: int = 1, second: int = 0) -> dict[str, Any]:
    time = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    return {"x-death": [{"queue": queue, "count": count, "time": time, "reason": "rejected"}]}


def test_attempts_are_of_one_queue_and_one_life() -> None:
    once = attempted({"mine": 1, "CC": ["x"], "x-delivery-count": 4}, "jobs", 1)
    assert once["mine"] == 1
    assert not {"CC", "x-delivery-count"} & set(once)
    assert attempts_of(once, "jobs") == 1
    assert attempts_of(once, "dead") == 0
    assert attempts_of({**once, **died("jobs")}, "jobs") == 0  # put back after it died
    assert attempts_of({**once, **died("others")}, "jobs") == 1
    again = attempted({**once, **died("jobs")}, "jobs", 2)
    assert attempts_of(again, "jobs") == 2
    assert attempts_of({**again, **died("jobs", 2)}, "jobs") == 0
    assert attempts_of({**again, **died("jobs", 1, second=5)}, "jobs") == 0
    del again["x-death"]  # a broker that takes it from nobody: the count must not begin anew
    assert attempts_of(again, "jobs") == 2
    oddities: list[Any] = [{"x-death": 5}, {"x-death": [5, {}]}, {"holdfast-attempts-of": 7}]
    for strange in oddities:
        assert attempts_of({"holdfast-attempts": 2, **strange}, "jobs") == 0


def test_deliveries_are_counted_where_the_queue_does() -> None:
    counted = {"x-delivery-count": 4}
    assert deliveries_of(counted, None, True) == 4
    assert deliveries_of(counted, {"x-queue-type": "quorum"}, True) == 4
    assert deliveries_of(counted, {"x-queue-type": "classic"}, True) == 0
    assert deliveries_of(counted, {}, False) == 0


def test_a_name_from_outside_forges_no_line_of_the_log() -> None:
    async def handle(_: Any) -> None: ...

    message = FakeMessage()
    message.message_id = "1\nERROR all is lost"
    consumer = Consumer(NamedQueue(), handle)  # type: ignore[arg-type]
    assert "\n" not in consumer._named(message)  # type: ignore[arg-type]


class NamedQueue:
    name = "jobs"
