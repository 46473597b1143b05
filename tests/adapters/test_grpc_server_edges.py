"""What is rare: others that wait for the task of a handler, long names, a carrier that is off."""

from __future__ import annotations

import asyncio
import string
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import pytest

import holdfast
from holdfast.adapters.grpc_server import (
    GrpcCarrier,
    GrpcThreadCarrier,
    stop_begun,
    stopping,
)
from holdfast.adapters.grpc_server.methods import COMING, Method
from holdfast.adapters.grpc_server.terms import Stop
from holdfast.adapters.grpc_server.threads import ThreadMethod
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status
from holdfast.runtime.clock import monotonic
from tests.adapters.grpc_serving import ENDED, call, metadata_of, refused, shop, until
from tests.adapters.test_grpc_server import LONG, rpc_status_of, short

pytestmark = [pytest.mark.system, pytest.mark.real_time]


async def helped_by_a_child(request: bytes, context: Any) -> bytes:
    child = asyncio.create_task(asyncio.sleep(LONG))
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: child.cancel())
    task.add_done_callback(child.cancel)
    await asyncio.sleep(LONG)
    return b""


async def watched_by_a_task(request: bytes, context: Any) -> bytes:
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        await asyncio.wait([task])
        with suppress(BaseException):
            await task

    async def directly() -> None:
        with suppress(BaseException):
            await task

    watching = asyncio.create_task(watch()), asyncio.create_task(directly())
    task.add_done_callback(lambda _: watching)
    await asyncio.sleep(LONG)
    return b""


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("handler", [helped_by_a_child, watched_by_a_task])
async def test_a_handler_whose_task_others_wait_for_is_answered(handler: Any) -> None:
    async with shop(short(0.3), one_Helped=handler) as (served, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(call(channel, "Helped", 0.0), ENDED)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        served.carrier.policy = short(LONG)
        running = asyncio.ensure_future(call(channel, "Helped", 0.0))
        await until(lambda: served.carrier.in_flight == 1)
        await asyncio.sleep(0.05)
        assert served.carrier.cut() == 1
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(running, ENDED)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_however_long_the_names_are_the_reason_arrives() -> None:
    wide = "\u8a08" * 400

    async def long(request: bytes, context: Any) -> bytes:
        if request == b"theirs":
            context.set_trailing_metadata((("mine-bin", b"x" * 1500), ("mine", "y" * 1000)))
        if request == b"too much":
            context.set_trailing_metadata((("mine-bin", b"x" * 2000), ("mine", "y" * 3000)))
        below = ()
        for _ in range(8 if request == b"hops" else 1):
            below = (Cause(CauseKind.DEADLINE, wide, wide, 0.0, 1.0, 1.0, wide, below),)
        raise holdfast.DeadlineExceeded(below[0])

    policy = replace(short(10.0), service=wide)
    async with shop(policy, one_Long=long) as (served, channel):
        for request in (b"names", b"hops", b"theirs", b"too much"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/shop.Orders/Long")(request, timeout=0.5)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            found = metadata_of(failed.value)
            assert len(found["x-request-id"]) == 32
            size = sum(len(v) * (4 / 3 if isinstance(v, bytes) else 1) for v in found.values())
            size += len(quote(failed.value.details() or "", safe=string.punctuation + " "))
            assert size < 7000
            if request != b"too much":
                cause = parse_status(found[DETAILS_KEY])
                assert cause is not None
                assert cause.kind is CauseKind.DEADLINE
                status = await rpc_status_of(failed.value)
                assert status.message == failed.value.details()
        await served.idle()


async def test_switched_off_it_bounds_nothing_and_still_stops() -> None:
    async def watch(request: bytes, context: Any) -> Any:
        yield b"watching" if not stopping() else b"?"
        await stop_begun()
        yield b"bye"

    policy = replace(short(0.05, refuse_below=0.04, idle=0.05), mode="off")
    async with shop(policy, ticks_Watch=watch) as (served, channel):
        assert await call(channel, "One", 0.2, timeout=30.0) == [b"one"]
        assert served.seen[0].left == float("inf")
        assert await call(channel, "One", 0.0, timeout=30.0) == [b"one"]
        assert await call(channel, "Ticks", 0.2) == [b"first", b"last"]
        assert served.carrier.counts["would_exceed"] == 0
        made = channel.unary_stream("/shop.Orders/Watch")(b"")
        assert await made.read() == b"watching"
        running = asyncio.ensure_future(call(channel, "One", LONG))
        await served.arrived(4)
        assert served.carrier.in_flight == 2
        served.carrier.announce()
        assert await asyncio.wait_for(made.read(), ENDED) == b"bye"
        idle = asyncio.Event()
        served.carrier.close(idle.set)
        code, _, _ = await refused(channel, "One")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert served.carrier.cut() == 1
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await running
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(idle.wait(), ENDED)


async def test_a_waiter_whose_loop_is_closed_keeps_nobody_else_from_the_stop() -> None:
    ending = Stop()
    other = asyncio.new_event_loop()
    ending._waiting[other.create_future()] = other
    other.close()
    waiting = asyncio.ensure_future(ending.wait())
    await asyncio.sleep(0)
    ending.begin()
    await asyncio.wait_for(waiting, ENDED)


class Torn:
    """The context of a call that has ended a moment ago, and does not know that yet."""

    def time_remaining(self) -> None:
        return None

    def done(self) -> bool:
        return False

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()

    async def abort(self, *_: Any) -> None:
        raise grpc.aio.InternalError("the batch failed")

    def add_callback(self, _: Any) -> bool:
        raise ValueError("as asked")


async def test_a_client_that_goes_before_it_is_refused_is_no_error_of_the_server() -> None:
    async def one(request: bytes, context: Any) -> bytes:
        return b"one"

    carrier = GrpcCarrier()
    carrier.close()
    method = Method(carrier, carrier, "/shop.Orders/One", one, (False, False))
    COMING.set((monotonic(), ()))
    with pytest.raises(asyncio.CancelledError):  # which grpc says nothing of
        await method.serve(b"", Torn())
    assert carrier.in_flight == 0


def test_a_call_that_is_torn_before_it_begins_in_a_thread_is_not_in_flight() -> None:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"one")
    carrier = GrpcThreadCarrier()
    method = ThreadMethod(carrier, "/shop.Orders/One", handler)
    served: Any = method.handler(monotonic(), ())
    with pytest.raises(ValueError, match="as asked"):
        served.unary_unary(b"", Torn())
    assert carrier.in_flight == 0
