"""Scopes of plain functions, and what other threads may and may not do."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest

import holdfast
from holdfast import DeadlineExceeded, UsageError
from holdfast.domain.context import Carried, Identity
from holdfast.domain.tree import Outcome
from holdfast.runtime.ambient import carried, use

WHO = Carried(Identity("a" * 32, "b" * 16), "canary")


def in_thread(call: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_a_plain_scope_bounds_what_is_left() -> None:
    assert holdfast.remaining() == math.inf
    with holdfast.timeout(5, name="outer") as outer:
        assert 4 < holdfast.remaining() <= 5
        with holdfast.timeout(60, name="inner") as inner:
            assert inner.deadline == outer.deadline
        with holdfast.timeout(1, name="inner"):
            assert holdfast.remaining() <= 1
            assert holdfast.current().scope.endswith("inner")
        assert holdfast.remaining() > 1
    assert outer.outcome is Outcome.DONE
    assert holdfast.remaining() == math.inf


def test_a_plain_scope_that_ran_over_says_so_at_its_end() -> None:
    with pytest.raises(DeadlineExceeded), holdfast.timeout(0.01) as scope:
        time.sleep(0.02)
    assert scope.outcome is Outcome.EXPIRED
    assert holdfast.current().scope == ""


def test_a_plain_scope_that_is_spent_runs_nothing() -> None:
    with pytest.raises(DeadlineExceeded), holdfast.timeout(0):
        pytest.fail("the body ran")
    with pytest.raises(DeadlineExceeded), holdfast.timeout(0.01):
        time.sleep(0.02)
        with holdfast.timeout(5):
            pytest.fail("the body ran")
    assert holdfast.current().scope == ""


def test_an_error_in_a_plain_scope_goes_through() -> None:
    with pytest.raises(ValueError, match="mine"), holdfast.timeout(0.001) as scope:
        time.sleep(0.005)
        raise ValueError("mine")
    assert scope.outcome is Outcome.FAILED


def test_reserve_split_and_refuse_in_plain_functions() -> None:
    with holdfast.timeout(10):
        with holdfast.reserve(4):
            assert 5 < holdfast.remaining() <= 6
        for step in holdfast.split(1, 1):
            with step:
                assert holdfast.remaining() > 1
        with pytest.raises(holdfast.InsufficientBudget):
            holdfast.refuse_below(20)


def test_a_plain_scope_carries() -> None:
    with use(WHO):
        assert carried() == WHO
        with holdfast.timeout(5):
            assert carried() == WHO
    assert carried() != WHO


@pytest.mark.real_time("virtual", "asyncio", "uvloop")
@pytest.mark.parametrize("run", ["asyncio", "anyio"])
async def test_the_deadline_and_the_identity_go_into_a_thread(run: str) -> None:
    def work() -> tuple[float, Carried, str]:
        with holdfast.timeout(100, name="in the thread") as scope:
            return holdfast.remaining(), carried(), scope.origin

    async with holdfast.timeout(5, name="request"), use(WHO):
        call = asyncio.to_thread(work) if run == "asyncio" else anyio.to_thread.run_sync(work)
        left, who, origin = await call
    assert 0 < left <= 5
    assert who == WHO
    assert origin.startswith("request")


async def test_a_thread_of_a_cancelled_request_opens_nothing() -> None:
    entered = threading.Event()
    go = threading.Event()
    seen: list[BaseException] = []

    def work() -> None:
        entered.set()
        go.wait(5)
        try:
            with holdfast.timeout(100):
                pytest.fail("the body ran")
        except holdfast.ScopeEnded as exc:
            seen.append(exc)

    with pytest.raises(holdfast.Cancelled, match="gone"):
        async with holdfast.timeout(5) as scope:
            call = asyncio.get_running_loop().run_in_executor(None, _with_context(work))
            await asyncio.to_thread(entered.wait)
            scope.cancel("gone")
            go.set()
            await asyncio.Event().wait()
    await call
    assert isinstance(seen[0], holdfast.Cancelled)
    assert "gone" in str(seen[0])


def _with_context(work: Any) -> Any:
    import contextvars

    context = contextvars.copy_context()
    return lambda: context.run(work)


async def test_another_thread_may_read_but_not_steer() -> None:
    async with holdfast.timeout(5, name="mine") as scope:

        def steer(call: Any) -> str:
            with pytest.raises(UsageError, match="another thread"):
                call()
            return "refused"

        assert await asyncio.to_thread(steer, scope.cancel) == "refused"
        assert await asyncio.to_thread(steer, lambda: scope.move_deadline(0)) == "refused"
        assert await asyncio.to_thread(holdfast.remaining) <= 5
        assert await asyncio.to_thread(lambda: holdfast.current().scope) == "mine"
        assert scope.reached() is None


async def test_another_thread_may_cancel_through_the_loop() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.scope("mine") as scope:
            await asyncio.to_thread(lambda: loop.call_soon_threadsafe(scope.cancel))
            await asyncio.Event().wait()


def test_a_scope_that_was_not_entered_is_not_steered() -> None:
    scope = holdfast.timeout(5)
    with pytest.raises(UsageError, match="not entered"):
        scope.cancel()


def test_a_plain_scope_is_entered_once() -> None:
    scope = holdfast.timeout(5)
    with scope:
        pass
    with pytest.raises(UsageError, match="entered before"):
        scope.__enter__()


def test_threads_do_not_see_each_others_scopes() -> None:
    barrier = threading.Barrier(4)

    def work(n: int) -> tuple[str, float]:
        with holdfast.timeout(n + 1, name=f"thread-{n}"):
            barrier.wait(5)
            return holdfast.current().scope, holdfast.remaining()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    for n, (path, left) in enumerate(results):
        assert path.endswith(f"thread-{n}")
        assert n < left <= n + 1


def test_async_scopes_in_two_threads_stay_apart() -> None:
    barrier = threading.Barrier(2)

    async def work(n: int) -> tuple[str, int]:
        async with holdfast.timeout(5, name=f"loop-{n}") as scope:
            barrier.wait(5)
            await asyncio.sleep(0.01)
            depth = scope.depth
            barrier.wait(5)
            return scope.path, depth

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda n: asyncio.run(work(n)), range(2)))
    assert results == [("loop-0", 1), ("loop-1", 1)]


async def test_a_scope_in_a_callback_of_the_loop() -> None:
    seen: list[float] = []

    def callback() -> None:
        with holdfast.timeout(3, name="callback"):
            seen.append(holdfast.remaining())

    async with holdfast.timeout(2):
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
    assert seen == [pytest.approx(2)]


async def test_an_async_scope_needs_a_task() -> None:
    loop = asyncio.get_running_loop()
    seen: list[BaseException] = []

    def callback() -> None:
        coro = holdfast.timeout(1).__aenter__()
        try:
            coro.send(None)  # type: ignore[attr-defined]
        except (UsageError, StopIteration) as exc:
            seen.append(exc)

    loop.call_soon(callback)
    await asyncio.sleep(0)
    assert isinstance(seen[0], UsageError)
