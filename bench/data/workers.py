"""What a pool of workers adds to an asyncio.Queue with tasks that take from it.

The work is one turn of the loop. The plain pool is what people write: a queue, some tasks that take
from it for ever, and a future for the result. It has no deadline, context or identity of an item,
and its workers are there already, while here each item is a task with a scope of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, compare, duel, new_loop, rounds
from holdfast.runtime.workers import workers

__all__ = ["VARIANTS", "measure"]

WORKERS: Final = 8
LIMIT: Final = 30.0
VARIANTS: Final[list[dict[str, Any]]] = [
    {"loop": "asyncio", "items": items} for items in (1, 100, 10_000, 100_000)
]
PLAIN: Final = "asyncio.Queue and 8 tasks"
PUT: Final = "pool.put, nobody waits"
SUBMIT: Final = "pool.submit, each under a deadline"
BY_DEADLINE: Final = "pool.submit, order by deadline"


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    items = variant["items"]
    table = Table(f"{items} items handed over at once, per item", "us", ["item"])
    many = items > 1000
    with asyncio.Runner(loop_factory=lambda: new_loop(variant["loop"])) as runner:
        cases = [
            Case(PLAIN, _repeated(_plain, items)),
            Case(PUT, _repeated(_put, items)),
            Case(SUBMIT, _repeated(_submitted("fifo"), items)),
            Case(BY_DEADLINE, _repeated(_submitted("deadline"), items)),
        ]
        cells = runner.run(duel(cases, rounds(quick, 8 if many else 40), tell, str(items)))
    compare(table, "item", {case: cell.per(items) for case, cell in cells.items()})
    table.notes.append("the pools stay open; what is measured is from handing over to the end")
    table.notes.append("where nobody waits, one item more is run each time, to see the end")
    return [table]


async def _work() -> None:
    await asyncio.sleep(0)


def _repeated(
    once: Callable[[int, int], Awaitable[object]], items: int
) -> Callable[[int], Awaitable[object]]:
    async def run(times: int) -> None:
        await once(times, items)

    return run


async def _plain(times: int, items: int) -> None:
    queue: asyncio.Queue[tuple[Callable[[], Awaitable[object]], asyncio.Future[object]]] = (
        asyncio.Queue()
    )

    async def worker() -> None:
        while True:
            work, reply = await queue.get()
            try:
                reply.set_result(await work())
            except Exception as error:
                reply.set_exception(error)
            finally:
                queue.task_done()

    tasks = [asyncio.create_task(worker()) for _ in range(WORKERS)]
    loop = asyncio.get_running_loop()
    for _ in range(times):
        replies = [loop.create_future() for _ in range(items)]
        for reply in replies:
            queue.put_nowait((_work, reply))
        for reply in replies:
            await reply
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _put(times: int, items: int) -> None:
    async with workers(WORKERS, most=items) as pool:
        for _ in range(times):
            for _ in range(items):
                await pool.put(_work)
            await pool.run(_work)  # the last in the line


def _submitted(order: Any) -> Callable[[int, int], Awaitable[object]]:
    async def run(times: int, items: int) -> None:
        async with workers(WORKERS, order=order, most=items) as pool:
            for _ in range(times):
                async with holdfast.timeout(LIMIT):
                    for handle in [pool.submit(_work) for _ in range(items)]:
                        await handle

    return run
