"""What the adapter of aio-pika adds to a message: published and confirmed, handled and settled.

The server is a RabbitMQ on loopback; a publish waits for its confirm, as it does by default.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds
from tests.peers.rabbitmq import rabbitmq_running

__all__ = ["VARIANTS", "measure"]

LIMIT: Final = 60.0
GOAL: Final = 1.10
PREFETCH: Final = 50
BATCH: Final = 400
"""Messages for each time that a consumer begins and stops."""
PLAIN: Final = "aio-pika"
OURS: Final = "with holdfast, under a deadline"
VARIANTS: Final[list[dict[str, Any]]] = [] if absent("aio_pika") else [{"broker": "RabbitMQ"}]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    table = Table("One message over loopback, RabbitMQ", "us", ["publish", "handle and ack"])
    with (
        rabbitmq_running() as server,
        asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner,
    ):
        for point, part in (("publish", _publishing), ("handle and ack", _handling)):
            cells = runner.run(part(server.url(), rounds(quick, 40), tell))
            each = BATCH if part is _handling else 1
            compare(table, point, {case: cell.per(each) for case, cell in cells.items()})
    table.goal(OURS, "publish", GOAL)
    table.notes.append("a message that is handled is a task, and the broker is told in a shield")
    return [table]


async def _publishing(url: str, count: int, tell: Tell) -> Any:
    import aio_pika

    from holdfast.adapters.aiopika import publish

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": 1000})
        exchange, body = channel.default_exchange, b"x" * 200

        async def plain(times: int) -> None:
            for _ in range(times):
                await exchange.publish(aio_pika.Message(body), queue.name)

        async def ours(times: int) -> None:
            async with holdfast.timeout(LIMIT):
                for _ in range(times):
                    await publish(exchange, aio_pika.Message(body), queue.name)

        return await duel([Case(PLAIN, plain), Case(OURS, ours)], count, tell, "publish")


async def _handling(url: str, count: int, tell: Tell) -> Any:
    import aio_pika

    from holdfast.adapters.aiopika import Consumer

    async with await aio_pika.connect(url) as connection:
        sending = (await connection.channel(publisher_confirms=False)).default_exchange
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await channel.set_qos(prefetch_count=PREFETCH)
        left = 0
        done = asyncio.Event()

        async def handle(message: Any) -> None:
            nonlocal left
            await asyncio.sleep(0)
            left -= 1
            if not left:
                done.set()

        async def plainly(message: Any) -> None:
            async with message.process():
                await handle(message)

        async def fill(times: int) -> None:
            nonlocal left
            left = times * BATCH
            done.clear()
            from holdfast import carry

            async with holdfast.timeout(LIMIT):
                headers: Any = carry.inject()
            for _ in range(left):
                await sending.publish(aio_pika.Message(b"x" * 200, headers=headers), queue.name)

        async def plain(times: int) -> None:
            await fill(times)
            tag = await queue.consume(plainly)
            await done.wait()
            await queue.cancel(tag)

        async def ours(times: int) -> None:
            await fill(times)
            consumer = Consumer(queue, handle, prefetch=PREFETCH)
            async with holdfast.tasks() as group:
                group.start(consumer.run())
                await done.wait()
                await consumer.stop()

        return await duel([Case(PLAIN, plain), Case(OURS, ours)], count, tell, "handle")
