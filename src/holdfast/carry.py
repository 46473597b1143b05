"""The ambient context over queues, threads and processes.

    from holdfast import carry

    await producer.send("jobs", body, headers=list(carry.inject().items()))
    async with carry.extract(message.headers, name="resize") as scope: ...

    threads = carry.executor(ThreadPoolExecutor(8))
    processes.submit(carry.bind(work), argument)

A part of the face: it is for users, it only names what is in `holdfast.runtime`, and nothing inside
imports it.
"""

from __future__ import annotations

from holdfast.runtime.carry import Received, extract, inject
from holdfast.runtime.carry_bind import Bound, CarryingExecutor, bind, executor

__all__ = ["Bound", "CarryingExecutor", "Received", "bind", "executor", "extract", "inject"]
