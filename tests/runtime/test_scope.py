"""Scopes on a loop: opening, expiring, cancelling, leaving."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012, SIM117, RUF043
from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest

import holdfast
from holdfast import CauseKind, DeadlineExceeded, InsufficientBudget, UsageError
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.domain.tree import Outcome
from holdfast.runtime.ambient import now as ambient_now
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.scope import ambient


def now() -> float:
    return asyncio.get_running_loop().time()


def counting() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def driver() -> Driver:
    return driver_of(asyncio.get_running_loop())


async def forever() -> None:
    await asyncio.Event().wait()


# -- entering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, -math.inf, 0.0])
async def test_expired_on_entry_the_body_never_runs(seconds: float) -> None:
    ran = False
    with pytest.raises(DeadlineExceeded, match="before .* was entered"):
        async with holdfast.timeout(seconds):
            ran = True
    assert not ran
    assert counting() == 0
    assert len(holdfast.tree()) == 0


async def test_expired_parent_the_body_never_runs_and_the_error_says_how_late() -> None:
    ran = False
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="outer"):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
            async with holdfast.timeout(5, name="inner"):
                ran = True
    assert not ran
    assert caught.value.cause.scope == "outer"


async def test_expired_by_blocking_code_names_the_outer() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="outer"):
            loop.jump(1.5)  # type: ignore[attr-defined] - blocking code that never awaits
            async with holdfast.timeout(5, name="inner"):
                pytest.fail("the body ran")
    assert caught.value.cause.scope == "outer"
    assert caught.value.cause.budget == pytest.approx(1)
    assert "500 ms" in str(caught.value)


async def test_too_little_left_is_refused_with_a_reason_of_its_own() -> None:
    async with holdfast.timeout(0.05, name="small"):
        with pytest.raises(InsufficientBudget, match="50 ms left, 200 ms needed") as caught:
            holdfast.refuse_below(0.2)
        holdfast.refuse_below(0.01)
    assert holdfast.tree().counts["refused.too_little"] == 1
    assert caught.value.cause.kind is CauseKind.DEADLINE
    assert isinstance(caught.value, TimeoutError)
    holdfast.refuse_below(1e9)  # without a deadline everything suffices


async def test_an_inner_longer_than_the_outer_is_the_outer_and_arms_no_timer() -> None:
    async with holdfast.timeout(1, name="outer") as outer:
        armed = len(driver().timers)
        async with holdfast.timeout(5, name="inner") as inner:
            assert inner.deadline == outer.deadline
            assert len(driver().timers) == armed
            assert holdfast.remaining() == pytest.approx(1)
        async with holdfast.timeout(1, name="equal"):
            assert len(driver().timers) == armed


async def test_an_inner_longer_than_the_outer_leaves_the_conversion_to_the_outer() -> None:
    seen: list[BaseException] = []
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="outer"):
            try:
                async with holdfast.timeout(5, name="inner"):
                    await forever()
            except BaseException as exc:
                seen.append(exc)
                raise
    assert isinstance(seen[0], asyncio.CancelledError)
    assert caught.value.cause.scope == "outer"
    assert counting() == 0


async def test_only_the_shorter_inner_converts_and_the_outer_has_exactly_its_rest() -> None:
    async with holdfast.timeout(3, name="outer"):
        with pytest.raises(DeadlineExceeded) as caught:
            async with holdfast.timeout(1, name="inner"):
                await forever()
        assert caught.value.cause.scope == "outer/inner"
        assert holdfast.remaining() == pytest.approx(2)
        await asyncio.sleep(1.9)
        assert counting() == 0


async def test_both_in_the_same_tick_the_outer_wins() -> None:
    at = now() + 1
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1 + 1e-12, name="outer"):
            async with holdfast.deadline_at(at, name="inner"):
                await forever()
    assert caught.value.cause.scope in ("outer", "outer/inner")
    assert counting() == 0


async def test_both_due_when_the_loop_was_blocked_the_outer_wins() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(2, name="outer"), holdfast.timeout(1, name="inner"):
            loop.call_soon(loop.jump, 5.0)  # type: ignore[attr-defined]
            await forever()
    assert caught.value.cause.scope == "outer"
    assert counting() == 0
    assert driver().counts["cancelled.deadline"] == 1


@pytest.mark.parametrize("bad", [math.nan])
async def test_a_deadline_that_is_no_number_is_refused(bad: float) -> None:
    for make in (holdfast.timeout, holdfast.deadline_at, holdfast.shield, holdfast.reserve):
        with pytest.raises(ValueError, match="number|nan"):
            make(bad)
    with pytest.raises(ValueError, match="grace"):
        holdfast.timeout(1, grace=bad)
    with pytest.raises(ValueError, match="nan|number"):
        holdfast.tasks(seconds=bad)


@pytest.mark.parametrize("grace", [1, 1.0, 2, 3600])
async def test_a_grace_that_leaves_nothing_for_the_work_is_refused(grace: float) -> None:
    with pytest.raises(ValueError, match=r"must be shorter than the time-out \(1 s\)"):
        holdfast.timeout(1, grace=grace)
    holdfast.timeout(math.inf, grace=grace)


async def test_a_budget_that_is_spent_already_is_told_as_such_with_a_grace_too() -> None:
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(0, grace=1):
            pytest.fail("the body ran")


@pytest.mark.parametrize("bad", ["3s", "3", None, timedelta(seconds=3), Decimal(3)])
async def test_what_is_no_number_of_seconds_is_told_where_it_is_written(bad: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: holdfast.timeout(bad),
        lambda: holdfast.timeout(1, grace=bad or "none"),
        lambda: holdfast.deadline_at(bad),
        lambda: holdfast.reserve(bad),
        lambda: holdfast.shield(bad),
        lambda: holdfast.tasks(seconds=bad),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="number of seconds.*parse_duration"):
            call()
    coro = forever()
    with pytest.raises(TypeError, match=r"detach\(\) takes a number of seconds"):
        holdfast.detach(coro, timeout=bad)
    coro.close()
    async with holdfast.timeout(1) as scope:
        with pytest.raises(TypeError, match="number of seconds"):
            scope.move_deadline(bad)
        assert scope.remaining() == pytest.approx(1)


async def test_what_needs_an_open_scope_says_so() -> None:
    scope = holdfast.timeout(1, name="early")
    for call in (scope.remaining, scope.age, scope.cancel):
        with pytest.raises(UsageError, match="'early'.*not entered.*async with"):
            call()
    async with scope:
        assert scope.remaining() == pytest.approx(1)
        assert scope.age() == 0


async def test_dir_shows_what_users_need() -> None:
    async with holdfast.timeout(1) as scope, holdfast.shield(1) as shield:
        for one in (scope, shield, holdfast.scope("new")):
            shown = {name for name in dir(one) if not name.startswith("__")}
            assert shown == SHOWN
            assert "__aenter__" in dir(one)
            for name in shown:
                assert hasattr(one, name)


SHOWN = {
    *("age", "budget", "cancel", "carried", "cause", "deadline", "move_deadline", "name"),
    *("origin", "outcome", "path", "reached", "remaining"),
}


async def test_infinite_is_no_deadline_and_never_an_immediate_one() -> None:
    async with holdfast.timeout(math.inf), holdfast.deadline_at(math.inf):
        assert holdfast.remaining() == math.inf
        assert len(driver().timers) == 0
        await asyncio.sleep(1e6)
    assert holdfast.remaining() == math.inf


async def test_a_scope_is_entered_once() -> None:
    scope = holdfast.scope("once")
    async with scope:
        with pytest.raises(UsageError, match="entered before"):
            async with scope:
                pass
    with pytest.raises(UsageError, match="entered before"):
        async with scope:
            pass
    refused = holdfast.timeout(0)
    for error in (DeadlineExceeded, UsageError):
        with pytest.raises(error):
            async with refused:
                pass


async def test_a_plain_with_is_refused_in_a_coroutine() -> None:
    with pytest.raises(UsageError, match="async with"), holdfast.timeout(1):
        pass


# -- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt(), GeneratorExit()])
async def test_leaving_always_releases(error: BaseException | None) -> None:
    ref: list[holdfast.Scope] = []
    with contextlib.suppress(ValueError, KeyboardInterrupt, GeneratorExit):
        async with holdfast.timeout(10) as scope:
            ref.append(scope)
            assert len(driver().timers) == 1
            if error is not None:
                raise error
    assert len(driver().timers) == 0
    assert ref[0].outcome is (Outcome.DONE if error is None else Outcome.FAILED)
    assert len(holdfast.tree()) == 0
    assert holdfast.current().scope == ""


async def test_an_error_of_the_body_goes_through_after_the_deadline() -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        async with holdfast.timeout(1, name="spent"):
            try:
                await forever()
            except asyncio.CancelledError:
                raise ValueError("mine") from None
    assert any("deadline exceeded in scope 'spent'" in note for note in caught.value.__notes__)
    assert counting() == 0
    await asyncio.sleep(10)


async def test_a_body_that_never_yields_is_late_all_the_same() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(DeadlineExceeded, match="noticed when the block ended"):
        async with holdfast.timeout(1):
            loop.jump(2.0)  # type: ignore[attr-defined]
    assert counting() == 0


async def test_leaving_in_the_wrong_order_keeps_the_tree_whole() -> None:
    outer = await holdfast.timeout(5, name="outer").__aenter__()
    inner = await holdfast.timeout(3, name="inner").__aenter__()
    await outer.__aexit__(None, None, None)
    assert len(holdfast.tree()) == 1
    await asyncio.sleep(0.01)
    assert holdfast.tree().counts["escaped"] == 1
    assert holdfast.current().scope.endswith("inner")
    await inner.__aexit__(None, None, None)
    assert len(holdfast.tree()) == 0
    assert holdfast.remaining() == math.inf


# -- cancelling -----------------------------------------------------------------------------------


async def test_the_first_cause_wins_and_is_read_below() -> None:
    with pytest.raises(holdfast.Cancelled, match="first") as caught:
        async with holdfast.scope("outer") as outer, holdfast.scope("inner") as inner:
            assert outer.cancel("first")
            assert not outer.cancel("second")
            assert not inner.cancel("third")
            cause = inner.reached()
            assert cause is not None
            assert (cause.detail, cause.scope) == ("first", "outer")
            assert cause.kind is CauseKind.CALLER
            with pytest.raises(holdfast.Cancelled, match="first"):
                async with holdfast.scope("too late"):
                    pytest.fail("the body ran")
            await forever()
    assert caught.value.cause is cause
    assert counting() == 0


async def test_cancelling_below_does_not_reach_up() -> None:
    async with holdfast.timeout(5) as outer:
        with pytest.raises(holdfast.Cancelled):
            async with holdfast.scope("inner") as inner:
                inner.cancel()
                await forever()
        assert outer.reached() is None
        await asyncio.sleep(1)
    assert outer.outcome is Outcome.DONE


async def test_cancelling_a_closed_scope_does_nothing() -> None:
    async with holdfast.scope("closed") as scope:
        pass
    assert scope.cancel() is False
    await asyncio.sleep(5)
    assert counting() == 0


@pytest.mark.parametrize("order", ["foreign first", "deadline first"])
async def test_a_foreign_cancellation_and_the_deadline_in_one_tick(order: str) -> None:
    async def body() -> None:
        async with holdfast.timeout(1, name="due"):
            await forever()

    loop = asyncio.get_running_loop()
    if order == "foreign first":
        handle = [None]
        loop.call_at(now() + 1, lambda: task.cancel("foreign"))
        task = asyncio.create_task(body())
    else:
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        handle = [loop.call_at(now() + 1, lambda: task.cancel("foreign"))]
    assert handle is not None
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1


@pytest.mark.parametrize("order", list(permutations(["deadline", "scope", "foreign"])))
async def test_three_cancellations_before_the_task_runs_again(order: tuple[str, ...]) -> None:
    notes: list[str] = []

    async def body() -> None:
        async with holdfast.timeout(10, name="outer") as outer:
            scopes.append(outer)
            try:
                await forever()
            except asyncio.CancelledError as exc:
                notes.extend(getattr(exc, "__notes__", ()))
                raise

    scopes: list[holdfast.Scope] = []
    task = asyncio.create_task(body())
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    act = {
        "deadline": lambda: scopes[0].move_deadline(now()),
        "scope": lambda: scopes[0].cancel(),
        "foreign": lambda: task.cancel(),
    }
    for what in order:
        loop.call_soon(act[what])
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1


async def test_the_counters_balance_when_the_inner_is_caught_while_the_outer_comes() -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1.1, name="outer"):
            try:
                async with holdfast.timeout(1, name="inner"):
                    try:
                        await forever()
                    finally:
                        await asyncio.sleep(0.2)  # the outer expires in here
            except DeadlineExceeded:
                await forever()
    assert caught.value.cause.scope == "outer"
    assert counting() == 0


async def test_a_task_that_somebody_else_cancelled_is_not_my_cancellation() -> None:
    other = asyncio.create_task(forever())
    asyncio.get_running_loop().call_later(1, other.cancel)
    with pytest.raises(asyncio.CancelledError):
        async with holdfast.timeout(5) as scope:
            await other
    assert scope.cause is None
    assert scope.reached() is None
    assert counting() == 0


async def test_the_deadline_beats_a_cancelled_dependency() -> None:
    other = asyncio.create_task(forever())
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            await other
    assert other.cancelled()  # awaiting a task hands the cancellation on


async def test_cancel_before_the_first_step() -> None:
    ran: list[str] = []

    async def body() -> None:
        ran.append("ran")

    with pytest.raises(holdfast.Cancelled):
        async with holdfast.tasks() as group:
            child = group.start(body())
            group.cancel("at once")
    assert child.cancelled()
    assert ran == []
    native = asyncio.create_task(body())
    native.cancel()
    await asyncio.wait([native])
    assert ran == []


async def test_a_scope_cancelled_by_a_child_that_the_loop_started() -> None:
    async with holdfast.timeout(5) as scope:

        async def child() -> None:
            async with holdfast.timeout(3, name="in the child") as inner:
                assert inner.parent is scope
                await forever()

        task = asyncio.create_task(child())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_native_child_that_outlives_its_scope_is_counted_and_keeps_its_limit() -> None:
    seen: list[float] = []

    async def child() -> None:
        try:
            async with holdfast.timeout(10, name="inner"):
                await forever()
        except DeadlineExceeded:
            seen.append(now())

    began = now()
    async with holdfast.timeout(2, name="outer"):
        task = asyncio.create_task(child())
        await asyncio.sleep(1)
    assert holdfast.tree().counts["escaped"] == 1
    assert "from outer/inner" in str(holdfast.tree())
    await asyncio.wait([task])
    assert seen == [began + 2]


# -- deeper nests in one task ---------------------------------------------------------------------


async def test_the_middle_cleans_up_behind_a_shield_and_then_awaits() -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="top"), holdfast.scope("middle"):
            try:
                async with holdfast.scope("leaf"):
                    await forever()
            finally:
                async with holdfast.shield(0.3):
                    await asyncio.sleep(0.2)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(5)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(5)
    assert caught.value.cause.scope == "top"
    assert counting() == 0


@pytest.mark.parametrize("slow", [0.1, 0.4, 0.6, 1.2, 3.0])
@pytest.mark.parametrize("depth", [2, 3, 4])
async def test_slow_clean_up_at_every_level_leaves_the_counters_balanced(
    slow: float, depth: int
) -> None:
    async def level(left: int) -> None:
        if left == 0:
            await forever()
        async with holdfast.scope(f"level-{left}"):
            try:
                await level(left - 1)
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(slow)

    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="top"):
            await level(depth)
    assert caught.value.cause.scope == "top"
    assert counting() == 0


@pytest.mark.parametrize("slow", [0.2, 0.6, 1.5])
async def test_shielded_clean_up_at_every_level(slow: float) -> None:
    finished: list[int] = []

    async def level(left: int) -> None:
        if left == 0:
            await forever()
        async with holdfast.scope(f"level-{left}"):
            try:
                await level(left - 1)
            finally:
                async with holdfast.shield(slow + 0.1):
                    await asyncio.sleep(slow)
                    finished.append(left)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.3)

    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="top"):
            await level(3)
    assert finished == [1, 2, 3]
    assert caught.value.cause.scope == "top"
    assert counting() == 0


# -- swallowed ------------------------------------------------------------------------------------


async def test_a_swallowed_cancellation_comes_again_bounded_and_is_told() -> None:
    hits: list[float] = []
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1, name="deaf"):
            while len(hits) < 50 and now() - began < 100:
                try:
                    await asyncio.sleep(20)
                except asyncio.CancelledError:
                    hits.append(now() - began)
    assert hits == pytest.approx([1.0, 1.5, 2.5, 4.5], abs=0.1)
    assert counting() == 0
    assert driver().counts["swallowed"] == 3
    report = driver().swallowed[0]
    assert report.scope == "deaf"
    assert report.cause.kind is CauseKind.DEADLINE
    assert report.after == pytest.approx(0.5, abs=0.1)
    assert "test_a_swallowed_cancellation" in report.stack[-1] or any(
        "test_a_swallowed_cancellation" in line for line in report.stack
    )


async def test_a_swallowed_cancellation_still_ends_the_scope_with_its_error() -> None:
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
    assert counting() == 0


async def test_clean_up_within_its_grace_is_not_reported() -> None:
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            try:
                await forever()
            finally:
                await asyncio.sleep(0.4)
    await asyncio.sleep(10)
    assert driver().counts["swallowed"] == 0


async def test_clean_up_that_hangs_is_cut_and_ends_within_its_grace() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            try:
                await forever()
            finally:
                await forever()
    assert now() - began <= 1.6
    assert counting() == 0


# -- moving deadlines -----------------------------------------------------------------------------


async def test_a_deadline_moves_earlier() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(10) as scope:
            assert scope.move_deadline(began + 1) == began + 1
            await forever()
    assert now() == began + 1


async def test_a_deadline_moves_later_up_to_the_parents() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(5, name="outer"), holdfast.timeout(1, name="inner") as inner:
            assert inner.move_deadline(began + 100) == began + 5
            await forever()
    assert now() == began + 5
    assert caught.value.cause.scope == "outer"
    assert counting() == 0


async def test_children_follow_the_moved_deadline() -> None:
    began = now()
    async with holdfast.timeout(10, name="outer") as outer:
        async with holdfast.scope("inherits") as inherits:
            async with holdfast.timeout(8, name="tightens") as tightens:
                outer.move_deadline(began + 5)
                assert [s.limit - began for s in (outer, inherits, tightens)] == [5, 5, 5]
                outer.move_deadline(began + 20)
                assert outer.limit == inherits.limit == began + 20


async def test_a_child_keeps_its_own_wish_when_the_parent_is_extended() -> None:
    began = now()
    async with holdfast.timeout(1, name="outer") as outer:
        async with holdfast.timeout(5, name="wished five") as inner:
            outer.move_deadline(began + 100)
            assert inner.limit <= began + 5


async def test_a_child_keeps_its_own_wish_when_the_parent_went_back_and_forth() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(10, name="outer") as outer:
            async with holdfast.timeout(5, name="wished five"):
                outer.move_deadline(began + 2)
                outer.move_deadline(began + 100)
                await forever()
    assert now() - began <= 5
    assert caught.value.cause.scope == "outer/wished five"


async def test_a_shield_is_not_cut_when_the_deadline_around_it_is_extended() -> None:
    began = now()
    async with holdfast.timeout(1, name="outer") as outer, holdfast.shield(0.5):
        outer.move_deadline(began + 100)
        await asyncio.sleep(10)


async def test_a_deadline_is_not_moved_to_nan() -> None:
    async with holdfast.timeout(1) as scope:
        with pytest.raises(ValueError, match="number|nan"):
            scope.move_deadline(math.nan)
        assert scope.limit == pytest.approx(now() + 1)


async def test_moving_keeps_the_grace() -> None:
    began = now()
    async with holdfast.timeout(10, grace=1) as scope:
        assert scope.limit == began + 9
        scope.move_deadline(began + 5)
        assert scope.end - scope.limit == pytest.approx(1)


async def test_a_deadline_of_a_closed_scope_does_not_move() -> None:
    scope = holdfast.timeout(1)
    with pytest.raises(UsageError, match="not entered"):
        scope.move_deadline(now() + 5)
    async with scope:
        pass
    with pytest.raises(UsageError, match="not open"):
        scope.move_deadline(now() + 5)


async def test_moving_into_the_past_expires_now() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(10) as scope:
            scope.move_deadline(began - 5)
            await forever()
    assert now() == pytest.approx(began, abs=0.001)


# -- reserve, split, refuse -----------------------------------------------------------------------


async def test_a_reserve_is_left_unspent() -> None:
    async with holdfast.timeout(10):
        async with holdfast.reserve(2):
            assert holdfast.remaining() == pytest.approx(8)
        with pytest.raises(DeadlineExceeded):
            async with holdfast.reserve(11):
                pytest.fail("the body ran")
    async with holdfast.reserve(5):
        assert holdfast.remaining() == math.inf


async def test_a_split_carries_unused_time_over() -> None:
    async with holdfast.timeout(12):
        steps = holdfast.split(1, 1, 2)
        async with steps.step() as first:
            assert first.remaining() == pytest.approx(3)
            await asyncio.sleep(1)
        async with steps.step("second"):
            assert holdfast.remaining() == pytest.approx(11 / 3)
            assert holdfast.current().scope.endswith("second")
        async with steps.step():
            assert holdfast.remaining() == pytest.approx(11)
        with pytest.raises(UsageError, match="3 steps"):
            steps.step()
    for bad in ((), (0.0,), (1.0, -1.0), (math.nan,)):
        with pytest.raises(ValueError, match="weight"):
            holdfast.split(*bad)


async def test_a_split_without_a_deadline_bounds_nothing() -> None:
    for step in holdfast.split(1, 2):
        async with step:
            assert holdfast.remaining() == math.inf


async def test_grace_is_kept_for_shields() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(10, grace=2) as scope:
            assert (scope.limit, scope.end) == (began + 8, began + 10)
            try:
                await forever()
            finally:
                async with holdfast.shield(5) as shield:
                    assert shield.limit == began + 10
                    await forever()
    assert now() <= began + 10


# -- contextmanagers and generators ---------------------------------------------------------------


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[holdfast.Scope]:
    async with holdfast.timeout(seconds, name="bounded") as scope:
        yield scope


async def test_an_async_contextmanager_bounds_its_body() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded):
        async with bounded(1):
            await forever()
    assert now() == pytest.approx(began + 1, abs=0.01)
    async with bounded(5) as scope:
        assert holdfast.remaining() == pytest.approx(5)
        assert holdfast.current().scope == "bounded"
    assert scope.outcome is Outcome.DONE
    with pytest.raises(DeadlineExceeded):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(bounded(1))
            await forever()


async def numbers(limit: float, pause: float) -> AsyncIterator[int]:
    async with holdfast.timeout(limit, name="generator"):
        for n in range(100):
            await asyncio.sleep(pause)
            yield n


async def test_a_scope_in_a_generator_never_cancels_its_consumer() -> None:
    stream = numbers(1, 0.1)
    assert await anext(stream) == 0
    await asyncio.sleep(10)  # the scope inside is spent; the consumer is not
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    assert counting() == 0


async def test_a_scope_in_a_generator_that_is_never_resumed() -> None:
    stream = numbers(1, 0.1)
    await anext(stream)
    await asyncio.sleep(10)
    with contextlib.suppress(DeadlineExceeded):
        await stream.aclose()  # type: ignore[attr-defined]
    assert counting() == 0


async def test_a_scope_in_a_generator_ends_what_the_generator_waits_for() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async for _ in numbers(1, 10):
            pytest.fail("it yielded")
    assert caught.value.cause.scope == "generator"
    assert now() - began == pytest.approx(1, abs=0.1)
    assert counting() == 0


async def test_a_consumers_deadline_reaches_into_the_generator() -> None:
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="consumer"):
            async for _ in numbers(5, 10):
                pytest.fail("it yielded")
    assert caught.value.cause.scope == "consumer"
    assert now() - began == pytest.approx(1, abs=0.1)
    assert counting() == 0


async def test_a_generator_left_by_break_leaves_the_ambient_scope_right() -> None:
    async with holdfast.timeout(10, name="outer"):
        stream = numbers(5, 0.1)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert holdfast.current().scope == "outer"


async def test_a_generator_closed_by_another_task() -> None:
    stream = numbers(5, 0.1)
    await anext(stream)
    await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    assert holdfast.current().scope == ""
    assert len(holdfast.tree()) == 0


async def test_a_generator_dropped_while_suspended() -> None:
    stream = numbers(5, 0.1)
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(1)
    assert len(holdfast.tree()) == 0
    assert counting() == 0


# -- nothing stays behind --------------------------------------------------------------------------


async def test_a_closed_scope_is_not_kept_alive() -> None:
    async with holdfast.timeout(5) as scope:
        pass
    ref = weakref.ref(scope) if hasattr(scope, "__weakref__") else None
    del scope
    gc.collect()
    if ref is not None:
        assert ref() is None


async def test_many_scopes_leave_the_timers_small() -> None:
    for n in range(5000):
        async with holdfast.timeout(1 + n / 3):
            pass
    timers = driver().timers
    assert len(timers) == 0
    assert len(timers._keys) < 2000
    assert len(timers._buckets) < 2000


async def test_the_clock_of_deadlines_is_the_loops() -> None:
    assert ambient_now() != now()  # no scope, no loop is asked
    async with holdfast.scope("here"):
        assert ambient_now() == now()


async def test_the_error_tells_of_the_call_that_was_under_way() -> None:
    trail = Trail("GET http://orders.local/1", now(), now() + 1.0)
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1.0, name="request"), holdfast.timeout(5.0, name="inner"):
            trail.begin(Phase.HEADER, now())
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                trail.end(now(), Ended.TIMEOUT)
                here = ambient()
                assert here is not None
                here.blame(trail)
                here.blame(Trail("another", now()))
                raise
    assert caught.value.trail is trail
    assert caught.value.phase is Phase.HEADER
    assert "http.header.timeout at GET http://orders.local/1" in str(caught.value)
    assert caught.value.__notes__ == [trail.line()]


async def test_a_call_that_fails_where_nothing_was_cancelled_is_not_blamed() -> None:
    async with holdfast.timeout(1.0) as scope:
        scope.blame(Trail("x:1", now()))
    assert scope.trail is None
