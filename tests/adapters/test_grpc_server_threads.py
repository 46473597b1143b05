"""Plain functions as handlers: in a server of threads, and in the threads of grpc.aio."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

import holdfast
from holdfast.adapters.grpc_server import GrpcCarrier, GrpcThreadCarrier, stopping
from holdfast.domain.cause import CauseKind
from holdfast.domain.policy import Policy, Route
from holdfast.domain.wire.problem import CAUSE_HEADER
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status
from holdfast.runtime.scope import ambient
from tests.adapters.grpc_serving import (
    ENDED,
    TOLD,
    answers,
    begin,
    call,
    metadata_of,
    named,
    refused,
    until,
)

pytestmark = [pytest.mark.system, pytest.mark.real_time]

ON = pytest.mark.parametrize("on", ["threads", "aio"])
KINDS = ("One", "Ticks", "Sum", "Chat")


class Shop:
    """One method of each kind; each notes what it sees, and takes as long as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, holdfast.Context, float]] = []
        self.closed: list[str] = []
        self.rpc: Any = None
        self.port = 0
        self.go = threading.Event()

    def visit(self, kind: str) -> None:
        self.rpc = ambient()
        self.seen.append((kind, holdfast.current(), holdfast.remaining()))

    def one(self, request: bytes, context: Any) -> bytes:
        self.visit("One")
        time.sleep(float(request))
        return b"one"

    def ticks(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.visit("Ticks")
        try:
            for _ in range(1 + int(float(request) / 0.1)):
                yield b"tick"
                time.sleep(min(0.1, float(request)))
        finally:
            self.closed.append("Ticks")

    def sum(self, requests: Iterator[bytes], context: Any) -> bytes:
        self.visit("Sum")
        for request in requests:
            time.sleep(float(request))
        return b"sum"

    def chat(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.visit("Chat")
        for request in requests:
            time.sleep(float(request))
            yield b"chat"

    def wait(self, request: bytes, context: Any) -> bytes:
        """Until it is let go."""
        self.visit("Wait")
        self.go.wait(ENDED)
        return b"waited"

    def stop(self, request: bytes, context: Any) -> Iterator[bytes]:
        """Until the server stops."""
        yield b"first"
        while not stopping():
            time.sleep(0.01)
        yield b"bye"

    def stuck(self, request: bytes, context: Any) -> Iterator[bytes]:
        """Waits for what cannot be told."""
        try:
            yield b"first"
            self.go.wait(ENDED)
            yield b"last"
        finally:
            self.closed.append("Stuck")

    def full(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        assert context.add_callback(lambda: self.closed.append("callback"))
        assert context.peer().startswith("ipv4:")
        context.send_initial_metadata((("first", "yes"),))
        context.set_trailing_metadata((("why", "stockout"),))
        try:
            for request in requests:
                if request == b"abort":
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "there is none left")
                yield request
        finally:
            self.closed.append("Full")

    def aside(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Reads in another thread, as chats do."""
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.extend(requests))
        thread.start()
        yield b"first"
        thread.join()
        yield b"%d" % len(got)

    def fail(self, request: bytes, context: Any) -> bytes:
        if request == b"abort":
            context.set_trailing_metadata((("why", "stockout"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "there is none left")
        if request == b"scope":
            with holdfast.timeout(0.01, name="short"):
                time.sleep(0.05)
        raise ValueError("as asked")


@asynccontextmanager
async def serving(
    on: str,
    policy: Policy | None = None,
    *,
    threads: int = 8,
    timings: bool = True,
    extra: Callable[[Any, Any], Any] | None = None,
) -> AsyncGenerator[tuple[Shop, Any, grpc.aio.Channel]]:
    shop = Shop()
    methods: dict[str, Any] = {
        "One": grpc.unary_unary_rpc_method_handler(shop.one),
        "Ticks": grpc.unary_stream_rpc_method_handler(shop.ticks),
        "Sum": grpc.stream_unary_rpc_method_handler(shop.sum),
        "Chat": grpc.stream_stream_rpc_method_handler(shop.chat),
        "Wait": grpc.unary_unary_rpc_method_handler(shop.wait),
        "Stop": grpc.unary_stream_rpc_method_handler(shop.stop),
        "Stuck": grpc.unary_stream_rpc_method_handler(shop.stuck),
        "Full": grpc.stream_stream_rpc_method_handler(shop.full),
        "Aside": grpc.stream_stream_rpc_method_handler(shop.aside),
        "Fail": grpc.unary_unary_rpc_method_handler(shop.fail),
    }
    generic = grpc.method_handlers_generic_handler("shop.Orders", methods)
    pool = ThreadPoolExecutor(threads)
    server: Any
    carrier: Any
    if on == "aio":
        carrier = GrpcCarrier(policy, service="orders", timings=timings, pool=pool)
        server = grpc.aio.server(pool, interceptors=[carrier])
    else:
        carrier = GrpcThreadCarrier(policy, service="orders", timings=timings)
        server = grpc.server(pool, interceptors=[carrier])
    server.add_generic_rpc_handlers((generic,))
    shop.port = port = server.add_insecure_port("127.0.0.1:0")
    if (started := server.start()) is not None:
        await started
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield shop, carrier, channel
            shop.go.set()
            await asyncio.sleep(TOLD)
    finally:
        shop.go.set()
        stopped = server.stop(None)
        if on == "aio":
            await stopped
        else:
            await asyncio.to_thread(stopped.wait)
        pool.shutdown()


def made(channel: Any, kind: str, seconds: float, timeout: float | None = None) -> Any:
    return begin(channel, kind, seconds, timeout)


@ON
@pytest.mark.parametrize("kind", KINDS)
async def test_the_context_is_there_in_the_thread(on: str, kind: str) -> None:
    async with serving(on) as (shop, carrier, channel):
        sent = begin(channel, kind, 0.0, timeout=60.0, metadata=(("x-request-id", "order-17"),))
        assert len(await asyncio.wait_for(answers(sent), ENDED)) == 1
        ((seen, context, left),) = shop.seen
        assert seen == kind
        assert context.scope == f"grpc /shop.Orders/{kind}"
        whole = 10.0 if kind == "One" else 60.0
        assert 0.8 * whole < left < whole
        said = named(await sent.trailing_metadata())
        assert context.identity.echo_id == "order-17"
        assert carrier.in_flight == 0
        # In its own threads grpc.aio does not let it be known.
        assert ("server-timing" in said) == (on == "threads" or kind in ("Ticks", "Chat"))


@ON
@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_ran_over_is_answered_so(on: str, kind: str) -> None:
    policy = Policy(routes=(Route("/shop.Orders/*", {"request": 0.2}, stream=False),))
    async with serving(on, policy) as (shop, carrier, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(call(channel, kind, 0.4, timeout=30.0), ENDED)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        said = metadata_of(failed.value)
        cause = parse_status(said[DETAILS_KEY])
        assert cause is not None
        assert (cause.kind, cause.hop) == (CauseKind.DEADLINE, "orders")
        assert CAUSE_HEADER not in said  # that of the caller is not spent
        assert carrier.counts["ended.deadline"] == 1
        await until(lambda: carrier.in_flight == 0)
        if kind == "Ticks":
            assert shop.closed == ["Ticks"]


@ON
async def test_a_stream_is_ended_between_two_messages(on: str) -> None:
    policy = Policy(routes=(Route("/shop.Orders/*", {"request": 0.35}, stream=False),))
    async with serving(on, policy) as (shop, _, channel):
        got: list[bytes] = []
        sent = made(channel, "Ticks", 60.0)
        with pytest.raises(grpc.aio.AioRpcError) as failed:  # noqa: PT012 - at which one?
            while True:
                got.append(await sent.read())
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1 <= len(got) < 10
        await until(lambda: shop.closed == ["Ticks"])


@ON
async def test_a_call_that_expired_in_the_queue_is_not_begun(on: str) -> None:
    async with serving(on, threads=1) as (shop, _, channel):
        first = asyncio.ensure_future(call(channel, "Wait", 0.0))
        await until(lambda: len(shop.seen) == 1)
        late = [asyncio.ensure_future(call(channel, kind, 0.0, timeout=0.2)) for kind in KINDS]
        await asyncio.wait(late)
        for each in late:
            error = each.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        shop.go.set()
        assert await first == [b"waited"]
        assert await call(channel, "One", 0.0, timeout=5.0) == [b"one"]
        assert [kind for kind, _, _ in shop.seen] == ["Wait", "One"]


@ON
async def test_a_call_with_too_little_left_is_refused(on: str) -> None:
    policy = Policy(routes=(Route("/shop.Orders/*", {"refuse_below": 0.5}),))
    async with serving(on, policy) as (shop, carrier, channel):
        for kind in KINDS:
            code, _, said = await refused(channel, kind, 0.4)
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert CAUSE_HEADER in said
        assert shop.seen == []
        assert carrier.counts["refused.too_little"] == len(KINDS)


@ON
async def test_errors_of_the_handler_stay_its_own(on: str) -> None:
    async with serving(on) as (_, _carrier, channel):
        fail = channel.unary_unary("/shop.Orders/Fail")
        for request, code in (
            (b"abort", grpc.StatusCode.FAILED_PRECONDITION),
            (b"error", grpc.StatusCode.UNKNOWN),
            (b"scope", grpc.StatusCode.DEADLINE_EXCEEDED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await fail(request)
            assert failed.value.code() is code
            if request == b"abort":
                assert metadata_of(failed.value)["why"] == "stockout"
            if request == b"scope":
                assert "short" in (failed.value.details() or "")


async def test_a_client_that_goes_is_noted_for_the_thread() -> None:
    async with serving("threads") as (shop, carrier, channel):
        sent = made(channel, "Wait", 0.0)
        await until(lambda: len(shop.seen) == 1)
        sent.cancel()
        await until(lambda: shop.rpc.reached() is not None)
        assert shop.rpc.reached().kind is CauseKind.DISCONNECT
        shop.go.set()
        await until(lambda: carrier.in_flight == 0)
        assert carrier.counts["disconnected"] == 1


@ON
async def test_streams_whose_clients_go_give_their_threads_back(on: str) -> None:
    async with serving(on, threads=2) as (shop, carrier, channel):
        for _ in range(2):
            streams = [made(channel, "Ticks", 1000.0) for _ in range(2)]
            for stream in streams:
                assert await stream.read() == b"tick"
            for stream in streams:
                stream.cancel()
            await until(lambda: carrier.in_flight == 0)
        assert shop.closed == ["Ticks"] * 4
        assert await asyncio.wait_for(call(channel, "One", 0.0), ENDED) == [b"one"]
        assert carrier.counts["disconnected"] == 4


@ON
async def test_a_client_that_is_killed_gives_its_threads_back(on: str) -> None:
    async with serving(on, threads=4) as (shop, carrier, channel):
        program = textwrap.dedent(f"""
            import asyncio, grpc.aio
            from tests.adapters.grpc_serving import begin, call
            async def main():
                async with grpc.aio.insecure_channel("127.0.0.1:{shop.port}") as channel:
                    waits = asyncio.ensure_future(call(channel, "Wait", 0.0))
                    streams = [begin(channel, "Ticks", 1000.0) for _ in range(2)]
                    for stream in streams:
                        await stream.read()
                    await waits
            asyncio.run(main())
        """)
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        try:
            await until(lambda: len(shop.seen) == 3, 30.0)
        finally:
            client.send_signal(signal.SIGKILL)
            await client.wait()
        await until(lambda: carrier.in_flight <= 1)  # one function waits, and cannot be told
        assert shop.closed == ["Ticks"] * 2
        shop.go.set()
        await until(lambda: carrier.in_flight == 0)
        assert carrier.counts["disconnected"] >= 2
        assert await asyncio.wait_for(call(channel, "One", 0.0), ENDED) == [b"one"]


@ON
async def test_many_calls_at_once_leave_nothing(on: str) -> None:
    async with serving(on, threads=16) as (_, carrier, channel):

        async def one(number: int) -> str:
            if number % 3 == 0:
                kind = KINDS[number % 4]
                return "done" if await answers(made(channel, kind, 0.0, 30.0)) else ""
            # The client of grpc fails by itself when it is answered while it sends a request.
            sent = made(
                channel, KINDS[number % 2], 0.2, 30.0 if number % 3 == 1 else 0.1 + number % 7 / 50
            )
            running = asyncio.ensure_future(answers(sent))
            if number % 3 == 1:
                await asyncio.sleep(number % 11 / 50)
                sent.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return "gone"

        ends = await asyncio.gather(*(one(number) for number in range(120)))
        assert set(ends) == {"done", "gone"}
        await until(lambda: carrier.in_flight == 0, 30.0)
        assert await asyncio.wait_for(call(channel, "One", 0.0), ENDED) == [b"one"]


async def test_a_stream_in_a_thread_of_aio_is_answered_at_its_limit() -> None:
    policy = Policy(routes=(Route("/shop.Orders/*", {"request": 0.2}, stream=False),))
    async with serving("aio", policy) as (shop, carrier, channel):
        sent = channel.unary_stream("/shop.Orders/Stuck")(b"", timeout=30.0)
        assert await sent.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(sent.read(), ENDED)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: carrier.in_flight == 1)  # its thread, when the answer has left
        shop.go.set()
        await until(lambda: carrier.in_flight == 0)
        assert shop.closed == ["Stuck"]


@ON
async def test_the_context_of_a_stream_in_a_thread_is_that_of_plain_functions(on: str) -> None:
    async with serving(on) as (shop, _, channel):
        sent = channel.stream_stream("/shop.Orders/Full")(iter([b"a", b"b", b"abort"]))
        assert [await sent.read() for _ in range(2)] == [b"a", b"b"]
        assert named(await sent.initial_metadata())["first"] == "yes"
        assert await sent.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await sent.details() == "there is none left"
        assert named(await sent.trailing_metadata())["why"] == "stockout"
        await until(lambda: shop.closed == ["Full", "callback"])


@ON
async def test_requests_may_be_read_in_a_thread_of_ones_own(on: str) -> None:
    async with serving(on) as (_, _carrier, channel):
        sent = channel.stream_stream("/shop.Orders/Aside")(iter([b"a", b"b"]))
        assert await asyncio.wait_for(answers(sent), ENDED) == [b"first", b"2"]


@ON
async def test_switched_off_it_bounds_nothing_and_still_stops(on: str) -> None:
    policy = Policy(mode="off", routes=(Route("/shop.Orders/*", {"request": 0.05}),))
    async with serving(on, policy) as (shop, carrier, channel):
        assert await call(channel, "One", 0.2, timeout=30.0) == [b"one"]
        assert shop.seen[0][2] == float("inf")
        stream = channel.unary_stream("/shop.Orders/Stop")(b"")
        assert await stream.read() == b"first"
        assert carrier.in_flight == 1
        idle = asyncio.Event()
        loop = asyncio.get_running_loop()
        carrier.close(lambda: loop.call_soon_threadsafe(idle.set))
        assert await asyncio.wait_for(stream.read(), ENDED) == b"bye"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "One", 0.0)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(idle.wait(), ENDED)


@ON
async def test_a_stop_is_told_and_new_calls_are_turned_away(on: str) -> None:
    async with serving(on) as (shop, carrier, channel):
        stream = channel.unary_stream("/shop.Orders/Stop")(b"")
        assert await stream.read() == b"first"
        assert carrier.in_flight == 1
        assert not carrier.stopping
        carrier.announce()
        assert carrier.stopping
        assert await asyncio.wait_for(stream.read(), ENDED) == b"bye"
        idle = asyncio.Event()
        loop = asyncio.get_running_loop()
        carrier.close(lambda: loop.call_soon_threadsafe(idle.set))
        await asyncio.wait_for(idle.wait(), ENDED)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "One", 0.0)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert shop.seen == []


@ON
async def test_what_is_only_observed_is_not_cut(on: str) -> None:
    policy = Policy(mode="observe", routes=(Route("/shop.Orders/*", {"request": 0.05}),))
    async with serving(on, policy) as (_, carrier, channel):
        assert await call(channel, "One", 0.2) == [b"one"]
        assert carrier.counts["would_exceed"] == 1
        carrier.policy = replace(policy, mode="off")
        assert await call(channel, "One", 0.1) == [b"one"]
        assert carrier.counts["would_exceed"] == 1


@ON
async def test_what_went_well_says_nothing_to_those_who_do_not_care(on: str) -> None:
    for timings, metadata in ((True, None), (False, (("x-request-id", "order-17"),))):
        async with serving(on, timings=timings) as (_, _carrier, channel):
            sent = begin(channel, "One", 0.0, metadata=metadata)
            await sent
            assert not tuple(await sent.trailing_metadata())
