"""Threads under the carrier laws: `asyncio.to_thread`, and executors made to carry.

Nothing stops a thread. But a thread that asks is told, also when its caller was cancelled: so the
far side here asks every few milliseconds, and then all laws hold.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

import holdfast
from holdfast import carry
from holdfast.testing.laws import Call, CarrierLaws, Handler

THREADS = 64
ASKS_EVERY = 0.01


async def asking(left: Callable[[], float], work: Coroutine[Any, Any, str]) -> str:
    async with holdfast.tasks("asking") as group:

        async def ask() -> None:
            while left() > 0:  # noqa: ASYNC110 - nobody tells a thread, so it asks
                await asyncio.sleep(ASKS_EVERY)
            group.cancel("nothing remains")

        asker = group.start(ask())
        try:
            return await work
        finally:
            asker.cancel()


def far_side(handler: Handler, key: str, takes: float) -> str:
    context = contextvars.copy_context()
    return asyncio.run(asking(lambda: context.run(holdfast.remaining), handler(key, takes)))


async def patiently(work: Awaitable[str]) -> str:
    try:
        return await work
    except holdfast.ScopeEnded:
        # The thread was quicker than the timer of the scope, whose end it is.
        await asyncio.sleep(0.2)
        raise


class InExecutor:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        with carry.executor(ThreadPoolExecutor(THREADS)) as threads:

            async def call(key: str, takes: float) -> str:
                loop = asyncio.get_running_loop()
                return await patiently(loop.run_in_executor(threads, far_side, handler, key, takes))

            yield call


class ToThread:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))

        async def call(key: str, takes: float) -> str:
            return await patiently(asyncio.to_thread(begin, handler, key, takes))

        yield call


def begin(handler: Handler, key: str, takes: float) -> str:
    # `asyncio.to_thread` itself begins whatever is left, so its function asks.
    with holdfast.scope("thread"):
        return far_side(handler, key, takes)


@pytest.mark.real_time
class TestExecutor(CarrierLaws):
    carrier = InExecutor
    unit = 0.8
    slack = 0.5


@pytest.mark.real_time
class TestToThread(CarrierLaws):
    carrier = ToThread
    unit = 0.8
    slack = 0.5
