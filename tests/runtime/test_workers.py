"""A pool of workers, in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from contextlib import suppress
from typing import Any

import pytest

import holdfast
from holdfast.domain.context import Carried, Identity
from holdfast.runtime.ambient import carried, use
from holdfast.runtime.workers import Workers, WorkersFull, workers

WHO = Carried(Identity("a" * 32, "b" * 16), "canary")
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(seconds: float, answer: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return answer


async def test_results_come_back_and_no_more_run_than_there_are_workers() -> None:
    most, at_once = 0, 0

    async def work(n: int) -> int:
        nonlocal most, at_once
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(1)
        at_once -= 1
        return n * n

    began = now()
    async with workers(3) as pool:
        handles = [pool.submit(work, n) for n in range(9)]
        assert [await handle for handle in handles] == [n * n for n in range(9)]
        assert await pool.run(work, 10) == 100
    assert most == 3
    assert now() == pytest.approx(began + 4)
    assert pool.stats().done == 10
    assert pool.stats().waited_max == pytest.approx(2)
    assert pool.stats().waited_p50 == pytest.approx(0.5, abs=0.5)


async def test_the_block_waits_for_its_items() -> None:
    done: list[int] = []

    async def work(n: int) -> None:
        await asyncio.sleep(1)
        done.append(n)

    async with workers(2) as pool:
        for n in range(5):
            await pool.put(work, n)
        assert not done
    assert done == [0, 1, 2, 3, 4]


async def test_an_item_has_the_context_of_who_submitted_it() -> None:
    async def work() -> tuple[Carried, str, float]:
        await asyncio.sleep(0)
        return carried(), VARIABLE.get(), holdfast.remaining()

    async with workers(1) as pool:
        blocker = pool.submit(take, 1)
        async with use(WHO), holdfast.timeout(5):
            VARIABLE.set("mine")
            handle = pool.submit(work)
            VARIABLE.set("another")
            who, variable, left = await handle
        await blocker
        _, variable_of_the_next, left_of_the_next = await pool.run(work)
    assert who == WHO
    assert variable == "mine"
    assert left == pytest.approx(4)
    assert variable_of_the_next == "another"
    assert left_of_the_next == float("inf")


async def test_what_expires_in_the_queue_is_not_begun() -> None:
    async with workers(1, name="pool") as pool:
        slow = pool.submit(take, 10)
        with pytest.raises(holdfast.InsufficientBudget, match=r"pool/take.*waited 2 s in the q"):
            async with holdfast.timeout(2):
                await pool.run(take, 0)
        async with holdfast.timeout(3):
            await pool.put(take, 0)
        assert pool.stats().queued == 1
        await asyncio.sleep(4)
        assert pool.stats().queued == 0  # though no worker was free
        await slow
    assert pool.stats().dropped == 2
    assert pool.stats().done == 1


async def test_a_handle_is_told_at_the_deadline_wherever_it_is_awaited() -> None:
    async with workers(1) as pool:
        pool.submit(take, 10)
        async with holdfast.timeout(2):
            handle = pool.submit(take, 0)
        began = now()
        with pytest.raises(holdfast.InsufficientBudget, match="waited 2 s"):
            await handle
        assert now() == pytest.approx(began + 2)


async def test_what_runs_too_long_is_told_differently() -> None:
    async with workers(1, name="pool") as pool:
        pool.submit(take, 1)
        async with holdfast.timeout(3):
            handle = pool.submit(take, 10)
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await handle
    assert not isinstance(caught.value, holdfast.InsufficientBudget)
    assert "pool/take" in str(caught.value)
    assert "ran 2 s" in str(caught.value)
    assert caught.value.__notes__ == ["before it began it had waited 1 s in the queue"]
    assert pool.stats().cancelled == 1


async def test_a_spent_budget_is_not_taken() -> None:
    async with workers(1) as pool:
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(1):
                try:
                    await asyncio.sleep(2)
                finally:
                    with pytest.raises(holdfast.InsufficientBudget):
                        pool.submit(take, 0)


async def test_the_earliest_deadline_comes_first() -> None:
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(1)

    async with workers(1, order="deadline") as pool:
        await pool.put(work, "first")
        for name, seconds in (("none", None), ("30", 30), ("10", 10), ("20", 20), ("10b", 10)):
            async with holdfast.timeout(seconds or float("inf")):
                await pool.put(work, name)
    assert order == ["first", "10", "10b", "20", "30", "none"]


async def test_a_full_queue_refuses_or_makes_wait() -> None:
    async with workers(1, most=2) as pool:
        for _ in range(3):
            pool.submit(take, 1)
        with pytest.raises(asyncio.QueueFull):
            pool.submit(take, 1)
        with pytest.raises(WorkersFull, match="2 items wait already"):
            pool.submit(take, 1)
        began = now()
        await pool.put(take, 1)
        assert now() == pytest.approx(began + 1)
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.5):
                await pool.put(take, 1)
        assert now() == pytest.approx(began + 1.5)
    assert pool.stats().done == 4


async def test_places_go_to_who_came_first() -> None:
    order: list[int] = []

    async def putter(pool: Workers, n: int) -> None:
        await pool.put(take, 1)
        order.append(n)

    async with workers(1, most=1) as pool, holdfast.tasks() as group:
        pool.submit(take, 1)
        pool.submit(take, 1)
        tasks = [group.start(putter(pool, n)) for n in range(6)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
    assert order == [1, 2, 4, 5]


async def test_a_putter_that_got_its_place_and_is_cancelled_passes_it_on() -> None:
    async with workers(1, most=0) as pool, holdfast.tasks() as group:
        first = pool.submit(take, 1)
        one = group.start(pool.put(take, 1))
        two = group.start(pool.put(take, 1))
        first.add_done_callback(lambda _: one.cancel())
        await asyncio.wait([two])
    assert pool.stats().done == 2


async def test_who_waits_for_a_place_in_a_pool_that_is_cancelled_is_told_why() -> None:
    async with holdfast.tasks() as group:
        with pytest.raises(holdfast.Cancelled, match="enough"):  # noqa: PT012
            async with workers(1, most=0) as pool:
                await pool.put(take, 100)
                waiting = group.start(quietly(pool, told := []))
                await asyncio.sleep(1)
                pool.cancel("enough")
                await asyncio.Event().wait()
        await asyncio.wait([waiting])
    assert "enough" in str(told[0])


async def quietly(pool: Workers, told: list[Any]) -> None:
    try:
        await pool.put(take, 1)
    except holdfast.ScopeEnded as error:
        told.append(error)


async def test_without_room_items_go_straight_to_a_worker() -> None:
    async with workers(2, most=0) as pool:
        for n in range(6):
            assert await pool.put(take, 1) is None, n
    assert pool.stats().waited_max > 0  # for a place
    assert pool.stats().done == 6


@pytest.mark.parametrize("how", ["cancel the scope", "cancel the task"])
async def test_who_submitted_and_was_cancelled_takes_its_items_along(how: str) -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(name)

    async with workers(1) as pool, holdfast.tasks() as group:

        async def caller() -> None:
            with suppress(holdfast.Cancelled):
                await submitter()

        async def submitter() -> None:
            async with holdfast.scope("caller") as scope:
                scopes.append(scope)
                await pool.put(work, "running")
                await pool.put(work, "queued")
                await asyncio.Event().wait()

        scopes: list[holdfast.Scope] = []
        task = group.start(caller())
        await asyncio.sleep(1)
        if how == "cancel the scope":
            scopes[0].cancel("gone")
        else:
            task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)
        assert ended == ["running"]
        assert pool.stats().queued == pool.stats().running == 0
        assert await pool.run(take, 1, "usable") == "usable"
    assert pool.stats().dropped == 1
    assert pool.stats().cancelled == 1


async def test_who_has_left_in_peace_leaves_its_items_their_deadline() -> None:
    async with workers(1) as pool:
        async with holdfast.timeout(5):
            handle = pool.submit(take, 3, "done")
            other = pool.submit(take, 3, "too late")
        assert await handle == "done"
        with pytest.raises(holdfast.DeadlineExceeded):
            await other


async def test_cancelling_a_handle() -> None:
    async with workers(1) as pool:
        running, queued = pool.submit(take, 100), pool.submit(take, 100)
        queued.cancel()
        running.cancel()
        await asyncio.sleep(0.01)
        assert (pool.stats().running, pool.stats().queued) == (0, 0)
    assert (pool.stats().cancelled, pool.stats().dropped) == (1, 1)


async def test_an_item_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Fatal(BaseException):
        pass

    async def poison(what: type[BaseException]) -> None:
        await asyncio.sleep(0)
        raise what("poison")

    def unmade() -> Any:
        raise ZeroDivisionError("no coroutine")

    async with workers(2) as pool:
        for kind in (ValueError, Fatal):
            with pytest.raises(kind, match="poison"):
                await pool.run(poison, kind)
        with pytest.raises(ZeroDivisionError):
            await pool.run(unmade)
        with pytest.raises(holdfast.UsageError, match=r"asyncio\.to_thread"):
            await pool.run(len, [])  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await pool.run(take)  # type: ignore[call-arg]
        with caplog.at_level(logging.ERROR, "holdfast.workers"):
            await pool.put(poison, ValueError)
            await pool.put(unmade)
        assert await pool.run(take, 1, "usable") == "usable"
    assert [r.message for r in caplog.records] == [
        "'unmade' in the pool 'workers' failed: ZeroDivisionError('no coroutine')",
        "'poison' in the pool 'workers' failed: ValueError('poison')",
    ]
    assert all(record.exc_info for record in caplog.records)
    assert pool.stats().failed == 7


async def test_an_error_of_its_own_scope_is_a_failure_of_the_item() -> None:
    async def work() -> None:
        async with holdfast.timeout(1):
            await asyncio.Event().wait()

    async with workers(1) as pool:
        with pytest.raises(holdfast.DeadlineExceeded, match="work/timeout"):
            await pool.run(work)
    assert pool.stats().failed == 1


@pytest.mark.parametrize("queued", [0, 3])
async def test_a_block_that_fails_takes_its_items_along(queued: int) -> None:
    handles: list[asyncio.Future[Any]] = []
    with pytest.raises(ValueError, match="the block"):  # noqa: PT012
        async with workers(1) as pool:
            handles += [pool.submit(take, 100) for _ in range(1 + queued)]
            await asyncio.sleep(1)
            raise ValueError("the block")
    for handle in handles:
        with pytest.raises(holdfast.Cancelled, match="the block"):
            await handle
    assert pool.stats().dropped == queued


async def test_a_pool_whose_limit_is_spent() -> None:
    handles: list[asyncio.Future[Any]] = []
    began = now()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with workers(1, seconds=3) as pool:
            handles += [pool.submit(take, 2), pool.submit(take, 100), pool.submit(take, 1)]
    assert now() == pytest.approx(began + 3)
    await handles[0]
    for handle in handles[1:]:
        with pytest.raises(holdfast.DeadlineExceeded):
            await handle


async def test_a_pool_that_is_cancelled_from_above_while_it_drains() -> None:
    with pytest.raises(holdfast.Cancelled, match="enough"):  # noqa: PT012
        async with holdfast.scope("above") as above, workers(2) as pool:
            for _ in range(5):
                await pool.put(take, 100)
            asyncio.get_running_loop().call_later(3, above.cancel, "enough")
    assert pool.stats().cancelled == 2
    assert pool.stats().dropped == 3


async def test_a_native_cancellation_of_a_pool_that_drains() -> None:
    async def block() -> None:
        async with workers(1) as pool:
            await pool.put(take, 100)
            await pool.put(take, 100)

    async with holdfast.tasks() as group:
        task = group.start(block())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_pool_that_is_over_takes_nothing() -> None:
    pool = workers(1)
    with pytest.raises(holdfast.UsageError, match="not open"):
        pool.submit(take, 1)
    async with pool:
        pass
    with pytest.raises(holdfast.UsageError, match="not open"):
        await pool.run(take, 1)


async def test_another_loop_is_told() -> None:
    async with workers(1) as pool:

        def elsewhere() -> None:
            async def main() -> None:
                with pytest.raises(holdfast.UsageError, match="another loop"):
                    pool.submit(take, 1)

            asyncio.run(main())

        await asyncio.to_thread(elsewhere)


async def test_detached_items_keep_identity_and_stage_and_no_deadline() -> None:
    async def work() -> tuple[Carried, float]:
        await asyncio.sleep(5)
        return carried(), holdfast.remaining()

    async with workers(1, detached=True) as pool:
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with use(WHO), holdfast.timeout(1):
                handle = pool.submit(work)
                await asyncio.Event().wait()
        assert await handle == (WHO, float("inf"))


async def test_items_may_submit_items() -> None:
    async def work(pool: Workers, depth: int) -> None:
        if depth:
            await pool.put(work, pool, depth - 1)

    async with workers(1) as pool:
        await pool.put(work, pool, 10)
    assert pool.stats().done == 11


async def test_an_error_that_nobody_retrieves_is_reported_by_asyncio() -> None:
    async def fails() -> None:
        raise ValueError("lost")

    reports: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: reports.append(what["message"]))
    async with workers(1) as pool:
        pool.submit(fails)
    gc.collect()
    loop.set_exception_handler(None)
    assert reports == ["Future exception was never retrieved"]


async def test_ten_thousand_items() -> None:
    async with workers(16, most=100_000) as pool:
        handles = [pool.submit(take, 0.01, n) for n in range(10_000)]
        for handle in handles[::3]:
            handle.cancel()
    done = [handle.result() for handle in handles if not handle.cancelled()]
    assert len(done) >= 6666
    assert pool.stats().queued == pool.stats().running == 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="one worker"):
        workers(0)
    with pytest.raises(ValueError, match="'fifo' or 'deadline'"):
        workers(1, order="random")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        workers(1, seconds="3s")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nan"):
        workers(1, seconds=float("nan"))
