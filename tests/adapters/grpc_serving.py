"""A server of grpc.aio with a carrier and one method of each kind, and what its handlers saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

import holdfast
from holdfast.adapters.grpc_server import GrpcCarrier
from holdfast.domain.cause import Cause
from holdfast.domain.context import Context
from holdfast.domain.policy import Policy
from holdfast.runtime.scope import ambient

ENDED = 5.0
TOLD = 0.05
"""Seconds in which grpc tells the loop of what it has cancelled: to a closed one it would log."""

KINDS = ("One", "Ticks", "Writes", "Sum", "Chat", "Talk")


class Seen:
    """One call, as its handler saw it."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.context: Context = holdfast.current()
        self.left = holdfast.remaining()
        self.scope = ambient()
        self.cause: Cause | None = None
        self.waits = False
        self.end = ""

    async def wait(self, seconds: float) -> None:
        """Wait, and note how that ends."""
        self.waits = True
        try:
            await asyncio.sleep(seconds)
            self.end = "done"
        except asyncio.CancelledError:
            self.end = "cancelled"
            assert self.scope is not None
            self.cause = self.scope.reached()
            raise


class Shop:
    """Each method answers what it has at once, and then takes as long as its request says.

    Attributes:
        seen: calls whose handlers began.
        closed: what ran when a handler ended.
    """

    def __init__(
        self, policy: Policy | None = None, *, timings: bool = True, options: Any = ()
    ) -> None:
        self.seen: list[Seen] = []
        self.closed: list[str] = []
        self.carrier = GrpcCarrier(policy, service="orders", timings=timings)
        self.inner = grpc.aio.server(interceptors=[self.carrier], options=options)
        self.port = 0

    def add(self, **methods: Callable[..., Any]) -> None:
        """Methods of your own, `one_x=` for one request and one answer, `ticks_x=` and so on."""
        makers = {
            "one": grpc.unary_unary_rpc_method_handler,
            "ticks": grpc.unary_stream_rpc_method_handler,
            "sum": grpc.stream_unary_rpc_method_handler,
            "chat": grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            name.partition("_")[2]: makers[name.partition("_")[0]](method)
            for name, method in methods.items()
        }
        self.inner.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("shop.Orders", handlers),)
        )

    async def start(self) -> None:
        self.add(
            one_One=self.one, ticks_Ticks=self.ticks, ticks_Writes=self.writes,
            sum_Sum=self.sum, chat_Chat=self.chat, chat_Talk=self.talk,
        )  # fmt: skip
        self.port = self.inner.add_insecure_port("127.0.0.1:0")
        await self.inner.start()

    def visit(self, method: str) -> Seen:
        seen = Seen(method)
        self.seen.append(seen)
        return seen

    async def one(self, request: bytes, context: Any) -> bytes:
        await self.visit("One").wait(float(request))
        return b"one"

    async def ticks(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        seen = self.visit("Ticks")
        try:
            yield b"first"
            await seen.wait(float(request))
            yield b"last"
        finally:
            await asyncio.sleep(0)
            self.closed.append("Ticks")

    async def writes(self, request: bytes, context: Any) -> None:
        seen = self.visit("Writes")
        await context.write(b"first")
        await seen.wait(float(request))
        await context.write(b"last")

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        seen = self.visit("Sum")
        async for seconds in requests:
            await seen.wait(float(seconds))
        return b"sum"

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        seen = self.visit("Chat")
        async for seconds in requests:
            yield b"first"
            await seen.wait(float(seconds))
            yield b"last"

    async def talk(self, requests: Any, context: Any) -> None:
        seen = self.visit("Talk")
        while (seconds := await context.read()) is not grpc.aio.EOF:
            await context.write(b"first")
            await seen.wait(float(seconds))
            await context.write(b"last")

    async def arrived(self, count: int = 1) -> Seen:
        """The last call, when as many have begun to wait."""
        await until(lambda: sum(seen.waits for seen in self.seen) >= count)
        return self.seen[-1]

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await until(lambda: self.carrier.in_flight == 0)


async def until(true: Callable[[], bool], patience: float = ENDED) -> None:
    """Wait for a condition."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while not true():
        assert loop.time() < end, "that did not come true"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def shop(
    policy: Policy | None = None,
    *,
    timings: bool = True,
    options: Any = (),
    **methods: Callable[..., Any],
) -> AsyncGenerator[tuple[Shop, grpc.aio.Channel]]:
    """A shop that serves, and a plain channel to it."""
    served = Shop(policy, timings=timings, options=options)
    served.add(**methods)
    await served.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            yield served, channel
            await asyncio.sleep(TOLD)
    finally:
        await served.inner.stop(None)


async def call(channel: Any, method: str, seconds: float, timeout: float | None = None) -> Any:
    """Make a call of any kind; its answers, as a list."""
    return await answers(begin(channel, method, seconds, timeout))


def begin(
    channel: Any,
    method: str,
    seconds: float,
    timeout: float | None = None,
    metadata: Any = None,
) -> Any:
    """The call of grpc."""
    path, request = f"/shop.Orders/{method}", str(seconds).encode()
    more: dict[str, Any] = {"timeout": timeout}
    if metadata is not None:
        more["metadata"] = metadata
    if method in ("Ticks", "Writes"):
        return channel.unary_stream(path)(request, **more)
    if method in ("Chat", "Talk"):
        return channel.stream_stream(path)(iter([request]), **more)
    if method == "Sum":
        return channel.stream_unary(path)(iter([request]), **more)
    return channel.unary_unary(path)(request, **more)


async def answers(made: Any) -> list[bytes]:
    """All that comes."""
    if hasattr(made, "__aiter__"):
        return [message async for message in made]
    return [await made]


def metadata_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The trailing metadata of a call that failed."""
    return named(error.trailing_metadata())


def named(metadata: Any) -> dict[str, Any]:
    """Metadata by name; not `dict(...)`, which older versions of grpc do not bear."""
    return {key: value for key, value in metadata or ()}  # noqa: C416


async def refused(channel: Any, method: str, timeout: float | None = None) -> tuple[Any, str, Any]:
    """How a call ends that is not begun: status, text, and trailing metadata.

    Without a request where these are a stream: the client of grpc fails by itself when it is
    answered while it sends one.
    """
    path = f"/shop.Orders/{method}"
    if method in ("Sum", "Chat", "Talk"):
        made = channel.stream_stream(path)(timeout=timeout)
    else:
        made = begin(channel, method, 0.0, timeout)
    code = await made.code()
    return code, await made.details() or "", named(await made.trailing_metadata())
