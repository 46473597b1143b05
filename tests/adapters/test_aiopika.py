"""RabbitMQ: what is published, what is begun, what comes back, and that nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar

import aio_pika
import pytest

import holdfast
from holdfast import carry
from holdfast.adapters.aiopika import ConfirmMissing, Consumer, publish
from holdfast.domain.context import Carried, Identity
from holdfast.domain.errors import OutcomeUnknown
from holdfast.domain.faults import is_retryable
from holdfast.lifecycle import Host, HostTerms
from holdfast.runtime.ambient import carried, use
from holdfast.testing.proxy import FaultProxy

pytestmark = pytest.mark.real_time
WHO = Carried(Identity("a" * 32, "b" * 16), "canary", {"tenant": "blue"})
PATIENCE = 10.0
NUMBERS = itertools.count()


async def until(true: Callable[[], object], patience: float = PATIENCE) -> None:
    async with holdfast.timeout(patience, name="patience"):
        while not true():  # noqa: ASYNC110 - of another task, or the broker
            await asyncio.sleep(0.005)


class Place:
    """A connection with a queue, its dead letters, and a channel to publish by."""

    connection: Any
    queue: Any
    dead: Any
    exchange: Any

    async def open(self, url: str, **arguments: Any) -> None:
        number = next(NUMBERS)
        self.connection = await aio_pika.connect(url)
        channel = await self.connection.channel()
        self.dead = await channel.declare_queue(f"dead-{number}-{id(self)}", auto_delete=False)
        self.queue = await (await self.connection.channel()).declare_queue(
            f"jobs-{number}-{id(self)}",
            durable=bool(arguments),
            arguments={
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.dead.name,
                **arguments,
            },
        )
        self.exchange = channel.default_exchange

    async def send(self, body: bytes = b"", **options: Any) -> Any:
        return await publish(self.exchange, aio_pika.Message(body), self.queue.name, **options)

    async def dead_letter(self) -> Any:
        async with holdfast.timeout(PATIENCE):
            while True:
                if message := await self.dead.get(fail=False, no_ack=True):
                    return message
                await asyncio.sleep(0.01)

    async def left(self) -> int:
        """Messages in the queue."""
        channel = await self.connection.channel()
        again = await channel.declare_queue(self.queue.name, passive=True)
        await channel.close()
        return again.declaration_result.message_count

    async def close(self) -> None:
        channel = await self.connection.channel()
        for queue in (self.queue, self.dead):
            await channel.queue_delete(queue.name)
        await self.connection.close()


@asynccontextmanager
async def opened(server: Any, **arguments: Any) -> AsyncIterator[Place]:
    place = Place()
    await place.open(server.url(), **arguments)
    try:
        yield place
    finally:
        await place.close()


@asynccontextmanager
async def consuming(
    place: Place, handler: Callable[[Any], Awaitable[object]], **options: Any
) -> AsyncIterator[Consumer]:
    consumer = Consumer(place.queue, handler, **options)
    async with holdfast.tasks() as group:
        group.start(consumer.run())
        yield consumer
        await consumer.stop()


# -- publishing ------------------------------------------------------------------------------------


async def test_a_message_carries_the_context_and_what_is_left(rabbitmq: Any) -> None:
    async with opened(rabbitmq) as place:
        message = aio_pika.Message(b"x", headers={"mine": 7}, content_type="text/plain")
        async with use(WHO), holdfast.timeout(20):
            await publish(place.exchange, message, place.queue.name)
        got = await place.queue.get(no_ack=True)
        assert got.headers["mine"] == 7
        assert got.content_type == "text/plain"
        assert 15 < got.expiration <= 20
        async with carry.extract(got.headers, trust_stage=True):
            assert 15 < holdfast.remaining() <= 20
            assert carried().identity.trace_id == WHO.identity.trace_id
            assert carried()[1:] == WHO[1:]
        assert message.headers == {"mine": 7}  # what was given is as it was
        assert message.expiration is None


@pytest.mark.parametrize(("own", "kept"), [(2, 2), (timedelta(seconds=2), 2), (50, 20), (None, 20)])
async def test_the_sooner_expiration_counts(rabbitmq: Any, own: Any, kept: float) -> None:
    async with opened(rabbitmq) as place:
        async with holdfast.timeout(20):
            message = aio_pika.Message(b"", expiration=own)
            await publish(place.exchange, message, place.queue.name)
        got = await place.queue.get(no_ack=True)
        assert kept - 1.5 < got.expiration <= kept


async def test_without_a_deadline_and_detached_nothing_expires(rabbitmq: Any) -> None:
    async with opened(rabbitmq) as place:
        await place.send()
        async with use(WHO), holdfast.timeout(20):
            await place.send(detached=True)
            await place.send(expire=False)
        for bounded in (False, False, True):
            got = await place.queue.get(no_ack=True)
            assert got.expiration is None
            async with carry.extract(got.headers) as scope:
                assert (scope.remaining() <= 20) is bounded


async def test_the_broker_drops_what_nobody_waits_for(rabbitmq: Any) -> None:
    async with opened(rabbitmq) as place:
        async with holdfast.timeout(1.5):
            await place.send(b"late")
        dead = await place.dead_letter()
        assert dead.body == b"late"
        assert await place.left() == 0


async def test_too_little_is_not_sent(rabbitmq: Any) -> None:
    async with opened(rabbitmq) as place:
        async with holdfast.timeout(5):
            with pytest.raises(holdfast.InsufficientBudget, match="9 s needed"):
                await place.send(refuse_below=9)
        assert await place.left() == 0


async def test_a_confirm_that_does_not_come_is_an_unknown_outcome(rabbitmq: Any) -> None:
    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with (
            opened(rabbitmq) as place,
            await aio_pika.connect(rabbitmq.url(port=proxy.port)) as connection,
        ):
            exchange = (await connection.channel()).default_exchange
            await publish(exchange, aio_pika.Message(b"1"), place.queue.name)
            proxy.to_client.stall()
            with pytest.raises(OutcomeUnknown) as caught:
                async with holdfast.timeout(0.3, name="order"):
                    await publish(exchange, aio_pika.Message(b"2"), place.queue.name)
            assert isinstance(caught.value, ConfirmMissing)
            assert isinstance(caught.value, TimeoutError)
            assert f"order/PUBLISH {place.queue.name}" in str(caught.value)
            assert not is_retryable(caught.value)
            with pytest.raises(asyncio.CancelledError) as native:  # noqa: PT012
                task = asyncio.create_task(
                    publish(exchange, aio_pika.Message(b"3"), place.queue.name)
                )
                await asyncio.sleep(0.1)
                task.cancel()
                await task
            assert "may have it" in native.value.__notes__[0]
            proxy.to_client.resume()
            await publish(exchange, aio_pika.Message(b"4"), place.queue.name)  # usable


@pytest.mark.parametrize("raises", [True, False])
async def test_a_message_that_no_queue_gets_is_an_error(rabbitmq: Any, raises: bool) -> None:
    async with await aio_pika.connect(rabbitmq.url()) as connection:
        exchange = (await connection.channel(on_return_raises=raises)).default_exchange
        with pytest.raises(aio_pika.exceptions.PublishError):
            await publish(exchange, aio_pika.Message(b""), "nowhere")
        await publish(exchange, aio_pika.Message(b""), "nowhere", mandatory=False)


# -- handling --------------------------------------------------------------------------------------


async def test_a_handler_has_the_context_and_its_message_is_acknowledged(rabbitmq: Any) -> None:
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append((message.body, carried().identity.trace_id, carried().stage))
        seen.append((holdfast.remaining(), holdfast.current().scope))

    async with opened(rabbitmq) as place:
        async with consuming(place, handle, name="jobs") as consumer:
            async with use(WHO), holdfast.timeout(20):
                await place.send(b"x")
            await until(lambda: consumer.counts["done"])
        assert seen[0] == (b"x", "a" * 32, "")
        assert 15 < seen[1][0] <= 20
        assert seen[1][1].endswith("consume jobs/message/jobs")
        assert await place.left() == 0


async def send_expired(place: Place) -> None:
    async with holdfast.timeout(0.05):
        headers: Any = carry.inject()
    await asyncio.sleep(0.1)
    await place.exchange.publish(aio_pika.Message(b"late", headers=headers), place.queue.name)


async def test_what_expired_is_not_begun_and_is_a_dead_letter(rabbitmq: Any) -> None:
    begun: list[bytes] = []

    async def handle(message: Any) -> None:
        begun.append(message.body)

    async with opened(rabbitmq) as place:
        await send_expired(place)
        async with consuming(place, handle) as consumer:
            assert (await place.dead_letter()).body == b"late"
            assert consumer.counts["expired"] == 1
        await send_expired(place)
        async with consuming(place, handle, expired="ack") as consumer:
            await until(lambda: consumer.counts["expired"])
        assert not begun
        await until_count(place, 0)
        assert await place.dead.get(fail=False) is None


async def test_a_handler_is_cancelled_at_the_deadline_and_not_tried_again(rabbitmq: Any) -> None:
    ended: list[float] = []

    async def handle(message: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(holdfast.remaining())

    async with opened(rabbitmq) as place, consuming(place, handle) as consumer:
        async with holdfast.timeout(1.5):
            await place.send(b"slow")
        assert (await place.dead_letter()).body == b"slow"
        assert ended == [0]
        assert consumer.counts["late"] == 1


async def test_what_fails_is_tried_again_a_bounded_number_of_times(
    rabbitmq: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[bytes, object]] = []

    async def handle(message: Any) -> None:
        seen.append((message.body, message.headers.get("holdfast-attempts")))
        if message.body == b"poison":
            raise ValueError("cannot be done")

    async with opened(rabbitmq) as place:
        with caplog.at_level(logging.ERROR, "holdfast.aiopika"):
            async with consuming(place, handle, prefetch=1) as consumer:
                async with use(WHO):
                    await place.send(b"poison")
                await place.send(b"good")
                dead = await place.dead_letter()
                await until(lambda: consumer.counts["done"])
        assert dead.body == b"poison"
        assert dead.headers["x-request-id"] == "a" * 32  # still who it was
        assert [tries for body, tries in seen if body == b"poison"] == [None, 1, 2]
        assert seen[1][0] == b"good"  # it went to the end of the queue
        assert consumer.counts["failed"] == 3
        assert consumer.counts["rejected"] == 1
    assert "attempt 3 of 3" in caplog.records[-1].message
    assert caplog.records[-1].exc_info


async def test_an_attempt_later_the_deadline_is_the_same(rabbitmq: Any) -> None:
    lefts: list[tuple[float, Any]] = []

    async def handle(message: Any) -> None:
        lefts.append((holdfast.remaining(), message.expiration))
        await asyncio.sleep(0.3)
        raise ValueError("again")

    async with opened(rabbitmq) as place, consuming(place, handle, attempts=2):
        async with holdfast.timeout(20):
            await place.send()
        await place.dead_letter()
        (first, expiration), (second, later) = lefts
        assert second <= first - 0.3
        assert later <= expiration - 0.25


async def test_a_cap_that_passes_is_a_failure_of_the_handler(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None:
        await asyncio.sleep(60)

    async with opened(rabbitmq) as place, consuming(place, handle, cap=0.4) as consumer:
        await place.send(b"slow", expire=False)
        await place.dead_letter()
        assert consumer.counts["failed"] == 3
        assert consumer.counts["late"] == 0


async def test_a_message_that_kills_its_consumers_is_refused_unseen(rabbitmq: Any) -> None:
    async with opened(rabbitmq, **{"x-queue-type": "quorum"}) as place:
        await place.send(b"killer")
        for _ in range(3):
            connection = await aio_pika.connect(rabbitmq.url())
            queue = await (await connection.channel()).declare_queue(place.queue.name, passive=True)
            async with holdfast.timeout(PATIENCE):
                while await queue.get(fail=False) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await connection.close()  # as a process does that dies

        async def handle(message: Any) -> None:
            raise AssertionError("it was begun")

        async with consuming(place, handle, deliveries=3) as consumer:
            assert (await place.dead_letter()).body == b"killer"
            assert consumer.counts["poison"] == 1


async def test_a_handler_may_settle_by_itself(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None:
        await message.reject(requeue=False)

    async with opened(rabbitmq) as place, consuming(place, handle) as consumer:
        await place.send(b"mine")
        assert (await place.dead_letter()).body == b"mine"
        await until(lambda: consumer.counts["done"])
        assert consumer.counts["unsettled"] == 0


async def test_strange_headers_do_no_harm(rabbitmq: Any) -> None:
    seen: list[float] = []

    async def handle(message: Any) -> None:
        seen.append(holdfast.remaining())

    async with opened(rabbitmq) as place, consuming(place, handle):
        headers: Any = {
            "traceparent": 5, "holdfast-until": "\xff\x00", "holdfast-put-at": {"a": [1]},
            "holdfast-attempts": "many", "x-delivery-count": -3, "baggage": None, "B3": True,
        }  # fmt: skip
        await place.exchange.publish(aio_pika.Message(b"", headers=headers), place.queue.name)
        await until(lambda: seen)
    assert seen == [float("inf")]


# -- stopping --------------------------------------------------------------------------------------


async def test_a_stop_finishes_what_is_in_hand_and_takes_nothing_new(rabbitmq: Any) -> None:
    begun: list[bytes] = []
    done: list[bytes] = []

    async def handle(message: Any) -> None:
        begun.append(message.body)
        await asyncio.sleep(0.4)
        done.append(message.body)

    async with opened(rabbitmq) as place:
        for n in range(6):
            await place.send(b"%d" % n)
        async with consuming(place, handle, prefetch=2):
            await until(lambda: len(begun) == 2)
        assert sorted(done) == sorted(begun)
        await until_count(place, 6 - len(done))


async def until_count(place: Place, expected: int) -> None:
    async with asyncio.timeout(PATIENCE):  # not ours: it is asked when a host has ended, too
        while await place.left() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["scope", "native", "deadline"])
async def test_what_is_cut_goes_back_into_the_queue(rabbitmq: Any, how: str) -> None:
    begun: list[bytes] = []

    async def handle(message: Any) -> None:
        begun.append(message.body)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)

    async with opened(rabbitmq) as place:
        for n in range(5):
            await place.send(b"%d" % n)
        consumer = Consumer(place.queue, handle, prefetch=3)

        async def run() -> None:
            seconds = 0.5 if how == "deadline" else 60
            with suppress(holdfast.ScopeEnded):
                async with holdfast.timeout(seconds) as scope:
                    scopes.append(scope)
                    await consumer.run()

        scopes: list[holdfast.Scope] = []
        async with holdfast.tasks() as group:
            task = group.start(run())
            await until(lambda: len(begun) == 3)
            if how == "scope":
                scopes[0].cancel("enough")
            elif how == "native":
                task.cancel()
        assert consumer.counts["cut"] >= 3
        assert consumer.counts["unsettled"] == 0
        await until_count(place, 5)  # with the channel still open
        bodies = [(await place.queue.get(no_ack=True)).body for _ in range(5)]
        assert sorted(bodies) == [b"0", b"1", b"2", b"3", b"4"]


class FakeChannel:
    publisher_confirms = True

    def __init__(self) -> None:
        self.close_callbacks: set[Any] = set()
        self.over = asyncio.get_running_loop().create_future()

    def closed(self) -> Any:
        return asyncio.shield(self.over)

    async def set_qos(self, prefetch_count: int) -> None: ...


class FakeQueue:
    name = "jobs"

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.callback: Any = None

    async def consume(self, callback: Any, consumer_tag: str) -> None:
        self.callback = callback

    async def cancel(self, tag: str) -> None: ...


class FakeMessage:
    headers: ClassVar[dict[str, Any]] = {}
    processed = False
    redelivered = False
    message_id = "1"

    def __init__(self) -> None:
        self.told: list[str] = []

    async def ack(self) -> None:
        self.told.append("ack")

    async def reject(self, requeue: bool) -> None:
        self.told.append("requeue" if requeue else "reject")


async def test_what_is_cut_before_its_first_step_goes_back() -> None:
    async def handle(message: Any) -> None:
        raise AssertionError("it was begun")

    queue, message, late = FakeQueue(), FakeMessage(), FakeMessage()
    consumer = Consumer(queue, handle)  # type: ignore[arg-type]
    with pytest.raises(holdfast.Cancelled, match="enough"):  # noqa: PT012
        async with holdfast.tasks() as group:
            group.start(consumer.run())
            await until(lambda: queue.callback)
            await queue.callback(message)
            group.cancel("enough")
            await queue.callback(late)
    assert message.told == late.told == ["requeue"]
    assert consumer.counts == {"cut": 2}


async def test_a_host_drains_a_consumer(rabbitmq: Any) -> None:
    done: list[bytes] = []
    begun: list[bytes] = []

    async def handle(message: Any) -> None:
        begun.append(message.body)
        await asyncio.sleep(0.2 if message.body == b"short" else 60)
        done.append(message.body)

    async with opened(rabbitmq) as place:
        await place.send(b"short")
        await place.send(b"long")
        consumer = Consumer(place.queue, handle)
        host = Host("worker", terms=HostTerms(drain=1.0, cleanup=1.0))
        host.add("jobs", run=consumer.run, stop=consumer.stop)
        running = asyncio.create_task(host.run())
        await until(lambda: len(begun) == 2)
        host.stop("for this test")
        await running
        assert done == [b"short"]
        assert consumer.counts["cut"] == 1
        await until_count(place, 1)


@pytest.mark.parametrize(
    ("messages", "stops"),
    [(300, 12), pytest.param(5000, 300, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
async def test_random_stops_lose_nothing(rabbitmq: Any, messages: int, stops: int) -> None:
    done: list[bytes] = []

    async def handle(message: Any) -> None:
        await asyncio.sleep(int(message.body) % 7 / 1000)
        done.append(message.body)

    async with opened(rabbitmq) as place:
        everything = [b"%d" % n for n in range(messages)]
        for body in everything:
            await place.send(body)
        for n in range(stops):
            consumer = Consumer(place.queue, handle, prefetch=5)
            with suppress(holdfast.ScopeEnded):
                async with holdfast.timeout(0.02 + n * 0.618 % 1.0 / 50):
                    await consumer.run()
            assert consumer.counts["unsettled"] == 0
        async with consuming(place, handle, prefetch=5):
            await until(lambda: len(set(done)) == messages, 20 * PATIENCE)
        await until_count(place, 0)
        # What ended at the moment of its cancellation was not acknowledged, and came again.
        assert set(done) == set(everything)
        assert len(done) <= messages + stops * 5


# -- a channel that is lost ------------------------------------------------------------------------


async def test_a_channel_that_is_lost_cancels_what_was_in_hand(rabbitmq: Any) -> None:
    begun: list[str] = []

    async def handle(message: Any) -> None:
        begun.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as cut:
            begun.append(str(cut))
            raise

    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with opened(rabbitmq) as place:
            connection = await aio_pika.connect(rabbitmq.url(port=proxy.port))
            queue = await (await connection.channel()).get_queue(place.queue.name)
            consumer = Consumer(queue, handle)
            await place.send()
            running = asyncio.create_task(consumer.run())
            await until(lambda: begun)
            proxy.cut()
            with pytest.raises(ConnectionError, match="its channel was closed"):
                await running
            assert "its channel was closed" in begun[1]
            assert consumer.counts["unsettled"] == 1
            with suppress(Exception):
                await connection.close()
            await until_count(place, 1)  # the broker has it again


async def test_a_consumer_goes_on_after_a_reconnect(rabbitmq: Any) -> None:
    done: list[bytes] = []

    async def handle(message: Any) -> None:
        done.append(message.body)

    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with opened(rabbitmq) as place:
            connection = await aio_pika.connect_robust(
                rabbitmq.url(port=proxy.port), reconnect_interval=0.05
            )
            queue = await (await connection.channel()).get_queue(place.queue.name)
            consumer = Consumer(queue, handle)
            async with holdfast.tasks() as group:
                group.start(consumer.run())
                await place.send(b"before")
                await until(lambda: done == [b"before"])
                proxy.cut()
                await place.send(b"after")
                await until(lambda: b"after" in done)
                await consumer.stop()
            await connection.close()


async def test_a_queue_that_is_not_there_is_the_librarys_error(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None: ...

    async with opened(rabbitmq) as place:
        channel = await place.connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.delete()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await Consumer(queue, handle).run()


async def test_a_broker_that_freezes_does_not_hold_a_stop(rabbitmq: Any) -> None:
    begun: list[bytes] = []

    async def handle(message: Any) -> None:
        begun.append(message.body)
        await asyncio.sleep(0.3)

    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with opened(rabbitmq) as place:
            connection = await aio_pika.connect(rabbitmq.url(port=proxy.port))
            queue = await (await connection.channel()).get_queue(place.queue.name)
            consumer = Consumer(queue, handle, grace=0.3)
            async with holdfast.tasks() as group, asyncio.timeout(PATIENCE):
                running = group.start(consumer.run())
                await place.send()
                await until(lambda: begun)
                proxy.to_client.stall()
                await consumer.stop()
                await asyncio.wait([running])
            proxy.to_client.resume()
            await connection.close()


async def test_a_broker_that_does_not_answer_does_not_hold_a_consumer(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None: ...

    with FaultProxy(rabbitmq.host, rabbitmq.port) as proxy:
        async with opened(rabbitmq) as place:
            connection = await aio_pika.connect(rabbitmq.url(port=proxy.port))
            queue = await (await connection.channel()).get_queue(place.queue.name)
            proxy.to_client.stall()
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.3):
                    await Consumer(queue, handle, grace=0.3).run()
            proxy.to_client.resume()
            await connection.close()


# -- making one ------------------------------------------------------------------------------------


async def test_what_makes_no_sense_is_refused(rabbitmq: Any) -> None:
    async def handle(message: Any) -> None: ...

    async with opened(rabbitmq) as place:
        for wrong in ({"prefetch": 0}, {"attempts": 0}, {"grace": 0.0}, {"expired": "keep"}):
            with pytest.raises(ValueError, match=r"must be|is 'reject' or 'ack'"):
                Consumer(place.queue, handle, **wrong)  # type: ignore[arg-type]
        consumer = Consumer(place.queue, handle)
        async with holdfast.tasks() as group:
            group.start(consumer.run())
            await asyncio.sleep(0.1)
            with pytest.raises(holdfast.UsageError, match="runs already"):
                await consumer.run()
            await consumer.stop()
            await consumer.stop()  # once more is no error
        await consumer.stop()  # before it runs: a host may be stopped as soon as it has started
        await consumer.run()
