"""The client of grpc.aio against real servers: what they are told, and how calls end."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.adapters.grpc_client import open_channel
from holdfast.adapters.grpc_client.errors import GrpcDeadlineExceeded, GrpcPhaseTimeout
from holdfast.adapters.grpc_client.outward import rounded
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.phases import DEFAULT_SHARES, Ended, Phase, Shares, Trail
from holdfast.domain.wire.budget import budget_headers
from holdfast.domain.wire.problem import CAUSE_HEADER, encode_cause_header
from holdfast.domain.wire.richstatus import DETAILS_KEY, encode_status
from holdfast.domain.wire.settings import WireSettings
from holdfast.runtime.ambient import use

pytestmark = pytest.mark.system
both_loops = pytest.mark.real_time("asyncio", "uvloop")
real_loop = pytest.mark.real_time("asyncio")

ORDER = Carried(Identity("5" * 32, "6" * 16), "canary", {"tenant": "acme"})
DELIVERED = 0.05
"""Seconds in which grpc tells the loop of what it has cancelled: to a closed one it would log."""

QUICK_DIAL = Shares(
    weights={Phase.CONNECT: 1.0, Phase.GRPC_HEADER: 19.0}, floors={}, bounded=(Phase.CONNECT,)
)
"""A twentieth of the time."""


class Server:
    """One of each kind of method; requests say how long to take."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ended: list[str] = []
        self.inner = grpc.aio.server()
        handlers = {
            "Told": grpc.unary_unary_rpc_method_handler(self.told),
            "Sleep": grpc.unary_unary_rpc_method_handler(self.sleep),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Ticks": grpc.unary_stream_rpc_method_handler(self.ticks),
            "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        self.inner.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("shop.Orders", handlers),)
        )

    async def told(self, request: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        said = {key: str(value) for key, value in context.invocation_metadata()}
        return json.dumps({"left": left, **said}).encode()

    async def sleep(self, request: bytes, context: Any) -> bytes:
        self.seen.append("sleep")
        context.add_done_callback(lambda _: self.ended.append("over"))
        await asyncio.sleep(float(request))
        return b"slept"

    async def fail(self, request: bytes, context: Any) -> bytes:
        code, _, cause = request.partition(b" ")
        how: Any = (("x", "y"),)
        if cause.startswith(b"\x08"):
            how = ((DETAILS_KEY, cause), (CAUSE_HEADER, "1"))
            if code == b"DEADLINE_EXCEEDED_HERE":  # by a limit of its own
                code, how = b"DEADLINE_EXCEEDED", how[:1]
        elif cause:
            how = ((CAUSE_HEADER, cause.decode()),)
        context.set_trailing_metadata(how)
        await context.abort(grpc.StatusCode[code.decode()], "as asked")
        raise AssertionError

    async def ticks(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        first, count, each = request.decode().split()
        context.add_done_callback(lambda _: self.ended.append("over"))
        await asyncio.sleep(float(first))
        await context.send_initial_metadata((("head", "here"),))
        for number in range(int(count)):
            await asyncio.sleep(float(each))
            yield str(number).encode()

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        await context.send_initial_metadata(())
        total = 0.0
        async for seconds in requests:
            await asyncio.sleep(float(seconds))
            total += float(seconds)
        return str(total).encode()

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for seconds in requests:
            await asyncio.sleep(float(seconds))
            yield b"after " + seconds


SPAN: ContextVar[str] = ContextVar("span", default="")


class Kept:
    """An observer, which looks where it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []
        self.spans: list[str] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))
        self.spans.append(SPAN.get())

    @property
    def trail(self) -> Trail:
        ((trail, _),) = self.calls
        return trail

    def steps(self) -> list[tuple[Phase, Ended]]:
        return [(step.phase, step.ended) for step in self.trail.steps]


class Methods:
    """What a stub would be."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        def name(of: str) -> str:
            return f"/shop.Orders/{of}"

        self.told: Any = channel.unary_unary(name("Told"))
        self.sleep: Any = channel.unary_unary(name("Sleep"))
        self.fail: Any = channel.unary_unary(name("Fail"))
        self.ticks: Any = channel.unary_stream(name("Ticks"))
        self.sum: Any = channel.stream_unary(name("Sum"))
        self.chat: Any = channel.stream_stream(name("Chat"))


@asynccontextmanager
async def shop(**options: Any) -> AsyncIterator[tuple[Server, Methods, grpc.aio.Channel]]:
    server = Server()
    port = server.inner.add_insecure_port("127.0.0.1:0")
    await server.inner.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", service="orders", **options) as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)
            yield server, Methods(channel), channel
    finally:
        await server.inner.stop(0)
        await asyncio.sleep(DELIVERED)


@asynccontextmanager
async def dead(**options: Any) -> AsyncIterator[Methods]:
    """A server that takes connections and says nothing on them, so the channel is never ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_channel(f"127.0.0.1:{listener.getsockname()[1]}", **options) as channel:
            yield Methods(channel)
    await asyncio.sleep(DELIVERED)


async def nobody() -> int:
    """A port that refuses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# -- what is sent --------------------------------------------------------------------------------


@given(st.floats(min_value=0, max_value=1e7))
def test_a_time_out_is_rounded_down(left: float) -> None:
    found = rounded(left)
    assert 0 <= found <= left
    assert left - found <= 0.0031 + left * 0.0112
    assert rounded(math.inf) == math.inf


@both_loops
async def test_the_server_is_told_what_is_left_and_who_it_is() -> None:
    async with shop() as (_, orders, _channel), use(ORDER):
        for budget in (0.9996, 1.2341, 9.9951, 12.341, 99.96, 123.4, 1234.5, 20_000.0):
            async with holdfast.timeout(budget):
                said = json.loads(await orders.told(b""))
            assert budget * 0.8 < said["left"] <= budget
            assert "x-envoy-expected-rq-timeout-ms" not in said  # grpc has one of its own
        assert said["x-request-id"] == "5" * 32
        assert said["traceparent"] == f"00-{'5' * 32}-{'6' * 16}-01"
        assert said["x-release-stage"] == "canary"
        assert said["baggage"] == "tenant=acme"
        said = json.loads(await orders.told(b""))
        assert said["left"] is None or said["left"] > 1e6


@real_loop
async def test_other_headers_of_the_time_go_along_when_they_are_asked_for() -> None:
    headers = budget_headers((), ("x-envoy-expected-rq-timeout-ms", "x-left: seconds"))
    async with shop(wire=WireSettings(headers)) as (_, orders, _channel), holdfast.timeout(12.345):
        said = json.loads(await orders.told(b""))
    assert 10_000 < int(said["x-envoy-expected-rq-timeout-ms"]) <= 12_345
    assert 10 < float(said["x-left"]) <= 12.345


@real_loop
async def test_what_the_caller_sets_stays() -> None:
    theirs = grpc.aio.Metadata(
        ("x-request-id", "mine"),
        ("key-bin", b"\0\1"),
        ("tags", "a"),
        ("tags", "b"),
    )
    async with shop() as (_, orders, _channel), use(ORDER), holdfast.timeout(5.0):
        said = json.loads(await orders.told(b"", metadata=theirs, timeout=2.0))
        assert said["x-request-id"] == "mine"
        assert said["key-bin"] == str(b"\0\1")
        assert said["tags"] == "b"
        assert 1.0 < said["left"] <= 2.01  # of two time-outs the smaller, as grpc rounds it


@real_loop
async def test_something_may_be_kept_back() -> None:
    observer = Kept()
    async with shop(reserve=4.5, observer=observer) as (_, orders, _channel):
        async with holdfast.timeout(5.0):
            assert json.loads(await orders.told(b""))["left"] <= 0.5
        observer.calls.clear()
        async with holdfast.timeout(5.0) as scope:
            with pytest.raises(holdfast.DeadlineExceeded) as caught:
                await orders.sleep(b"60")
            assert isinstance(caught.value, grpc.aio.AioRpcError)
            assert scope.remaining() > 0.5  # to do something about it
    assert caught.value.phase is Phase.GRPC_HEADER
    assert observer.trail is caught.value.trail


@real_loop
async def test_what_cannot_be_done_is_not_begun() -> None:
    observer = Kept()
    async with shop(refuse_below=5.0, observer=observer) as (server, orders, _channel):
        async with holdfast.timeout(4.0):
            with pytest.raises(holdfast.InsufficientBudget) as caught:
                await orders.sleep(b"0")
            with pytest.raises(grpc.aio.AioRpcError):
                await orders.sum(iter([b"0"]))
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(aiter(orders.ticks(b"0 1 0")))
            call = orders.sleep(b"0")
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not server.seen
    assert "5 s needed" in str(caught.value)
    assert [type(error) for _, error in observer.calls] == 4 * [type(caught.value)]


# -- phases --------------------------------------------------------------------------------------


@real_loop
async def test_a_call_that_goes_well() -> None:
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel), holdfast.timeout(10.0):
        call = orders.sleep(b"0")
        assert await call == b"slept"
        assert await call.code() is grpc.StatusCode.OK
        assert await call.trailing_metadata() is not None
        assert call.done()
    assert observer.steps() == [(Phase.GRPC_HEADER, Ended.DONE)]
    assert observer.trail.client == "grpc"
    assert observer.trail.target.startswith("grpc 127.0.0.1:")
    assert observer.trail.target.endswith("/shop.Orders/Sleep")


@both_loops
async def test_a_dead_server_is_the_dial() -> None:
    observer = Kept()
    async with dead(observer=observer) as orders:
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            async with holdfast.timeout(0.25, name="order"):
                await orders.sleep(b"0")
    assert caught.value.phase is Phase.CONNECT
    assert caught.value.trail is observer.trail
    assert observer.trail.event == "tcp.connect.timeout"
    assert caught.value.cause.scope == "order"


@both_loops
async def test_the_dial_has_a_share() -> None:
    async with dead(shares=QUICK_DIAL) as orders, holdfast.timeout(6.0) as scope:
        with pytest.raises(holdfast.net.PhaseTimeout) as caught:
            await orders.sleep(b"0")
        assert scope.remaining() > 0
    error = caught.value
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.phase is Phase.CONNECT
    assert error.details() == str(error)
    assert holdfast.is_retryable(error, idempotent=False)  # nothing was sent


@real_loop
async def test_who_waits_until_it_is_ready_waits_until_the_deadline() -> None:
    async with dead(shares=QUICK_DIAL) as orders:
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            async with holdfast.timeout(0.4):
                await orders.sleep(b"0", wait_for_ready=True)
    assert caught.value.phase is Phase.CONNECT


@real_loop
async def test_a_server_that_comes_later() -> None:
    server, observer = Server(), Kept()
    port = await nobody()
    quick = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
    async with open_channel(f"127.0.0.1:{port}", options=quick, observer=observer) as channel:
        orders = Methods(channel)
        async with holdfast.timeout(20.0):
            call = orders.sleep(b"0", wait_for_ready=True)
            await asyncio.sleep(0.2)
            server.inner.add_insecure_port(f"127.0.0.1:{port}")
            await server.inner.start()
            assert await call == b"slept"
    await server.inner.stop(0)
    assert observer.steps() == [(Phase.CONNECT, Ended.DONE), (Phase.GRPC_HEADER, Ended.DONE)]
    assert observer.trail.steps[0].took > 0.1


@real_loop
async def test_a_server_that_refuses_is_told_at_once() -> None:
    port = await nobody()
    async with open_channel(f"127.0.0.1:{port}") as channel, holdfast.timeout(20.0) as scope:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Methods(channel).sleep(b"0")
        assert scope.remaining() > 5.0
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not isinstance(caught.value, holdfast.net.PhaseTimeout)
    assert any("tcp.connect" in note for note in caught.value.__notes__)


@both_loops
async def test_no_answer_is_the_header() -> None:
    observer = Kept()
    async with shop(observer=observer) as (server, orders, _channel):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            async with holdfast.timeout(0.25):
                await orders.sleep(b"60")
        await _until(lambda: server.ended == ["over"])
    assert caught.value.phase is Phase.GRPC_HEADER
    assert observer.trail.event == "grpc.header.timeout"


@both_loops
@pytest.mark.parametrize(
    ("request_", "phase"),
    [(b"60 1 0", Phase.GRPC_HEADER), (b"0 1000 0.05", Phase.GRPC_MESSAGE)],
    ids=["header", "trickle"],
)
async def test_a_stream_ends_at_the_deadline(request_: bytes, phase: Phase) -> None:
    observer = Kept()
    got: list[bytes] = []
    async with shop(observer=observer) as (server, orders, _channel):

        async def read() -> None:
            async with holdfast.timeout(0.5):
                async for message in orders.ticks(request_):
                    got.append(message)  # noqa: PERF401 - what came before the end counts

        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await read()
        await _until(lambda: server.ended == ["over"])
    assert caught.value.phase is phase
    assert observer.trail.event == phase.event
    if got:
        assert f"{len(got)} message" in observer.trail.steps[-1].detail


@real_loop
async def test_the_bound_holds_where_the_scope_is_left_behind() -> None:
    async with shop() as (_, orders, _channel):
        async with holdfast.timeout(0.25, name="order") as scope:
            unary, stream = orders.sleep(b"60"), orders.ticks(b"0 1000 0.05")
            await asyncio.sleep(0)
            limit = scope.deadline
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await unary
        assert holdfast.runtime.clock.monotonic() >= limit  # never early
        assert isinstance(caught.value, grpc.aio.AioRpcError)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await unary.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await _drained(stream)
        assert caught.value.phase is Phase.GRPC_MESSAGE


@both_loops
async def test_streams_of_requests() -> None:
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel), holdfast.timeout(10.0):
        assert await orders.sum(iter([b"0.01", b"0.02"])) == b"0.03"
        writer = orders.sum()
        await writer.write(b"0.01")
        await writer.done_writing()
        assert await writer == b"0.01"
        assert [m async for m in orders.chat(iter([b"0", b"0.01"]))] == [b"after 0", b"after 0.01"]
        talk = orders.chat()
        await talk.write(b"0")
        assert await talk.read() == b"after 0"
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
    assert [trail.steps[-1].ended for trail, _ in observer.calls] == 4 * [Ended.DONE]
    assert [error for _, error in observer.calls] == 4 * [None]


@both_loops
async def test_streams_of_requests_end_at_the_deadline() -> None:
    async with shop() as (_, orders, _channel):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            async with holdfast.timeout(0.3):
                await orders.sum(iter([b"0.01", b"60"]))
        assert caught.value.phase is Phase.GRPC_MESSAGE

        async def talk() -> None:
            async with holdfast.timeout(0.3):
                line = orders.chat()
                await line.write(b"0")
                assert await line.read() == b"after 0"
                await line.write(b"60")
                await line.read()

        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await talk()
        assert caught.value.phase is Phase.GRPC_MESSAGE
        assert caught.value.trail is not None
        assert caught.value.trail.steps[-1].detail == "1 message came"


# -- other ends ----------------------------------------------------------------------------------


@real_loop
async def test_a_time_out_of_grpc_stays_one_of_grpc() -> None:
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel), holdfast.timeout(20.0):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await orders.sleep(b"60", timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await orders.sleep(b"60", timeout=-1.0)
    assert type(caught.value) is grpc.aio.AioRpcError
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    trail = observer.calls[0][0]
    assert caught.value.trail is trail  # type: ignore[attr-defined]
    assert trail.event == "grpc.header.timeout"


@real_loop
async def test_nor_may_the_dial_take_longer_than_that() -> None:
    async with dead() as orders, holdfast.timeout(20.0) as scope:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await orders.sleep(b"0", timeout=0.2)
        assert scope.remaining() > 10
    assert type(caught.value) is grpc.aio.AioRpcError
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.trail.event == "tcp.connect.timeout"  # type: ignore[attr-defined]


@real_loop
async def test_other_errors_stay_what_they_are() -> None:
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel), holdfast.timeout(20.0):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await orders.fail(b"NOT_FOUND")
        call = orders.fail(b"NOT_FOUND")
        assert await call.code() is grpc.StatusCode.NOT_FOUND
        assert await call.details() == "as asked"
    error = caught.value
    assert type(error) is grpc.aio.AioRpcError
    assert dict(error.trailing_metadata() or ())["x"] == "y"
    assert observer.calls[0] == (observer.calls[0][0], error)
    assert any("NOT_FOUND: as asked" in note for note in error.__notes__)


@real_loop
async def test_a_deadline_of_the_server_is_ours_when_it_says_so() -> None:
    below = Cause(CauseKind.DEADLINE, "GET /stock", "orders", 1.0, 0.5, 0.5)
    told = f"DEADLINE_EXCEEDED {encode_cause_header(below)}".encode()
    async with shop() as (_, orders, _channel), holdfast.timeout(20.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await orders.fail(told)
        assert caught.value.cause.below
        assert caught.value.cause.below[0].scope == "GET /stock"
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await orders.fail(b"DEADLINE_EXCEEDED")
    assert not isinstance(plain.value, holdfast.DeadlineExceeded)
    async with shop(raise_for_deadline=False) as (_, orders, _channel):
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await orders.fail(told)
    assert not isinstance(plain.value, holdfast.DeadlineExceeded)


@real_loop
async def test_a_rich_status_says_more_than_the_line() -> None:
    stock = Cause(CauseKind.DEADLINE, "sql", "stock", 0.0, 0.4, 0.4)
    below = Cause(CauseKind.DEADLINE, "Orders/Get", "", 1.0, 0.5, 0.5, "slow disk", (stock,))
    async with shop() as (_, orders, _channel), holdfast.timeout(20.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await orders.fail(b"DEADLINE_EXCEEDED " + encode_status(4, "as asked", below))
        (found,) = caught.value.cause.below
        assert (found.scope, found.hop, found.detail) == ("Orders/Get", "orders", "slow disk")
        assert caught.value.cause.origin.hop == "stock"
        assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await orders.fail(b"DEADLINE_EXCEEDED_HERE " + encode_status(4, "as asked", below))
        assert type(plain.value) is grpc.aio.AioRpcError
        assert any("slow disk" in note for note in plain.value.__notes__)
        # Another end than that of the deadline stays what it is, and its cause is told.
        gone = Cause(CauseKind.SHUTDOWN, "Orders/Get", "orders", 1.0, 0.5, 0.1)
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await orders.fail(b"UNAVAILABLE " + encode_status(14, "as asked", gone))
    assert type(plain.value) is grpc.aio.AioRpcError
    assert any("the process is shutting down" in note for note in plain.value.__notes__)


@real_loop
async def test_the_names_of_other_servers_stay_what_they_are() -> None:
    status = status_pb2.Status(code=9, message="as asked")
    info = error_details_pb2.ErrorInfo(reason="STOCKOUT", domain="shop.example")
    status.details.add().Pack(info)
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel), holdfast.timeout(20.0):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await orders.fail(b"FAILED_PRECONDITION " + status.SerializeToString())
    assert type(caught.value) is grpc.aio.AioRpcError
    assert await _read_by_grpc_status(caught.value) == info
    said = "FAILED_PRECONDITION: as asked (STOCKOUT of shop.example)"
    assert observer.trail.steps[-1].detail == said
    assert any(said in note for note in caught.value.__notes__)


async def _read_by_grpc_status(error: grpc.aio.AioRpcError) -> Any:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


@both_loops
async def test_a_cancellation_passes() -> None:
    observer = Kept()
    SPAN.set("order")
    async with shop(observer=observer) as (server, orders, _channel):
        async with holdfast.timeout(20.0):
            call = orders.sleep(b"60")
            asyncio.get_running_loop().call_later(0.1, call.cancel)
            with pytest.raises(asyncio.CancelledError):
                await call
            stream = orders.ticks(b"0 1000 0.01")
            async for _ in stream:
                break
            stream.cancel()
        await _until(lambda: server.ended == ["over", "over"])
        await _until(lambda: len(observer.calls) == 2)
    assert [t.steps[-1].ended for t, _ in observer.calls] == [Ended.CANCELLED, Ended.CANCELLED]
    assert observer.spans == ["order", "order"]


@both_loops
async def test_calls_that_are_cancelled_while_they_dial_leave_nothing() -> None:
    observer = Kept()
    async with dead(observer=observer) as orders:
        for _ in range(100):
            with pytest.raises(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.002):
                    await orders.sleep(b"0")
    assert len(observer.calls) == 100
    assert {trail.phase for trail, _ in observer.calls} <= {Phase.CONNECT, None}


@real_loop
async def test_a_channel_that_is_closed_while_it_dials() -> None:
    async with dead() as orders:
        call = orders.sleep(b"0")
        await asyncio.sleep(0.1)
    with pytest.raises((asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.AioRpcError)):
        await asyncio.wait_for(call, 5)


class Counting(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self) -> None:
        self.metadata: list[Any] = []

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        self.metadata.append(client_call_details.metadata)
        call = await continuation(client_call_details, request)
        await call
        return call


@real_loop
async def test_other_interceptors_are_inside() -> None:
    counting, observer = Counting(), Kept()
    async with (
        shop(interceptors=[counting], observer=observer) as (_, orders, _channel),
        use(ORDER),
    ):
        assert await orders.sleep(b"0") == b"slept"
    assert dict(counting.metadata[0])["x-request-id"] == "5" * 32
    assert observer.steps() == [(Phase.GRPC_HEADER, Ended.DONE)]


@both_loops
async def test_everything_else_is_the_call_of_grpc() -> None:
    over: list[Any] = []
    async with shop() as (_, orders, channel), holdfast.timeout(20.0):
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        assert isinstance(channel, grpc.aio.Channel)
        call = orders.sleep(b"0.05")
        assert isinstance(call, grpc.aio.UnaryUnaryCall)
        call.add_done_callback(over.append)
        await call.wait_for_connection()
        assert 0 < call.time_remaining() <= 20
        assert await call == b"slept"
        assert await call == b"slept"
        assert await call.code() is grpc.StatusCode.OK
        assert await call.details() == ""
        assert await call.initial_metadata() is not None
        assert await call.debug_error_string() == ""
        assert not call.cancelled()
        assert over == [call]
        stream = orders.ticks(b"0 1 0")
        assert isinstance(stream, grpc.aio.UnaryStreamCall)
        assert await stream.read() == b"0"
        assert await stream.initial_metadata() == (("head", "here"),)
        assert await stream.read() is grpc.aio.EOF
        assert await stream.read() is grpc.aio.EOF
        assert isinstance(orders.chat(iter(())), grpc.aio.StreamStreamCall)
        writer = orders.sum()
        assert isinstance(writer, grpc.aio.StreamUnaryCall)
        await writer.done_writing()
        assert await writer == b"0.0"
        await channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE)
        await channel.close()
        with pytest.raises(grpc.aio.UsageError):
            await orders.sleep(b"0")


@real_loop
async def test_a_call_that_is_refused_says_so_everywhere() -> None:
    over: list[Any] = []
    async with shop(refuse_below=5.0) as (_, orders, _channel), holdfast.timeout(4.0):
        call = orders.sum()
        with pytest.raises(holdfast.InsufficientBudget):
            await call.write(b"0")
        await call.done_writing()
        with pytest.raises(holdfast.InsufficientBudget):
            await call.wait_for_connection()
        call.add_done_callback(over.append)
        assert over == [call]
        assert call.done()
        assert not call.cancel()
        assert not call.cancelled()
        assert call.time_remaining() == 0
        assert "5 s needed" in await call.details()
        assert not await call.initial_metadata()
        with pytest.raises(holdfast.InsufficientBudget):
            await orders.ticks(b"0 1 0").read()


@real_loop
async def test_over_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    server = Server()
    port = server.inner.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.inner.start()
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with open_channel(f"localhost:{port}", credentials) as channel, holdfast.timeout(20.0):
        assert await Methods(channel).sleep(b"0") == b"slept"
    await server.inner.stop(0)


@real_loop
async def test_without_a_deadline_nothing_is_bounded() -> None:
    observer = Kept()
    async with shop(observer=observer) as (_, orders, _channel):
        assert await orders.sleep(b"0.05") == b"slept"
        assert [m async for m in orders.ticks(b"0 2 0.01")] == [b"0", b"1"]
    assert [trail.limit for trail, _ in observer.calls] == [math.inf, math.inf]


def test_errors_are_copied_whole() -> None:
    cause = Cause(CauseKind.DEADLINE, "order", "", 1.0, 0.5, 0.5)
    trail = Trail("grpc x/y", 0.0, 1.0, DEFAULT_SHARES)
    trail.begin(Phase.CONNECT, 0.0)
    trail.end(0.5, Ended.TIMEOUT)
    exceeded, late = GrpcDeadlineExceeded(cause), GrpcPhaseTimeout(trail)
    for error in (copy.copy(exceeded), pickle.loads(pickle.dumps(exceeded))):
        assert error.cause == cause
        assert str(error) == cause.line() == error.details()
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(error, TimeoutError)
    assert copy.copy(late).trail is trail
    assert repr(late).startswith("<GrpcPhaseTimeout tcp.connect.timeout")
    assert holdfast.classify(exceeded) is holdfast.Fault.TIMED_OUT


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - the other side is a server, and tells nobody
            await asyncio.sleep(0.01)


async def _drained(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
