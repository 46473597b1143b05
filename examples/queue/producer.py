"""Asks for thumbnails, and waits for each as long as a user would. Run it: `python producer.py`."""

from __future__ import annotations

import asyncio

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from place import QUEUE, URL, declare

import holdfast
from holdfast.adapters.aiopika import publish

# Name, seconds that it takes, seconds that its user waits.
WANTED = [
    ("cat.png", 0.1, 5.0),
    ("dog.png", 0.3, 5.0),
    ("huge.png", 30.0, 1.0),
    ("broken.png", 0.1, 1.5),
]


class Asker:
    """Sends requests and hands out the replies."""

    def __init__(self, exchange: AbstractExchange, reply_to: str) -> None:
        self.exchange = exchange
        self.reply_to = reply_to
        self.waiting: dict[str, asyncio.Future[str]] = {}

    async def replied(self, message: AbstractIncomingMessage) -> None:
        reply = self.waiting.pop(message.correlation_id or "", None)
        if reply is not None and not reply.done():
            reply.set_result(message.body.decode())

    async def ask(self, name: str, seconds: float, patience: float) -> str:
        self.waiting[name] = reply = asyncio.get_running_loop().create_future()
        message = aio_pika.Message(
            f"{name} {seconds}".encode(), correlation_id=name, reply_to=self.reply_to
        )
        try:
            async with holdfast.timeout(patience, name="page"):
                await publish(self.exchange, message, QUEUE)  # tells the worker what is left
                return await reply
        except holdfast.DeadlineExceeded as late:
            return f"{name} not shown: {late}"
        finally:
            self.waiting.pop(name, None)


async def main() -> None:
    async with await aio_pika.connect(URL) as connection:
        channel = await connection.channel()
        await declare(channel)
        replies = await channel.declare_queue(exclusive=True)
        asker = Asker(channel.default_exchange, replies.name)
        await replies.consume(asker.replied, no_ack=True)
        async with holdfast.tasks() as group:
            asked = [group.start(asker.ask(*each)) for each in WANTED]
        for task in asked:
            print("producer:", task.result())


if __name__ == "__main__":
    asyncio.run(main())
