"""grpc under the carrier laws: its client before, its servers behind, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.adapters.grpc_client import open_channel
from holdfast.adapters.grpc_server import GrpcCarrier
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.laws import Law
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, CarrierLaws, Handler

LEAST = 0.02
CAP = 10.0  # what the default policy grants a call
HOUR = 3450.0  # what gRPC tells of an hour is off by that; the policy does not bound streams
TOLD = 0.05
"""Seconds in which grpc tells the loop of what it has cancelled: to a closed one it would log."""


def trusting() -> Policy:
    return replace(DEFAULT_POLICY, wire=replace(DEFAULT_POLICY.wire, trust_stage=True))


@asynccontextmanager
async def serving(kind: str, handler: Any) -> AsyncGenerator[Any]:
    server = grpc.aio.server(interceptors=[GrpcCarrier(trusting())])
    made = getattr(grpc, f"{kind}_rpc_method_handler")(handler)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("laws.Peer", {"Visit": made}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", refuse_below=LEAST) as channel:
            yield channel
            await asyncio.sleep(TOLD)
    finally:
        await server.stop(None)


class OneToOne:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        async def visit(request: bytes, context: Any) -> bytes:
            key, takes = request.decode().rsplit(" ", 1)
            return (await handler(key, float(takes))).encode()

        async with serving("unary_unary", visit) as channel:
            method = channel.unary_unary("/laws.Peer/Visit")

            async def call(key: str, takes: float) -> str:
                answer: bytes = await method(f"{key} {takes}".encode())
                return answer.decode()

            yield call


class OneToMany:
    """The answer comes in two parts, of which the first says nothing."""

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        async def visit(request: bytes, context: Any) -> AsyncIterator[bytes]:
            key, takes = request.decode().rsplit(" ", 1)
            yield b""
            yield (await handler(key, float(takes))).encode()

        async with serving("unary_stream", visit) as channel:
            method = channel.unary_stream("/laws.Peer/Visit")

            async def call(key: str, takes: float) -> str:
                parts = [part async for part in method(f"{key} {takes}".encode())]
                return b"".join(parts).decode()

            yield call


class ManyToMany:
    """The handler reads from and writes to its context."""

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncGenerator[Call]:
        async def visit(requests: Any, context: Any) -> None:
            key = (await context.read()).decode()
            takes = float(await context.read())
            await context.write((await handler(key, takes)).encode())

        async with serving("stream_stream", visit) as channel:
            method = channel.stream_stream("/laws.Peer/Visit")

            async def call(key: str, takes: float) -> str:
                parts = [part async for part in method([key.encode(), str(takes).encode()])]
                return b"".join(parts).decode()

            yield call


class GrpcLaws(CarrierLaws):
    unit = 0.8
    slack = 0.25
    least = LEAST

    async def test_nothing_outlives_its_scope(self) -> None:
        """As for all, but the calls may fail first: the server answers before the deadline."""
        async with self.crossing() as (peer, call):
            with suppress(ScopeEnded, ExceptionGroup):
                async with tasks(seconds=self.unit) as group:
                    for n in range(20):
                        group.start(call(f"k{n}", 100 * self.unit))
            await asyncio.sleep(2 * self.slack)
            assert not peer.open_visits(), Law.CLOSURE.value


@pytest.mark.real_time("asyncio", "uvloop")
class TestGrpc(GrpcLaws):
    carrier = OneToOne
    cap = CAP


@pytest.mark.real_time
class TestGrpcServerStream(GrpcLaws):
    carrier = OneToMany
    cap = HOUR


@pytest.mark.real_time
class TestGrpcBothStreams(GrpcLaws):
    carrier = ManyToMany
    cap = HOUR
