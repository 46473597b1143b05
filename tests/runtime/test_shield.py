"""Shields: clean-up that a cancellation does not reach, within bounds."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012, PT017
from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

import holdfast
from holdfast import DeadlineExceeded
from holdfast.runtime.driver import driver_of


def now() -> float:
    return asyncio.get_running_loop().time()


def counting() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def forever() -> None:
    await asyncio.Event().wait()


async def test_clean_up_after_the_deadline_is_done_and_the_error_is_the_deadlines() -> None:
    done: list[float] = []
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="work"):
            try:
                await forever()
            finally:
                async with holdfast.shield(0.5):
                    await asyncio.sleep(0.3)
                    done.append(now() - began)
    assert done == [pytest.approx(1.3)]
    assert caught.value.cause.scope == "work"
    assert counting() == 0


async def test_a_shield_that_is_open_when_the_deadline_comes_finishes() -> None:
    done: list[str] = []
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="work"):
            async with holdfast.shield(0.5):
                await asyncio.sleep(1.3)
                done.append("shielded")
            await forever()
    assert done == ["shielded"]
    assert caught.value.cause.scope == "work"
    assert now() - began == pytest.approx(1.3, abs=0.05)
    assert counting() == 0


async def test_a_spent_scope_is_over_at_the_first_await_after_the_shield() -> None:
    reached: list[str] = []
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            async with holdfast.shield(5):
                await asyncio.sleep(3)
            reached.append("before the await")
            await forever()
    assert reached == ["before the await"]


async def test_a_shield_that_overruns_is_ended_by_its_own_grace() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="work"):
            try:
                await forever()
            finally:
                async with holdfast.shield(0.5, name="tidy"):
                    await forever()
    assert now() - began == pytest.approx(1.5, abs=0.05)
    assert caught.value.cause.scope in ("work", "work/tidy")
    assert counting() == 0


async def test_a_shield_that_overruns_and_swallows_is_reported_with_its_stack() -> None:
    async def hang() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        await asyncio.sleep(0.8)

    with contextlib.suppress(DeadlineExceeded):
        async with holdfast.timeout(1, name="work"), holdfast.shield(0.5, name="tidy"):
            await hang()
    reports = driver_of(asyncio.get_running_loop()).swallowed
    assert [report.scope for report in reports] == ["work/tidy"]
    assert any("hang" in line for line in reports[0].stack)
    assert counting() == 0


async def test_the_grace_is_given_once() -> None:
    began = now()
    with contextlib.suppress(DeadlineExceeded):
        async with holdfast.timeout(2, grace=1):
            try:
                await forever()
            finally:
                for _ in range(10):
                    with contextlib.suppress(DeadlineExceeded):
                        async with holdfast.shield(1):
                            await forever()
    assert 1 < now() - began <= 2.05


async def test_a_shield_without_a_cancellation_is_only_a_name() -> None:
    async with holdfast.timeout(10):
        async with holdfast.shield(0.5) as shield:
            await asyncio.sleep(5)
            assert shield.reached() is None
        await asyncio.sleep(1)


async def test_a_shield_without_a_scope_around_it() -> None:
    async with holdfast.shield(0.5):
        await asyncio.sleep(5)


async def test_shields_nest() -> None:
    done: list[float] = []
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            async with holdfast.shield(2, name="outer"):
                async with holdfast.shield(1, name="inner"):
                    await asyncio.sleep(1.5)
                    done.append(now() - began)
                await asyncio.sleep(1)
                done.append(now() - began)
            await forever()
    assert done == pytest.approx([1.5, 2.5])
    assert counting() == 0


async def test_a_timeout_inside_a_shield_still_holds() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="work"):
            try:
                await forever()
            finally:
                try:
                    async with holdfast.shield(2), holdfast.timeout(0.2, name="step"):
                        await forever()
                except DeadlineExceeded as exc:
                    assert exc.cause.scope.endswith("step")
                    assert now() - began == pytest.approx(1.2, abs=0.05)
    assert caught.value.cause.scope == "work"
    assert counting() == 0


async def test_a_shield_in_a_child_is_not_reached_by_its_parents_cancellation() -> None:
    done: list[float] = []
    began = now()

    async def child() -> None:
        async with holdfast.shield(0.5):
            await asyncio.sleep(1.2)
            done.append(now() - began)
        await forever()

    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1), holdfast.tasks() as group:
            group.start(child())
    assert done == [pytest.approx(1.2)]
    assert now() - began == pytest.approx(1.2, abs=0.06)


async def test_a_group_inside_a_shield_is_shielded() -> None:
    done: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1.2)
        done.append("child")

    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            async with holdfast.shield(0.5), holdfast.tasks() as group:
                group.start(child())
            await forever()
    assert done == ["child"]
    assert counting() == 0


async def test_a_shield_that_overruns_ends_the_group_inside() -> None:
    began = now()
    with contextlib.suppress(DeadlineExceeded):
        async with holdfast.timeout(1), holdfast.shield(0.5), holdfast.tasks() as group:
            child = group.start(forever())
    assert child.cancelled()
    assert now() - began == pytest.approx(1.5, abs=0.05)
    assert counting() == 0


async def test_a_second_cancellation_does_not_shorten_the_grace_again() -> None:
    done: list[float] = []
    began = now()
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.timeout(5, name="outer") as outer:
            try:
                async with holdfast.timeout(1, name="inner"):
                    try:
                        await forever()
                    finally:
                        async with holdfast.shield(0.5):
                            await asyncio.sleep(0.2)
                            outer.cancel("now all of it")
                            await asyncio.sleep(0.2)
                            done.append(now() - began)
            except DeadlineExceeded:
                await forever()
    assert done == [pytest.approx(1.4)]
    assert counting() == 0


async def test_a_foreign_cancellation_goes_through_and_is_not_lost() -> None:
    async def body() -> None:
        async with holdfast.timeout(10), holdfast.shield(1):
            await forever()

    task = asyncio.create_task(body())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1


async def test_the_deadline_between_leaving_the_work_and_entering_the_shield() -> None:
    done: list[str] = []
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            loop.jump(1.1)  # type: ignore[attr-defined] - spent, and the loop does not know yet
            async with holdfast.shield(0.5):
                await asyncio.sleep(0.3)
                done.append("shielded")
            await forever()
    assert done == ["shielded"]
    assert counting() == 0


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan")])
def test_a_shield_needs_a_bound(grace: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        holdfast.shield(grace)


async def test_a_shield_is_used_once() -> None:
    shield = holdfast.shield(1)
    async with shield:
        pass
    with pytest.raises(holdfast.UsageError):
        async with shield:
            pass


# -- shields of anyio -----------------------------------------------------------------------------


async def test_the_delivery_waits_for_a_shield_of_anyio() -> None:
    done: list[float] = []
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(1.3)
                done.append(now() - began)
            await forever()
    assert done == [pytest.approx(1.3)]
    assert now() - began == pytest.approx(1.3, abs=0.06)
    assert counting() == 0


async def test_the_delivery_does_not_wait_for_ever() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            with anyio.CancelScope(shield=True):
                await forever()
    assert now() - began == pytest.approx(2, abs=0.06)
    assert counting() == 0


async def test_a_shield_of_anyio_around_the_scope_is_not_in_the_way() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        with anyio.CancelScope(shield=True):
            async with holdfast.timeout(1):
                await forever()
    assert now() == began + 1


async def test_a_shield_of_anyio_below_a_foreign_task_group() -> None:
    done: list[str] = []

    async def child() -> None:
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(1.2)
            done.append("child")

    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1), anyio.create_task_group() as group:
            group.start_soon(child)
    assert done == ["child"]
    assert counting() == 0


async def test_a_worker_thread_is_waited_for_without_a_bound() -> None:
    import threading

    release = threading.Event()
    began = now()
    asyncio.get_running_loop().call_later(1.2, release.set)
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(0.05):
            await anyio.to_thread.run_sync(release.wait)
            await forever()
    assert now() - began >= 1.15
    assert counting() == 0
