"""grpc without asyncio under the carrier laws, as far as it can be: called in threads.

A call in a thread cannot be cancelled, as in `test_sync`: it ends with its deadline, and a law of
reach that is about a cancellation before that is for clients on a loop.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.adapters.grpc_client import open_sync_channel
from holdfast.adapters.grpc_server import GrpcCarrier
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.testing.laws import Call, Handler
from tests.laws.kinds import NotCancelled
from tests.laws.test_grpc import CAP, HOUR, LEAST, TOLD, trusting

THREADS = 64

Visit = Callable[[str, float], str]


@asynccontextmanager
async def serving(kind: str, visit: Any) -> AsyncGenerator[grpc.Channel]:
    server = grpc.aio.server(interceptors=[GrpcCarrier(trusting())])
    made = getattr(grpc, f"{kind}_rpc_method_handler")(visit)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("laws.Peer", {"Visit": made}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with open_sync_channel(f"127.0.0.1:{port}", refuse_below=LEAST) as channel:
            await asyncio.to_thread(grpc.channel_ready_future(channel).result, 10)
            yield channel
            await asyncio.sleep(TOLD)
    finally:
        await server.stop(None)


@asynccontextmanager
async def threads(visit: Visit) -> AsyncGenerator[Call]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as pool:

        async def call(key: str, takes: float) -> str:
            here = contextvars.copy_context()
            try:
                return await loop.run_in_executor(pool, here.run, visit, key, takes)
            except InsufficientBudget:
                raise
            except DeadlineExceeded:
                # The thread was quicker than the timer of the scope, whose end it is.
                await asyncio.sleep(0.1)
                raise

        yield call


class OneToOne:
    """By the call itself."""

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        async def visited(request: bytes, context: Any) -> bytes:
            key, takes = request.decode().rsplit(" ", 1)
            return (await handler(key, float(takes))).encode()

        async with serving("unary_unary", visited) as channel:
            method: Any = channel.unary_unary("/laws.Peer/Visit")

            def visit(key: str, takes: float) -> str:
                return self.answer(method, f"{key} {takes}".encode()).decode()

            async with threads(visit) as call:
                yield call

    @staticmethod
    def answer(method: Any, request: bytes) -> bytes:
        answer: bytes = method(request)
        return answer


class Later(OneToOne):
    """By a future."""

    @staticmethod
    def answer(method: Any, request: bytes) -> bytes:
        answer: bytes = method.future(request).result()
        return answer


class ManyToMany:
    """The answer comes in two parts, of which the first says nothing."""

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        async def visited(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            key, takes = [part.decode() async for part in requests]
            yield b""
            yield (await handler(key, float(takes))).encode()

        async with serving("stream_stream", visited) as channel:
            method: Any = channel.stream_stream("/laws.Peer/Visit")

            def visit(key: str, takes: float) -> str:
                return b"".join(method(iter([key.encode(), str(takes).encode()]))).decode()

            async with threads(visit) as call:
                yield call


@pytest.mark.real_time
class TestGrpcSync(NotCancelled):
    carrier = OneToOne
    unit = 1.0
    slack = 0.5
    least = LEAST
    cap = CAP

    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]


@pytest.mark.real_time
class TestGrpcFutures(TestGrpcSync):
    carrier = Later


@pytest.mark.real_time
class TestGrpcSyncStreams(TestGrpcSync):
    carrier = ManyToMany
    cap = HOUR
