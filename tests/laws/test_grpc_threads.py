"""grpc's server of threads under the carrier laws: a client on a loop, plain functions behind.

Nothing in a thread can be cancelled. So the laws of reach hold for deadlines, with which every wait
ends, and not for a cancellation that comes before them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

import holdfast
from holdfast.adapters.grpc_client import open_channel
from holdfast.adapters.grpc_server import GrpcThreadCarrier
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, Handler
from tests.laws.test_grpc import CAP, HOUR, LEAST, TOLD, GrpcLaws, trusting

THREADS = 100

Visit = Callable[[bytes], bytes]


def visiting(handler: Handler, loop: asyncio.AbstractEventLoop) -> Visit:
    """The handler runs on the loop of the test, and the thread waits for it."""

    async def bounded(key: str, takes: float) -> str:
        async with holdfast.scope("view"):
            return await handler(key, takes)

    def visit(request: bytes) -> bytes:
        key, takes = request.decode().rsplit(" ", 1)
        # The context of this thread goes with it.
        return asyncio.run_coroutine_threadsafe(bounded(key, float(takes)), loop).result().encode()

    return visit


@asynccontextmanager
async def serving(kind: str, handler: Any) -> AsyncGenerator[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        server = grpc.server(pool, interceptors=[GrpcThreadCarrier(trusting())])
        made = getattr(grpc, f"{kind}_rpc_method_handler")(handler)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("laws.Peer", {"Visit": made}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}", refuse_below=LEAST) as channel:
                yield channel
                await asyncio.sleep(TOLD)
        finally:
            await asyncio.to_thread(server.stop(None).wait)


class OneToOne:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        visit = visiting(handler, asyncio.get_running_loop())

        def visited(request: bytes, context: Any) -> bytes:
            return visit(request)

        async with serving("unary_unary", visited) as channel:
            method = channel.unary_unary("/laws.Peer/Visit")

            async def call(key: str, takes: float) -> str:
                answer: bytes = await method(f"{key} {takes}".encode())
                return answer.decode()

            yield call


class ManyToMany:
    """The answer comes in two parts, of which the first says nothing."""

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        visit = visiting(handler, asyncio.get_running_loop())

        def visited(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            yield b""
            yield visit(b" ".join(requests))

        async with serving("stream_stream", visited) as channel:
            method = channel.stream_stream("/laws.Peer/Visit")

            async def call(key: str, takes: float) -> str:
                parts = [part async for part in method([key.encode(), str(takes).encode()])]
                return b"".join(parts).decode()

            yield call


@pytest.mark.real_time
class TestGrpcThreads(GrpcLaws):
    carrier = OneToOne
    cap = CAP

    # A thread is not cancelled; what it waits for ends with its deadline, and here is none.
    test_an_explicit_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_from_above_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_reaches_over_many_hops = None  # type: ignore[assignment]

    async def test_the_carrier_is_usable_after_many_cancellations(self) -> None:
        """As everywhere, but for the far side: it goes on until its work or its limit is over."""
        async with self.crossing() as (peer, call):
            loop = asyncio.get_running_loop()
            async with tasks() as group:
                for n in range(60):
                    task = group.start(call(f"x{n}", self.unit / 2))
                    loop.call_later(n * 0.618 % 1 * self.unit / 2, task.cancel)
                    if n % 10 == 9:
                        await asyncio.sleep(self.unit / 4)
            for n in range(20):
                async with holdfast.timeout(self.unit):
                    assert await call(f"k{n}", 0.0) == f"k{n}"
            end = loop.time() + CAP + 1
            while peer.open_visits():
                assert loop.time() < end
                await asyncio.sleep(self.slack / 5)


@pytest.mark.real_time
class TestGrpcThreadsStreams(TestGrpcThreads):
    carrier = ManyToMany
    cap = HOUR
