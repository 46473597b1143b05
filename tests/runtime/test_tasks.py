"""Task groups and detached work, held against `asyncio.TaskGroup` where both have an answer."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import warnings
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import holdfast
from holdfast import CauseKind, DeadlineExceeded, UsageError
from holdfast.domain.context import Carried, Identity
from holdfast.domain.tree import Outcome
from holdfast.runtime.ambient import carried, use
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import ambient


class Boom(Exception):
    pass


class Crash(Exception):
    pass


def now() -> float:
    return asyncio.get_running_loop().time()


def counting() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(after: float = 0.0, error: BaseException | None = None) -> None:
    await asyncio.sleep(after)
    raise error or Boom


# -- the same as asyncio.TaskGroup ----------------------------------------------------------------


class Native:
    def __init__(self) -> None:
        self.group = asyncio.TaskGroup()

    def start(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.group.create_task(coro)


@asynccontextmanager
async def native() -> AsyncIterator[Native]:
    group = Native()
    async with group.group:
        yield group


# Before 3.13 the native group left `cancelling()` raised behind it: nothing to be measured against.
KINDS = {"own": holdfast.tasks} | ({"native": native} if sys.version_info >= (3, 13) else {})
kinds = pytest.mark.parametrize("open_group", KINDS.values(), ids=KINDS.keys())


@kinds
async def test_all_are_done_when_the_block_ends(open_group) -> None:
    async with open_group() as group:
        tasks = [group.start(asyncio.sleep(n, n)) for n in range(5)]
    assert [task.result() for task in tasks] == [0, 1, 2, 3, 4]


@kinds
async def test_one_failure_cancels_the_siblings_and_is_grouped(open_group) -> None:
    began = now()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as group:
            siblings = [group.start(forever()) for _ in range(3)]
            group.start(fail(1))
            await forever()
    assert [type(e) for e in caught.value.exceptions] == [Boom]
    assert all(task.cancelled() for task in siblings)
    assert now() == began + 1
    assert counting() == 0
    await asyncio.sleep(5)


@kinds
async def test_every_failure_is_in_the_group(open_group) -> None:
    async def fails_while_cleaning_up() -> None:
        try:
            await forever()
        finally:
            raise Crash

    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as group:
            group.start(fails_while_cleaning_up())
            group.start(fail(1))
    assert {type(e) for e in caught.value.exceptions} == {Boom, Crash}
    assert counting() == 0


@kinds
async def test_the_body_fails(open_group) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as group:
            child = group.start(forever())
            await asyncio.sleep(1)
            raise Crash
    assert [type(e) for e in caught.value.exceptions] == [Crash]
    assert child.cancelled()


@kinds
async def test_the_body_and_a_child_fail(open_group) -> None:
    async def fails_while_cleaning_up() -> None:
        try:
            await forever()
        finally:
            raise Boom

    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as group:
            group.start(fails_while_cleaning_up())
            await asyncio.sleep(1)
            raise Crash
    assert {type(e) for e in caught.value.exceptions} == {Boom, Crash}


@kinds
async def test_a_child_fails_while_the_block_is_draining(open_group) -> None:
    with pytest.raises(ExceptionGroup):
        async with open_group() as group:
            group.start(forever())
            group.start(fail(1))
    assert counting() == 0
    await asyncio.sleep(1)


@kinds
async def test_a_foreign_cancellation_of_the_body(open_group) -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await forever()
        finally:
            ended.append("child")

    async def parent() -> None:
        async with open_group() as group:
            group.start(child())
            await forever()

    task = asyncio.create_task(parent())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1
    assert ended == ["child"]


@kinds
async def test_a_foreign_cancellation_while_draining(open_group) -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.1)
            ended.append("child")

    async def parent() -> None:
        async with open_group() as group:
            group.start(child())

    task = asyncio.create_task(parent())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["child"]


@kinds
async def test_a_foreign_cancellation_while_draining_and_a_child_fails(open_group) -> None:
    async def child() -> None:
        try:
            await forever()
        finally:
            raise Boom

    after: list[str] = []

    async def parent() -> None:
        try:
            async with open_group() as group:
                group.start(child())
        except* Boom:
            after.append("handled")
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            after.append("cancelled")
            raise

    task = asyncio.create_task(parent())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert after[0] == "handled"
    assert task.cancelling() == 1


@kinds
async def test_a_child_that_cancels_itself_harms_nobody(open_group) -> None:
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_group() as group:
        odd = group.start(cancels_itself())
        even = group.start(asyncio.sleep(1, "fine"))
    assert odd.cancelled()
    assert even.result() == "fine"


@kinds
async def test_a_child_that_swallows_is_waited_for(open_group) -> None:
    async def swallows() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        await asyncio.sleep(0.2)
        return "done all the same"

    with pytest.raises(ExceptionGroup):
        async with open_group() as group:
            child = group.start(swallows())
            group.start(fail(1))
    assert child.result() == "done all the same"


@kinds
async def test_nested_groups(open_group) -> None:
    async def inner() -> None:
        async with open_group() as group:
            group.start(fail(1))
            group.start(forever())

    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as group:
            group.start(inner())
            group.start(forever())
    (nested,) = caught.value.exceptions
    assert isinstance(nested, ExceptionGroup)
    assert isinstance(nested.exceptions[0], Boom)


@kinds
async def test_a_group_inside_the_body_of_a_group(open_group) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_group() as outer:
            outer.start(fail(1))
            async with open_group() as inner:
                lost = inner.start(forever())
    assert [type(e) for e in caught.value.exceptions] == [Boom]
    assert lost.cancelled()
    assert counting() == 0
    await asyncio.sleep(1)


@kinds
async def test_children_may_start_children_while_draining(open_group) -> None:
    seen: list[int] = []

    async def spread(group, left: int) -> None:
        await asyncio.sleep(0.1)
        seen.append(left)
        if left:
            group.start(spread(group, left - 1))

    async with open_group() as group:
        group.start(spread(group, 3))
    assert seen == [3, 2, 1, 0]


@kinds
async def test_a_closed_group_starts_nothing(open_group) -> None:
    async with open_group() as group:
        pass
    coro = forever()
    with pytest.raises(RuntimeError):
        group.start(coro)
    coro.close()


@kinds
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_strongest_errors_are_not_grouped(open_group, error: type[BaseException]) -> None:
    async def main() -> None:
        async with open_group() as group:
            group.start(forever())
            group.start(fail(0.001, error()))

    with pytest.raises(error):
        asyncio.run(main())


# -- where ours says more -------------------------------------------------------------------------


async def test_siblings_read_who_failed() -> None:
    causes: list[holdfast.Cause | None] = []

    async def sibling() -> None:
        async with holdfast.scope("inside") as scope:
            try:
                await forever()
            finally:
                causes.append(scope.reached())

    with pytest.raises(ExceptionGroup):
        async with holdfast.tasks("fan-out") as group:
            group.start(sibling())
            group.start(fail(1), name="culprit")
    (cause,) = causes
    assert cause is not None
    assert cause.kind is CauseKind.SIBLING
    assert cause.scope == "fan-out"
    assert "culprit" in cause.detail
    assert "Boom" in cause.detail


async def test_one_of_a_hundred_fails() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.tasks() as group:
            others = [group.start(forever()) for _ in range(99)]
            group.start(fail(1))
    assert len(caught.value.exceptions) == 1
    assert all(task.cancelled() for task in others)
    assert driver_of(asyncio.get_running_loop()).counts["cancelled.sibling_failed"] == 1


async def test_a_cancelled_group_ends_with_the_cause() -> None:
    with pytest.raises(holdfast.Cancelled, match="enough"):
        async with holdfast.tasks() as group:
            child = group.start(forever())
            await asyncio.sleep(1)
            assert group.cancel("enough")
            assert not group.cancel("again")
            await forever()
    assert child.cancelled()
    assert counting() == 0


async def test_a_group_is_cancelled_while_it_drains() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.tasks() as group:
            child = group.start(forever())
            loop.call_later(1, group.cancel)
    assert child.cancelled()
    assert counting() == 0


async def test_a_group_with_a_deadline() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.tasks("batch", seconds=2) as group:
            children = [group.start(forever()) for _ in range(3)]
    assert now() == began + 2
    assert caught.value.cause.scope == "batch"
    assert all(child.cancelled() for child in children)


async def test_a_deadline_around_a_draining_group() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(2, name="around"), holdfast.tasks() as group:
            children = [group.start(forever()) for _ in range(3)]
    assert now() == began + 2
    assert caught.value.cause.scope == "around"
    assert all(child.cancelled() for child in children)
    assert counting() == 0
    await asyncio.sleep(5)


async def test_a_deadline_while_draining_and_a_child_fails_on_the_way_out() -> None:
    async def child() -> None:
        try:
            await forever()
        finally:
            raise Boom

    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.timeout(1, name="around"), holdfast.tasks() as group:
            group.start(child())
    assert [type(e) for e in caught.value.exceptions] == [Boom]
    assert counting() == 0
    await asyncio.sleep(1)  # nothing is left to be delivered here


async def test_a_native_deadline_while_draining_and_a_child_fails_on_the_way_out() -> None:
    async def child() -> None:
        try:
            await forever()
        finally:
            raise Boom

    with pytest.raises((ExceptionGroup, TimeoutError)):
        async with asyncio.timeout(1), holdfast.tasks() as group:
            group.start(child())
    assert counting() == 0
    await asyncio.sleep(1)


async def test_starting_in_a_cancelled_group_does_not_hide_what_failed() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.tasks() as group:
            group.start(fail(1))
            try:
                await forever()
            finally:
                group.start(forever())
    assert Boom in [type(e) for e in caught.value.exceptions]
    assert counting() == 0


async def test_starting_in_a_cancelled_group_runs_nothing() -> None:
    ran: list[str] = []

    async def body() -> None:
        ran.append("ran")

    with warnings.catch_warnings(), pytest.raises(holdfast.Cancelled):
        warnings.simplefilter("error")
        async with holdfast.tasks() as group:
            group.cancel()
            group.start(body())
        gc.collect()
    assert ran == []


async def test_starting_in_a_spent_group_runs_nothing() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.tasks(seconds=1) as group:
            loop.jump(2)  # type: ignore[attr-defined]
            group.start(forever())


async def test_a_group_that_was_not_entered_starts_nothing() -> None:
    group = holdfast.tasks()
    with pytest.raises(UsageError, match="not open"):
        group.start(forever())


async def test_a_group_does_not_open_under_a_spent_parent() -> None:
    with pytest.raises(DeadlineExceeded):
        async with holdfast.tasks(seconds=0):
            pytest.fail("the body ran")


async def test_children_see_the_deadline_and_the_identity() -> None:
    who = Carried(Identity("a" * 32, "b" * 16), "canary")
    seen: list[Any] = []

    async def child() -> None:
        seen.append((holdfast.remaining(), carried(), holdfast.current().scope))

    async with holdfast.timeout(10, name="request"), use(who), holdfast.tasks("fan") as group:
        group.start(child(), name="leaf")
    ((left, got, path),) = seen
    assert left == pytest.approx(10)
    assert got == who
    assert path == "request/request/fan/leaf"


async def test_a_child_that_ends_with_the_groups_own_end_is_no_failure() -> None:
    async def child() -> None:
        async with holdfast.scope("inner"):
            await forever()

    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.tasks("g", seconds=1) as group:
            group.start(child())
    assert caught.value.cause.scope == "g"


async def test_a_child_with_a_deadline_of_its_own_fails_the_group() -> None:
    async def child() -> None:
        async with holdfast.timeout(1, name="inner"):
            await forever()

    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.tasks("g", seconds=5) as group:
            group.start(child())
            group.start(forever())
    (error,) = caught.value.exceptions
    assert isinstance(error, DeadlineExceeded)


async def test_a_child_that_swallows_is_told_again() -> None:
    hits: list[float] = []
    began = now()

    async def stubborn() -> None:
        while len(hits) < 10:
            try:
                await asyncio.sleep(30)
                return
            except asyncio.CancelledError:
                hits.append(now() - began)

    with pytest.raises(DeadlineExceeded):
        async with holdfast.tasks("g", seconds=1) as group:
            group.start(stubborn())
    assert hits == pytest.approx([1.0, 1.5, 2.5, 4.5], abs=0.1)
    assert counting() == 0


async def test_a_scope_of_a_child_closes_with_the_childs_outcome() -> None:
    seen: dict[str, holdfast.Scope] = {}

    async def child(name: str, body: Coroutine[Any, Any, Any]) -> None:
        scope = ambient()
        seen[name] = scope
        await body

    with contextlib.suppress(ExceptionGroup):
        async with holdfast.tasks() as group:
            group.start(child("done", asyncio.sleep(0.1)))
            group.start(child("failed", fail(0.2)))
            group.start(child("cancelled", forever()))
    assert {name: scope.outcome for name, scope in seen.items()} == {
        "done": Outcome.DONE,
        "failed": Outcome.FAILED,
        "cancelled": Outcome.CANCELLED,
    }


# -- detached -------------------------------------------------------------------------------------

WHO = Carried(Identity("c" * 32, "d" * 16), "canary", {"k": "v"})


async def test_detached_work_keeps_identity_and_stage_but_no_deadline() -> None:
    seen: list[Any] = []

    async def audit() -> None:
        await asyncio.sleep(5)
        here = holdfast.current()
        seen.append((here.identity, here.stage, dict(here.baggage), holdfast.remaining()))

    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1, name="request"), use(WHO):
            task = holdfast.detach(audit(), name="audit")
            await forever()
    assert "audit" in str(holdfast.tree())
    assert "from request" in str(holdfast.tree())
    await task
    assert seen == [(WHO.identity, "canary", {"k": "v"}, float("inf"))]


async def test_detached_work_has_a_budget_of_its_own() -> None:
    async def audit() -> None:
        assert holdfast.remaining() == pytest.approx(2)
        await forever()

    began = now()
    async with holdfast.timeout(1):
        task = holdfast.detach(audit(), name="audit", timeout=2)
    with pytest.raises(DeadlineExceeded) as caught:
        await task
    assert caught.value.cause.scope == "audit"
    assert now() == began + 2
    assert counting() == 0


async def test_a_detached_scope_that_runs_out_is_expired() -> None:
    seen: list[holdfast.Scope] = []

    async def audit() -> None:
        scope = ambient()
        assert isinstance(scope, holdfast.Scope)
        seen.append(scope)
        await forever()

    task = holdfast.detach(audit(), timeout=2)
    await asyncio.wait([task])
    assert [scope.outcome for scope in seen] == [Outcome.EXPIRED]
    assert isinstance(task.exception(), DeadlineExceeded)
    assert task.cancelling() == 0
    assert len(holdfast.tree()) == 0
    assert driver_of(asyncio.get_running_loop()).troubles == 0


@pytest.mark.parametrize("timeout", [float("inf"), 2])
async def test_detached_work_that_fails_or_runs_out_is_never_silent(timeout: float) -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context))
    holdfast.detach(fail(1), timeout=timeout)
    if timeout != float("inf"):
        holdfast.detach(forever(), name="audit", timeout=timeout)
    await asyncio.sleep(3)
    gc.collect()
    loop.set_exception_handler(before)
    assert all("never retrieved" in context["message"] for context in told)
    expected = [Boom] if timeout == float("inf") else [Boom, DeadlineExceeded]
    assert [type(context["exception"]) for context in told] == expected


async def test_detached_work_that_runs_out_before_its_first_step_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    task = holdfast.detach(forever(), name="audit", timeout=2)
    # A loop that looks at its timers first, as uvloop does, cancels it before it has begun.
    loop.jump(3)  # type: ignore[attr-defined]
    driver_of(loop).timers._fire()
    await asyncio.wait([task])
    assert task.cancelled()
    assert "task 'audit' did not end its work: deadline exceeded" in caplog.text
    gc.collect()  # nothing that was never awaited


async def test_detached_work_with_a_budget_ends_with_its_own_result_or_error() -> None:
    assert await holdfast.detach(asyncio.sleep(1, "done"), timeout=2) == "done"
    with pytest.raises(Boom):
        await holdfast.detach(fail(1), timeout=2)


async def test_detached_work_that_somebody_cancels_is_cancelled_and_not_expired() -> None:
    task = holdfast.detach(forever(), timeout=2)
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert "cancelled.deadline" not in holdfast.tree().counts


async def test_detached_work_that_swallows_has_run_out_all_the_same() -> None:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return "done all the same"

    with pytest.raises(DeadlineExceeded):
        await holdfast.detach(stubborn(), timeout=2)


# A task that is not made leaves no scope.


def opens_nothing() -> None:
    assert len(holdfast.tree()) == 0
    assert driver_of(asyncio.get_running_loop()).troubles == 0


async def test_a_function_that_was_not_called_is_no_coroutine() -> None:
    for wrong in (asyncio.sleep, forever, None, 3):
        with pytest.raises(UsageError, match=r"needs a coroutine.*work\(\)"):
            holdfast.detach(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="needs a coroutine"):
            holdfast.detach(wrong, timeout=1)  # type: ignore[arg-type]
    opens_nothing()
    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.tasks() as group:
            sibling = group.start(forever())
            await asyncio.sleep(1)
            group.start(asyncio.sleep)  # type: ignore[arg-type]
    assert [type(error) for error in caught.value.exceptions] == [UsageError]
    assert sibling.cancelled()
    opens_nothing()


@pytest.mark.parametrize("timeout", [float("inf"), 3600])
async def test_a_task_factory_that_fails_leaves_nothing(timeout: float) -> None:
    def broken(*_: Any, **__: Any) -> asyncio.Task[Any]:
        raise Crash

    loop = asyncio.get_running_loop()
    driver = driver_of(loop)
    armed = len(driver.timers)
    loop.set_task_factory(broken)
    try:
        with pytest.raises(Crash):
            holdfast.detach(forever(), timeout=timeout)
        opens_nothing()
        with pytest.raises(holdfast.Cancelled):
            async with holdfast.scope("request") as scope:
                loop.call_soon(scope.cancel)
                with pytest.raises(Crash):
                    holdfast.detach(forever(), timeout=timeout)
                await forever()
    finally:
        loop.set_task_factory(None)
    opens_nothing()
    assert len(driver.timers) == armed
    assert not driver.kept
    gc.collect()  # nothing that was never awaited


async def test_a_group_whose_task_is_not_made_ends() -> None:
    def broken(*_: Any, **__: Any) -> asyncio.Task[Any]:
        raise Crash

    loop = asyncio.get_running_loop()
    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.tasks() as group:
            sibling = group.start(forever())
            loop.set_task_factory(broken)
            try:
                group.start(forever())
            finally:
                loop.set_task_factory(None)
    assert [type(error) for error in caught.value.exceptions] == [Crash]
    assert sibling.cancelled()
    opens_nothing()


async def test_detached_work_of_a_cancelled_request_starts_all_the_same() -> None:
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.scope("request") as scope:
            scope.cancel()
            task = holdfast.detach(asyncio.sleep(1, "done"))
            await forever()
    assert await task == "done"


async def test_detached_work_is_kept_alive() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(1)
        done.append("done")

    async with holdfast.scope("request"):
        holdfast.detach(work())
    gc.collect()
    await asyncio.sleep(2)
    assert done == ["done"]
    assert not driver_of(asyncio.get_running_loop()).kept


async def test_detached_work_without_a_budget_never_runs() -> None:
    ran: list[str] = []

    async def work() -> None:
        ran.append("ran")

    with pytest.raises(DeadlineExceeded):
        holdfast.detach(work(), timeout=0)
    assert ran == []


def test_detaching_needs_a_loop() -> None:
    coro = forever()
    with pytest.raises(RuntimeError):
        holdfast.detach(coro)
    coro.close()


async def test_a_chain_of_detached_work_keeps_the_first_origin_readable() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def second() -> None:
        await asyncio.sleep(1)

    async def first() -> None:
        tasks.append(holdfast.detach(second(), name="second"))

    async with holdfast.scope("request"), use(WHO):
        tasks.append(holdfast.detach(first(), name="first"))
        await asyncio.sleep(0.1)
    (live,) = (n for r in holdfast.tree().roots for n in r.children)
    assert live.stage == "canary"
    assert live.origin
    await asyncio.wait(tasks)
