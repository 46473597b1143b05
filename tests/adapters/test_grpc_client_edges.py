"""Clients of grpc where time-outs are odd, ends are unclear, and several look at one call."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

import holdfast
from holdfast.domain.phases import Ended, Trail
from tests.adapters.test_grpc_client import Kept, shop
from tests.adapters.test_grpc_client_sync import QUICK_DIAL, dead
from tests.adapters.test_grpc_client_sync import Kept as SyncKept
from tests.adapters.test_grpc_client_sync import shop as sync_shop

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio")]

ENDED = 5.0
LONG = (math.inf, 1e12, 86_400.0 * 365 * 400)
NONE = (0, 0.0, -1.0, -math.inf)
FROM_CORE = "Internal error from Core"
EVIL = "boom\nlevel=ERROR\x1b[31m\u2028"


# -- time-outs -----------------------------------------------------------------------------------


async def test_a_time_out_without_an_end_is_none() -> None:
    async with shop() as (_, orders, _channel):
        for seconds in (*LONG, holdfast.remaining()):
            assert await orders.sleep(b"0", timeout=seconds) == b"slept"
            assert [m async for m in orders.ticks(b"0 1 0", timeout=seconds)] == [b"0"]
        async with holdfast.timeout(1e13):
            assert await orders.sleep(b"0") == b"slept"
            assert await orders.sleep(b"0", timeout=math.inf) == b"slept"
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await orders.sleep(b"60", timeout=math.inf)


async def test_a_time_out_that_is_over_is_refused() -> None:
    observer = Kept()
    async with shop(observer=observer) as (server, orders, _channel):
        for seconds in NONE:
            with pytest.raises(grpc.aio.AioRpcError, match="its own time-out") as caught:
                await orders.sleep(b"0", timeout=seconds)
            assert isinstance(caught.value, holdfast.InsufficientBudget)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with holdfast.timeout(20.0):
            with pytest.raises(holdfast.InsufficientBudget):
                await anext(aiter(orders.chat(iter([b"0"]), timeout=0)))
        with pytest.raises(ValueError, match="nan"):
            orders.sleep(b"0", timeout=math.nan)
        assert server.seen == []
    assert len(observer.calls) == len(NONE) + 1


def test_so_it_is_in_threads() -> None:
    observer = SyncKept()
    with sync_shop(observer=observer) as orders:
        for seconds in (*LONG, holdfast.remaining()):
            assert orders.sleep(b"0", timeout=seconds) == b"slept"
            assert orders.sleep.future(b"0", timeout=seconds).result() == b"slept"
        with holdfast.timeout(1e13):
            assert orders.sleep(b"0") == b"slept"
        observer.calls.clear()
        for seconds in NONE:
            with pytest.raises(grpc.RpcError, match="its own time-out") as caught:
                orders.sleep(b"0", timeout=seconds)
            assert isinstance(caught.value, holdfast.InsufficientBudget)
        with holdfast.timeout(20.0), pytest.raises(holdfast.InsufficientBudget):
            orders.ticks(b"0 1 0", timeout=0)
        with pytest.raises(ValueError, match="nan"):
            orders.sleep(b"0", timeout=math.nan)
    assert len(observer.calls) == len(NONE) + 1


async def test_what_is_kept_back_is_all_that_is_left() -> None:
    async with shop(reserve=10.0) as (server, orders, _channel):
        for _ in range(20):  # grpc with a time-out of nothing lets one in three through
            async with holdfast.timeout(9.0):
                with pytest.raises(holdfast.InsufficientBudget, match="10 s kept back"):
                    await orders.sleep(b"0")
        async with holdfast.timeout(20.0):
            assert await orders.sleep(b"0") == b"slept"
        assert server.seen == ["sleep"]
    async with shop(reserve=10.0, refuse_below=5.0) as (server, orders, _channel):
        async with holdfast.timeout(14.0):
            with pytest.raises(holdfast.InsufficientBudget, match="5 s needed"):
                await orders.sleep(b"0")
        assert server.seen == []


def test_so_it_is_kept_back_in_threads() -> None:
    with sync_shop(reserve=10.0) as orders:
        for _ in range(20):
            with (
                holdfast.timeout(9.0),
                pytest.raises(holdfast.InsufficientBudget, match="10 s kept back"),
            ):
                orders.sleep(b"0")
        with holdfast.timeout(20.0):
            assert orders.sleep(b"0") == b"slept"


# -- ends ----------------------------------------------------------------------------------------


class Ending(grpc.aio.UnaryUnaryClientInterceptor):
    """Ends calls some time from now as grpc does now and then."""

    def __init__(self, code: grpc.StatusCode, details: str, after: float) -> None:
        nothing = grpc.aio.Metadata()
        self._error = grpc.aio.AioRpcError(code, nothing, nothing, details)
        self._after = after

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        await asyncio.sleep(self._after)
        raise self._error


UNCLEAR = [(grpc.StatusCode.INTERNAL, FROM_CORE), (grpc.StatusCode.CANCELLED, "CANCELLED")]
CLEAR = [(grpc.StatusCode.INTERNAL, "index out of range"), (grpc.StatusCode.NOT_FOUND, FROM_CORE)]


@pytest.mark.parametrize(("code", "details"), UNCLEAR)
async def test_an_unclear_end_at_the_deadline_is_that(code: Any, details: str) -> None:
    async with shop(interceptors=[Ending(code, details, 0.3)]) as (_, orders, _channel):
        async with holdfast.timeout(0.2):  # nobody waits in it, so nobody is cancelled
            call = orders.sleep(b"0")
        with pytest.raises(holdfast.DeadlineExceeded):
            await call
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # a time-out of the caller's own
            await orders.sleep(b"0", timeout=0.2)
        assert caught.value.trail.event == "grpc.header.timeout"  # type: ignore[attr-defined]
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
        async with holdfast.timeout(20.0):  # there is time left
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await orders.sleep(b"0")
        assert caught.value.code() is code
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)


@pytest.mark.parametrize(("code", "details"), CLEAR)
async def test_a_clear_one_stays_what_it_is(code: Any, details: str) -> None:
    async with shop(interceptors=[Ending(code, details, 0.3)]) as (_, orders, _channel):
        async with holdfast.timeout(0.2):
            call = orders.sleep(b"0")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code


class Broken(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ()


class EndingInThreads(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._error = Broken(code, details)

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        time.sleep(0.3)
        raise self._error


@pytest.mark.parametrize(("code", "details"), [*UNCLEAR, *CLEAR])
def test_so_unclear_ends_are_in_threads(code: Any, details: str) -> None:
    with sync_shop(interceptors=[EndingInThreads(code, details)]) as orders:
        wanted = holdfast.DeadlineExceeded if (code, details) in UNCLEAR else Broken
        with pytest.raises(wanted), holdfast.timeout(0.2):
            orders.sleep(b"0")
        with pytest.raises(Broken), holdfast.timeout(20.0):
            orders.sleep(b"0")


def test_a_stream_that_was_cancelled_is_not_late() -> None:
    observer = SyncKept()
    with sync_shop(observer=observer) as orders, holdfast.timeout(20.0):
        stream = orders.ticks(b"0 1000 0.01", timeout=0.5)
        assert next(stream) == b"0"
        stream.cancel()
        time.sleep(0.6)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert not isinstance(caught.value, holdfast.DeadlineExceeded)
    assert observer.steps()[-1][1] is Ended.CANCELLED


async def test_streams_of_requests_that_are_cut_are_late_and_nothing_else() -> None:
    # Now and then grpc is amid a write then, and calls its end INTERNAL or CANCELLED.
    async def requests() -> Any:
        while True:
            yield b"0"

    async def one(orders: Any, turn: int) -> str:
        try:
            async with holdfast.timeout(0.01):
                if turn % 2:
                    await orders.sum(requests())
                else:
                    async for _ in orders.chat(requests()):
                        pass
        except holdfast.DeadlineExceeded:
            return "late"
        return "done"

    async with shop() as (_, orders, _channel):
        for _ in range(10):
            found = await asyncio.gather(*[one(orders, turn) for turn in range(30)])
            assert set(found) == {"late"}


async def test_what_servers_say_is_one_line_of_plain_text() -> None:
    observer = Kept()
    ending = Ending(grpc.StatusCode.INTERNAL, EVIL, 0.0)
    async with shop(observer=observer, interceptors=[ending]) as (_, orders, _channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await orders.sleep(b"0")
    assert observer.trail.line().isprintable()
    assert all(note.isprintable() for note in caught.value.__notes__)
    assert "INTERNAL: boomlevel=ERROR[31m" in observer.trail.line()
    kept = SyncKept()
    evil = EndingInThreads(grpc.StatusCode.INTERNAL, EVIL)

    def in_a_thread() -> None:
        with sync_shop(observer=kept, interceptors=[evil]) as orders, pytest.raises(Broken):
            orders.sleep(b"0")

    await asyncio.to_thread(in_a_thread)
    assert kept.calls[0][0].line().isprintable()


# -- futures -------------------------------------------------------------------------------------


def test_a_future_that_is_done_says_how() -> None:
    with sync_shop() as orders:
        for _ in range(80):
            future = orders.fail.future(b"DATA_LOSS")
            while not future.done():
                pass
            assert future.exception() is not None


class Slow:
    """An observer that takes its time, and asks."""

    def __init__(self) -> None:
        self.called, self.go_on = threading.Event(), threading.Event()
        self.future: Any = None
        self.asked: Any = None

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.called.set()
        self.go_on.wait(ENDED)
        if self.future is not None:
            self.asked = self.future.exception(ENDED)


def test_a_slow_observer_holds_up_nobody_who_asks() -> None:
    slow = Slow()
    with sync_shop(observer=slow) as orders:
        future = slow.future = orders.fail.future(b"DATA_LOSS")
        assert slow.called.wait(ENDED)
        began = time.monotonic()
        error = future.exception(ENDED)
        assert time.monotonic() - began < ENDED
        assert not slow.go_on.is_set()
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.DATA_LOSS
        slow.go_on.set()
        until = time.monotonic() + ENDED
        while slow.asked is None and time.monotonic() < until:
            time.sleep(0.01)
        assert slow.asked is error


def test_a_cancelled_future_stays_cancelled() -> None:
    observer = SyncKept()
    with sync_shop(observer=observer) as orders:
        future = orders.sleep.future(b"60")
        assert future.cancel()
        until = time.monotonic() + ENDED
        while not observer.calls and time.monotonic() < until:
            time.sleep(0.01)
        for ask in (future.exception, future.result, future.exception):
            with pytest.raises(grpc.FutureCancelledError):
                ask()
        assert future.cancelled()
    assert observer.steps()[-1][1] is Ended.CANCELLED


def test_all_who_wait_for_a_dial_are_told_the_same() -> None:
    observer = SyncKept()
    with dead(shares=QUICK_DIAL, observer=observer) as orders, ThreadPoolExecutor(4) as pool:
        with holdfast.timeout(6.0):
            future = orders.sleep.future(b"0")
        errors = list(pool.map(lambda _: future.exception(), range(4)))
        assert [type(error).__mro__[1] for error in errors] == 4 * [holdfast.net.PhaseTimeout]
        assert isinstance(future.exception(), holdfast.net.PhaseTimeout)
    assert len(observer.calls) == 1
