"""Where requests for thumbnails lie. Who comes first, producer or worker, makes it."""

from __future__ import annotations

import os

from aio_pika.abc import AbstractChannel, AbstractQueue

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")
QUEUE = os.environ.get("THUMBNAILS_QUEUE", "thumbnails")
DEAD = f"{QUEUE}.dead"


async def declare(channel: AbstractChannel) -> AbstractQueue:
    await channel.declare_queue(DEAD, durable=True)
    to_the_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
    return await channel.declare_queue(QUEUE, durable=True, arguments=to_the_dead)
