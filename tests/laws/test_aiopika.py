"""RabbitMQ under the carrier laws, as far as a queue can be: a request, and a reply by a queue.

A broker tells nobody that a caller has gone. So the laws of reach hold for deadlines, and not for a
cancellation that comes before them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aio_pika
import pytest

from holdfast.adapters.aiopika import Consumer, publish
from holdfast.runtime.ambient import timeout
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, Handler
from tests.laws.kinds import NotCancelled

LEAST = 0.02


class Rabbit:
    url: ClassVar[str]

    def __init__(self) -> None:
        self.replies: dict[str, asyncio.Future[str]] = {}

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        async with await aio_pika.connect(self.url) as connection:
            jobs = await (await connection.channel()).declare_queue(exclusive=True)
            answers = await (await connection.channel()).declare_queue(exclusive=True)
            sending = (await connection.channel()).default_exchange

            async def handle(message: Any) -> None:
                key, takes = message.body.decode().split(" ")
                answer = await handler(key, float(takes))
                body = aio_pika.Message(answer.encode(), correlation_id=message.correlation_id)
                await publish(sending, body, message.reply_to)

            async def answered(message: Any) -> None:
                reply = self.replies.pop(message.correlation_id, None)
                if reply is not None and not reply.done():
                    reply.set_result(message.body.decode())

            async def call(key: str, takes: float) -> str:
                number = str(id(reply := asyncio.get_running_loop().create_future()))
                self.replies[number] = reply
                message = aio_pika.Message(
                    f"{key} {takes}".encode(), reply_to=answers.name, correlation_id=number
                )
                try:
                    await publish(sending, message, jobs.name, refuse_below=LEAST)
                    return await reply
                finally:
                    self.replies.pop(number, None)

            await answers.consume(answered, no_ack=True)
            consumer = Consumer(jobs, handle, prefetch=200, trust_stage=True)
            async with tasks() as group:
                running = group.start(consumer.run())
                yield call
                running.cancel()


@pytest.fixture(autouse=True, scope="module")
def _server(rabbitmq: Any) -> None:
    Rabbit.url = rabbitmq.url()


@pytest.mark.real_time
class TestRabbitMQ(NotCancelled):
    carrier = Rabbit
    unit = 0.8
    slack = 0.25
    least = LEAST

    async def test_the_carrier_is_usable_after_many_cancellations(self) -> None:
        """What was sent when its caller was cancelled ends by its deadline, so each has one."""

        async def bounded(call: Call, key: str) -> str:
            async with timeout(self.unit):
                return await call(key, 100.0)

        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(60):
                    task = group.start(bounded(call, f"x{n}"))
                    later = n * 0.618 % 1.0 * self.unit / 2
                    asyncio.get_running_loop().call_later(later, task.cancel)
                    if n % 10 == 9:
                        await asyncio.sleep(self.unit / 8)
            for n in range(20):
                async with timeout(4 * self.unit):
                    assert await call(f"k{n}", 0.0) == f"k{n}"
            await asyncio.sleep(self.unit + self.slack)
            assert not peer.open_visits()
