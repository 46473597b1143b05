"""RabbitMQ by aio-pika: messages carry the context, and consumers obey it.

    from holdfast.adapters.aiopika import Consumer, publish

    await publish(exchange, Message(b"..."), "jobs")      # under the ambient scope
    consumer = Consumer(queue, handle)
    await consumer.run()                                  # until it is stopped

Here belongs what knows aio-pika. The headers are those of `runtime.carry`, for any broker.
"""

from __future__ import annotations

from holdfast.adapters.aiopika.consuming import Consumer
from holdfast.adapters.aiopika.publishing import ConfirmMissing, publish

__all__ = ["ConfirmMissing", "Consumer", "publish"]
