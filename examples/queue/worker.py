"""Makes thumbnails of what comes out of a queue. Run it: `holdfast run worker:host`."""

from __future__ import annotations

import asyncio

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from place import URL, declare

import holdfast
from holdfast.adapters.aiopika import Consumer, publish
from holdfast.lifecycle import Host


class Thumbnails:
    """A connection, and the consumer on it."""

    async def connect(self) -> None:
        self.connection = await aio_pika.connect_robust(URL)
        channel = await self.connection.channel()
        queue = await declare(channel)
        self.replies = (await self.connection.channel()).default_exchange
        self.consumer = Consumer(queue, self.make, name="thumbnail", prefetch=4, attempts=2)

    async def work(self) -> None:
        await self.consumer.run()

    async def stop(self) -> None:
        await self.consumer.stop()

    async def close(self) -> None:
        print("worker:", dict(self.consumer.counts), flush=True)
        await self.connection.close()

    async def make(self, message: AbstractIncomingMessage) -> None:
        name, _, seconds = message.body.decode().partition(" ")
        if name == "broken.png":
            raise ValueError("not a picture")
        await asyncio.sleep(float(seconds))  # a real one has threads for that: holdfast.carry.bind
        if message.reply_to:
            text = f"{name} ready, {holdfast.remaining():.1f} s left"
            answer = aio_pika.Message(text.encode(), correlation_id=message.correlation_id)
            await publish(self.replies, answer, message.reply_to)


thumbnails = Thumbnails()
host = Host("thumbnails")
host.add("rabbitmq", start=thumbnails.connect, stop=thumbnails.close)
host.add("jobs", run=thumbnails.work, stop=thumbnails.stop, needs=["rabbitmq"])
