"""Hard cases that take more than one part of the runtime, each as a user would meet it."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012, SIM117
from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import count

import pytest

import holdfast
from holdfast import Cancelled, CauseKind, DeadlineExceeded, InsufficientBudget
from holdfast.runtime.driver import driver_of


def now() -> float:
    return asyncio.get_running_loop().time()


def counting() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def forever() -> None:
    await asyncio.Event().wait()


# -- the clock on the wall ------------------------------------------------------------------------


def _leaping(by: float) -> Callable[[], float]:
    turns = count()
    return lambda: 1.7e9 + by * next(turns)


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("by", [3600.0, -3600.0])
async def test_a_leap_of_the_clock_on_the_wall_moves_no_deadline(
    by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(0.05) as scope:
            monkeypatch.setattr(time, "time", _leaping(by))
            monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
            assert 0 < scope.remaining() <= 0.05
            await forever()
    assert 0.05 <= time.monotonic() - began < 5
    assert 0.05 <= caught.value.cause.elapsed < 5


@pytest.mark.parametrize("by", [3600.0, -3600.0])
def test_a_leap_moves_no_deadline_of_a_plain_function_either(
    by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holdfast.timeout(30):
        monkeypatch.setattr(time, "time", _leaping(by))
        assert 29 < holdfast.remaining() <= 30


# -- time that is spent in a queue ----------------------------------------------------------------


async def test_time_in_a_queue_counts_from_the_arrival() -> None:
    queue: asyncio.Queue[float] = asyncio.Queue()
    left: list[float] = []
    refused = 0

    async def worker() -> None:
        nonlocal refused
        for _ in range(4):
            arrived = await queue.get()
            try:
                async with holdfast.deadline_at(arrived + 1, name="job"):
                    left.append(holdfast.remaining())
                    await asyncio.sleep(0.4)
            except DeadlineExceeded as error:
                refused += "did not run" in error.cause.detail

    for _ in range(4):
        queue.put_nowait(now())
    await worker()
    # The third has 200 ms and spends them; what is spent before its turn does not begin.
    assert left == pytest.approx([1, 0.6, 0.2])
    assert refused == 1


async def test_waiting_for_a_slot_spends_the_budget_and_loses_no_slot() -> None:
    slots = asyncio.Semaphore(1)
    began = now()
    await slots.acquire()
    asyncio.get_running_loop().call_later(0.8, slots.release)
    with pytest.raises(DeadlineExceeded):
        async with holdfast.timeout(1):
            async with slots:
                assert holdfast.remaining() == pytest.approx(0.2)
                await asyncio.sleep(0.5)
    assert now() == began + 1
    async with holdfast.timeout(1), slots:
        assert holdfast.remaining() == 1


# -- trying again ---------------------------------------------------------------------------------


async def test_no_attempt_begins_that_cannot_end_in_time() -> None:
    attempts: list[float] = []

    async def attempt() -> None:
        attempts.append(holdfast.remaining())
        await asyncio.sleep(0.25)
        raise ConnectionResetError(errno.ECONNRESET, "by the peer")

    began = now()
    with pytest.raises(InsufficientBudget, match="needed") as caught:
        async with holdfast.timeout(1, name="charge"):
            for backoff in (0.1, 0.2, 0.4, 0.8):
                try:
                    holdfast.refuse_below(0.25 + backoff)
                    await attempt()
                except Exception as error:
                    if not holdfast.is_retryable(error):
                        raise
                await asyncio.sleep(backoff)
    # At 0.8 s there are 200 ms left for what takes 650: the third is not begun, nor waited for.
    assert attempts == pytest.approx([1, 0.65])
    assert now() - began == pytest.approx(0.8)
    assert not holdfast.is_retryable(caught.value)
    assert counting() == 0


async def test_attempts_share_one_budget_and_the_last_never_outlives_it() -> None:
    given: list[float] = []
    retryable: list[bool] = []
    began = now()
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="charge"):
            for step in holdfast.split(1, 1, 1, 1):
                try:
                    async with step:
                        given.append(holdfast.remaining())
                        if len(given) == 1:  # fails at once, so the others have more
                            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody there")
                        await forever()
                except (ConnectionRefusedError, DeadlineExceeded) as error:
                    retryable.append(holdfast.is_retryable(error))
    assert given == pytest.approx([1 / 4, 1 / 3, 1 / 3, 1 / 3])
    assert retryable == [True, False, False]  # the end of the last is that of the whole
    assert now() - began == pytest.approx(1)
    assert caught.value.cause.scope == "charge"
    assert counting() == 0


# -- many at once ---------------------------------------------------------------------------------


async def test_of_a_hundred_one_fails_and_all_others_know_who_and_end_at_once() -> None:
    ends: list[tuple[float, CauseKind, str]] = []
    scopes: list[holdfast.Scope] = []

    async def call(number: int) -> None:
        try:
            async with holdfast.timeout(60, name=f"call-{number}") as scope:
                scopes.append(scope)
                await asyncio.sleep(0.3 if number == 42 else 50)
                raise OSError(errno.ECONNRESET, "the connection of number 42")
        except asyncio.CancelledError:
            cause = scopes[number].reached()
            assert cause is not None
            ends.append((now(), cause.kind, cause.detail))
            raise

    began = now()
    with pytest.raises(ExceptionGroup) as caught:
        async with holdfast.timeout(10), holdfast.tasks("fan-out") as group:
            for number in range(100):
                group.start(call(number), name=f"child-{number}")
    assert [type(error) for error in caught.value.exceptions] == [ConnectionResetError]
    assert len(ends) == 99
    assert {round(at - began, 6) for at, _, _ in ends} == {0.3}
    assert {kind for _, kind, _ in ends} == {CauseKind.SIBLING}
    assert all("child-42" in detail and "number 42" in detail for _, _, detail in ends)
    assert len(holdfast.tree()) == 0
    assert counting() == 0


# -- whose cancellation ---------------------------------------------------------------------------


async def test_a_cancelled_dependency_is_told_apart_and_the_scope_is_still_good() -> None:
    other = asyncio.get_running_loop().create_task(forever(), name="dependency")
    asyncio.get_running_loop().call_later(1, other.cancel)
    async with holdfast.timeout(5) as scope:
        try:
            await other
        except asyncio.CancelledError:
            mine = scope.reached() is not None or counting() > 0
        assert not mine
        assert other.cancelled()
        await asyncio.sleep(3)  # nobody cancels this as if it had been meant
        assert scope.remaining() == pytest.approx(1)
    assert scope.cause is None
    assert driver_of(asyncio.get_running_loop()).counts == {}


async def test_the_own_cancellation_is_told_apart_from_that_of_a_dependency() -> None:
    other = asyncio.get_running_loop().create_task(forever(), name="dependency")
    seen: list[tuple[bool, bool]] = []
    with pytest.raises(Cancelled) as caught:
        async with holdfast.scope("mine") as scope:
            asyncio.get_running_loop().call_later(1, scope.cancel, "no longer wanted")
            try:
                await asyncio.shield(other)
            except asyncio.CancelledError:
                seen.append((scope.reached() is not None, other.cancelled()))
                raise
    assert seen == [(True, False)]
    assert caught.value.cause.detail == "no longer wanted"
    other.cancel()
    await asyncio.wait([other])


async def test_detached_work_whose_own_budget_ran_out_is_not_my_cancellation() -> None:
    work = holdfast.detach(forever(), name="audit", timeout=1)
    async with holdfast.timeout(5) as scope:
        with pytest.raises(DeadlineExceeded, match="audit"):
            await work
        assert scope.reached() is None
        assert counting() == 0


# -- deadlines that move --------------------------------------------------------------------------


async def test_a_deadline_is_tightened_and_extended_up_to_what_is_above_and_no_further() -> None:
    began = now()
    timers = driver_of(asyncio.get_running_loop()).timers
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(10, name="top"), holdfast.timeout(5, name="middle") as middle:
            async with holdfast.timeout(2, name="low") as low:
                await asyncio.sleep(1.5)
                assert low.move_deadline(now() + 2) == began + 3.5
                await asyncio.sleep(1)  # past the first limit
                armed = len(timers)
                assert low.move_deadline(began + 100) == low.deadline == began + 5
                assert middle.move_deadline(began + 100) == middle.deadline == began + 10
                assert low.deadline == began + 10
                assert middle.move_deadline(began + 4) == began + 4
                assert low.deadline == began + 4
                assert len(timers) <= armed
                await forever()
    assert now() == began + 4
    assert caught.value.cause.scope == "top/middle"
    assert counting() == 0


# -- the end of the interpreter -------------------------------------------------------------------

ENDINGS = {
    "tasks are pending when the loop ends": """
        async def work():
            async with holdfast.timeout(50), holdfast.shield(5), holdfast.timeout(20):
                await asyncio.Event().wait()

        async def main():
            kept.append([asyncio.create_task(work()) for _ in range(10)])
            kept.append(holdfast.detach(work()))
            await asyncio.sleep(0.01)

        asyncio.run(main())
        """,
    "a generator is suspended inside a scope": """
        async def numbers():
            async with holdfast.timeout(50):
                yield 1
                yield 2

        async def main():
            kept.append(numbers())
            print(await anext(kept[0]))

        asyncio.run(main())
        """,
    "the loop was stopped and never closed": """
        async def work():
            async with holdfast.timeout(50):
                await asyncio.Event().wait()

        async def main():
            kept.append(asyncio.create_task(work()))
            await asyncio.sleep(0.01)

        loop = asyncio.new_event_loop()
        kept.append(loop)
        loop.run_until_complete(main())
        """,
    "a plain scope is open and one was never entered": """
        kept.append(holdfast.timeout(50))
        kept.append(holdfast.timeout(50))
        kept[0].__enter__()
        """,
    "exit is called inside": """
        async def main():
            async with holdfast.tasks() as group:
                group.start(asyncio.sleep(50))
                async with holdfast.timeout(50):
                    await asyncio.sleep(0.01)
                    sys.exit(0)

        asyncio.run(main())
        """,
    "a daemon thread is in a loop": """
        import threading

        async def main():
            async with holdfast.timeout(50):
                started.set()
                await asyncio.sleep(50)

        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        started.wait()
        """,
    "the modules go first": """
        async def work():
            async with holdfast.timeout(50):
                await asyncio.Event().wait()

        coroutine = work()
        sys.modules["kept"] = coroutine
        kept.append(coroutine)

        async def main():
            task = asyncio.create_task(work())
            await asyncio.sleep(0.01)
            kept.append(task.get_coro())
            task.cancel()
            await asyncio.wait([task])
            coroutine.close()

        asyncio.run(main())
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_open_when_the_interpreter_ends_is_not_complained_about(ending: str) -> None:
    code = f"import asyncio, sys\nimport holdfast\nkept = []\n{textwrap.dedent(ENDINGS[ending])}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # A loop that nobody closed has tasks that asyncio itself complains about, once for each.
    own = [line for line in done.stderr.splitlines() if not _of_asyncio(line)]
    assert (done.returncode, own) == (0, [])


def _of_asyncio(line: str) -> bool:
    return line.startswith(("Task was destroyed but it is pending!", "task: <Task pending"))
