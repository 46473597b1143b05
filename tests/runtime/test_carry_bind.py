"""Threads and processes that take the context along, and what they are told."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

import holdfast
from holdfast import carry
from holdfast.domain.context import Carried, Identity
from holdfast.runtime.ambient import carried, ledger, use
from holdfast.runtime.ledger import Ledger
from tests.runtime.bound_work import add, look, overrun, send, until_nothing_is_left

WHO = Carried(Identity("a" * 32, "b" * 16, given_id="mine"), "canary", {"tenant": "blue"})
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
PATIENCE = 10.0


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as inner:
        yield inner


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as inner:
        yield inner


@pytest.fixture
def one() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as inner:
        yield inner


# -- threads: what goes along ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["to_thread", "bind", "executor", "map"])
async def test_a_thread_has_the_context(threads: ThreadPoolExecutor, how: str) -> None:
    loop = asyncio.get_running_loop()

    def work(_: int = 0) -> tuple[float, Carried, str]:
        return holdfast.remaining(), carried(), VARIABLE.get()

    async with use(WHO), holdfast.timeout(5, name="request"):
        VARIABLE.set("mine")
        match how:
            case "to_thread":
                seen = await asyncio.to_thread(work)
            case "bind":
                seen = await loop.run_in_executor(threads, carry.bind(work))
            case "executor":
                seen = await loop.run_in_executor(carry.executor(threads), work)
            case _:
                seen = next(carry.executor(threads).map(work, [1, 2]))
    assert seen == (5, WHO, "mine")


async def test_a_bound_function_is_called_as_it_is_and_many_times(
    threads: ThreadPoolExecutor,
) -> None:
    barrier = threading.Barrier(4)

    def work(n: int, *, plus: int) -> tuple[int, Carried]:
        barrier.wait(PATIENCE)  # all four are inside at once
        return n + plus, carried()

    async with use(WHO):
        bound = carry.bind(work)
    futures = [threads.submit(bound, n, plus=10) for n in range(4)]
    with pytest.raises(holdfast.Cancelled, match="done, so nobody waits"):
        futures[0].result(PATIENCE)


async def test_many_threads_in_one_context(threads: ThreadPoolExecutor) -> None:
    barrier = threading.Barrier(4)

    def work(n: int, *, plus: int) -> tuple[int, Carried]:
        barrier.wait(PATIENCE)
        return n + plus, carried()

    async with use(WHO):
        bound = carry.bind(work)
        futures = [asyncio.wrap_future(threads.submit(bound, n, plus=10)) for n in range(4)]
        assert await asyncio.gather(*futures) == [(10 + n, WHO) for n in range(4)]


async def test_the_ledger_of_the_request_is_reached_from_a_thread() -> None:
    async with holdfast.scope("request") as scope:
        scope.ledger = mine = Ledger()
        assert await asyncio.to_thread(carry.bind(ledger)) is mine


async def test_a_scope_in_a_thread_bounds_and_is_told_where_it_comes_from(
    threads: ThreadPoolExecutor,
) -> None:
    def work() -> tuple[float, str]:
        with holdfast.timeout(60, name="inner") as inner:
            return inner.remaining(), holdfast.current().scope

    async with holdfast.timeout(5, name="request"):
        left, path = await asyncio.get_running_loop().run_in_executor(threads, carry.bind(work))
    assert left == 5
    assert path.endswith("inner")


def test_without_a_scope_nothing_is_bounded(one: ThreadPoolExecutor) -> None:
    assert one.submit(carry.bind(holdfast.remaining)).result(PATIENCE) == math.inf
    with carry.executor(one) as carrying:
        assert carrying.submit(holdfast.remaining).result(PATIENCE) == math.inf
    with pytest.raises(RuntimeError, match="after shutdown"):
        one.submit(len, ())


def test_plain_scopes_go_along(one: ThreadPoolExecutor) -> None:
    with use(WHO), holdfast.timeout(5):
        _, left, who, _ = carry.executor(one).submit(look).result(PATIENCE)
    assert 0 < left <= 5
    assert who == WHO


def test_a_coroutine_function_is_refused() -> None:
    async def work() -> None: ...

    with pytest.raises(holdfast.UsageError, match="plain function"):
        carry.bind(work)


def test_what_would_run_later_is_refused(one: ThreadPoolExecutor) -> None:
    class Later:
        async def __call__(self) -> None: ...

    class Steps:
        def __call__(self) -> Iterator[int]:
            yield 1

    def steps() -> Iterator[int]:
        yield 1

    async def later_steps() -> Any:
        yield 1

    for call in (Later(), functools.partial(Later()), functools.partial(Later().__call__)):
        with pytest.raises(holdfast.UsageError, match="coroutine function"):
            carry.bind(call)
    for call in (steps, later_steps, Steps(), functools.partial(steps), Steps().__call__):
        with pytest.raises(holdfast.UsageError, match="generator function"):
            carry.bind(call)
        with pytest.raises(holdfast.UsageError, match="generator function"):
            carry.executor(one).submit(call)
    assert carry.bind(Later)  # a class makes objects, plainly
    assert carry.bind(functools.partial(add, 1))(2) == 3


async def test_a_bound_function_in_a_coroutine_is_told_what_it_was_bound_for() -> None:
    async with holdfast.timeout(5):
        bound = carry.bind(add)
        with pytest.raises(
            holdfast.UsageError, match=r"'add' was bound for a thread.*'add' itself"
        ):
            bound(1)
        assert await asyncio.to_thread(bound, 1, 2) == 3


def test_an_error_comes_back_as_it_is(one: ThreadPoolExecutor) -> None:
    def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        one.submit(carry.bind(work)).result(PATIENCE)


# -- threads: what is in vain ----------------------------------------------------------------------


async def test_what_expired_in_the_queue_is_not_begun(one: ThreadPoolExecutor) -> None:
    go = threading.Event()
    one.submit(go.wait, PATIENCE)
    called: list[int] = []
    futures: list[Any] = []
    async with holdfast.timeout(2, name="closed"):
        futures.append(one.submit(carry.bind(called.append), 1))
    with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
        async with holdfast.timeout(2, name="spent"):
            futures.append(one.submit(carry.bind(called.append), 2))
            try:
                await asyncio.sleep(3)
            finally:
                go.set()
                with pytest.raises(holdfast.InsufficientBudget, match="waited 2 s for its turn"):
                    futures[1].result(PATIENCE)
    with pytest.raises(holdfast.Cancelled, match="'closed' is done, so nobody waits"):
        futures[0].result(PATIENCE)
    assert not called


async def test_what_waits_when_its_scope_ends_leaves_the_queue(one: ThreadPoolExecutor) -> None:
    go = threading.Event()
    one.submit(go.wait, PATIENCE)
    carrying = carry.executor(one)
    async with holdfast.scope("request"):
        futures = [carrying.submit(add, n) for n in range(3)]
    assert all(future.cancelled() for future in futures)
    with pytest.raises(holdfast.Cancelled, match="gone"):  # noqa: PT012
        async with holdfast.scope("request") as scope:
            waiting = asyncio.get_running_loop().run_in_executor(carrying, add, 1)
            scope.cancel("gone")
            await waiting
    go.set()
    assert waiting.cancelled()


async def test_what_a_thread_submits_leaves_the_tree_of_the_loop_alone() -> None:
    go, called = threading.Event(), list[int]()
    with ThreadPoolExecutor(1) as inner:
        inner.submit(go.wait, PATIENCE)
        carrying = carry.executor(inner)
        async with holdfast.scope("request") as scope:
            future = await asyncio.to_thread(carrying.submit, called.append, 1)
            assert not carrying._of_scopes
            assert not scope.closers
            kept = carrying.submit(called.append, 2)
            assert list(carrying._of_scopes) == [scope]
        assert kept.cancelled()
        assert not future.cancelled()
        go.set()
    with pytest.raises(holdfast.Cancelled, match="'request' is done, so nobody waits"):
        future.result(PATIENCE)
    assert not called


async def test_what_has_run_is_forgotten(one: ThreadPoolExecutor) -> None:
    carrying = carry.executor(one)
    loop = asyncio.get_running_loop()
    async with holdfast.scope("request"):
        for n in range(50):
            assert await loop.run_in_executor(carrying, add, n, 1) == n + 1
        assert [len(left) for left in carrying._of_scopes.values()] == [0]
    assert not carrying._of_scopes


def test_a_function_that_ran_on_beyond_its_deadline_is_told(one: ThreadPoolExecutor) -> None:
    with holdfast.timeout(0.2):
        bound = pickle.loads(pickle.dumps(carry.bind(overrun)))  # which outlives the block
    with pytest.raises(holdfast.DeadlineExceeded, match="ran on"):
        one.submit(bound, 0.4).result(PATIENCE)


@pytest.mark.parametrize("where", ["a thread", "a process"])
def test_who_ran_on_names_the_scope_it_was_bound_in(one: ThreadPoolExecutor, where: str) -> None:
    with suppress(holdfast.DeadlineExceeded), holdfast.timeout(0.4, name="order"):
        bound: Any = carry.bind(overrun)
        if where == "a process":  # what goes there, goes by pickle
            bound = pickle.loads(pickle.dumps(bound))
        with pytest.raises(holdfast.DeadlineExceeded, match="ran on") as caught:
            one.submit(bound, 0.5).result(PATIENCE)
        with pytest.raises(holdfast.InsufficientBudget) as refused:
            one.submit(bound, 0).result(PATIENCE)
    assert caught.value.cause.scope == refused.value.cause.scope == "order/overrun"


# -- threads: a caller that has gone ---------------------------------------------------------------


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("how", ["to_thread", "bind"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("end", ["cancel", "native", "deadline", "from above"])
async def test_a_thread_whose_caller_has_gone_is_told(how: str, nested: bool, end: str) -> None:
    begun, told = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        if nested:
            with suppress(holdfast.ScopeEnded), holdfast.timeout(60, name="inner"):
                ask()
        else:
            ask()
        told.set()

    def ask() -> None:
        begun.set()
        until_nothing_is_left(PATIENCE)
        seen.append((holdfast.remaining(), carried(), holdfast.current().deadline < math.inf))
        with suppress(holdfast.DeadlineExceeded):
            holdfast.refuse_below(0.001)
            seen.append("not refused")
        try:
            with holdfast.timeout(60):
                seen.append("opened")
        except holdfast.ScopeEnded as error:
            seen.append(error)
        with suppress(holdfast.DeadlineExceeded):
            carry.inject()
            seen.append("sent")

    async def caller() -> None:
        seconds = 0.3 if end == "deadline" else 60
        async with holdfast.scope("above") as above, use(WHO), holdfast.timeout(seconds) as scope:
            scopes[:] = [above, scope]
            await asyncio.to_thread(work if how == "to_thread" else carry.bind(work))

    scopes: list[holdfast.Scope] = []
    async with holdfast.tasks() as group:
        task = group.start(quietly(caller()))
        while not begun.is_set():  # noqa: ASYNC110 - of a thread
            await asyncio.sleep(0.005)
        match end:
            case "cancel":
                scopes[1].cancel("gone")
            case "from above":
                scopes[0].cancel("gone")
            case "native":
                task.cancel()
            case _:
                pass
        while not told.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    (left, who, bounded), error = seen
    assert left == 0
    assert bounded
    assert who == WHO
    assert isinstance(error, holdfast.ScopeEnded)
    if end in ("cancel", "from above"):
        assert "gone" in str(error)


@pytest.mark.parametrize("how", ["bind", "context"])
def test_a_thread_that_outlives_the_loop_gets_no_time_back(how: str) -> None:
    begun, closed = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        begun.set()
        assert closed.wait(PATIENCE)
        seen.append(holdfast.remaining())
        with pytest.raises(holdfast.Cancelled, match="gone"), holdfast.timeout(1):
            seen.append("opened")

    async def main(pool: ThreadPoolExecutor) -> None:
        with suppress(holdfast.Cancelled):
            async with holdfast.timeout(60), holdfast.timeout(50) as scope:
                run = carry.bind(work) if how == "bind" else contextvars.copy_context().run
                futures.append(pool.submit(run, *([] if how == "bind" else [work])))
                assert await asyncio.to_thread(begun.wait, PATIENCE)
                scope.cancel("gone")
                await asyncio.sleep(PATIENCE)

    futures: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(main(pool))
        closed.set()
        futures[0].result(PATIENCE)
    assert seen == [0]


async def quietly(work: Any) -> None:
    with suppress(holdfast.ScopeEnded):
        await work


async def test_on_the_loop_itself_detached_work_falls_back_as_before() -> None:
    async def later() -> float:
        await asyncio.sleep(1)
        return holdfast.remaining()

    async with holdfast.timeout(100):
        async with holdfast.timeout(0.5):
            task = asyncio.create_task(later())
        assert await task == 99.0


async def test_a_task_that_outlives_its_scope_may_use_a_thread() -> None:
    async def audit() -> float:
        await asyncio.sleep(1)
        return await asyncio.to_thread(holdfast.remaining)

    async with holdfast.timeout(100):
        async with holdfast.timeout(50):
            task = asyncio.create_task(audit())
        assert await task == 99.0
    async with holdfast.timeout(50):
        task = asyncio.create_task(audit())
    assert await task == math.inf


@pytest.mark.real_time
async def test_bound_work_is_told_when_its_scope_ends_in_peace() -> None:
    begun = threading.Event()

    def work() -> float:
        begun.set()
        return until_nothing_is_left(PATIENCE)

    with ThreadPoolExecutor(1) as inner:
        async with holdfast.scope("request"):
            future = inner.submit(carry.bind(work))
            while not begun.is_set():  # noqa: ASYNC110 - of a thread
                await asyncio.sleep(0.005)
        assert await asyncio.wrap_future(future) < PATIENCE


async def test_detached_work_in_a_thread_is_not_bounded(one: ThreadPoolExecutor) -> None:
    go = threading.Event()
    one.submit(go.wait, PATIENCE)
    async with use(WHO), holdfast.timeout(2):
        bound = one.submit(carry.bind(look, detached=True))
        carried_too = carry.executor(one, detached=True).submit(look)
    go.set()
    for future in (bound, carried_too):
        _, left, who, _ = future.result(PATIENCE)
        assert left == math.inf
        assert who == WHO


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.parametrize("how", ["bind", "executor"])
async def test_a_process_has_deadline_identity_stage_and_baggage(
    processes: Executor, how: str
) -> None:
    loop = asyncio.get_running_loop()
    async with use(WHO), holdfast.timeout(30, name="request") as scope:
        if how == "bind":
            seen = await loop.run_in_executor(processes, carry.bind(look))
        else:
            seen = await loop.run_in_executor(carry.executor(processes), look)
    at, left, who, path = seen
    assert scope.deadline - 5 < at + left <= scope.deadline + 1e-6  # read one after the other
    assert who == WHO
    assert path == "look"


async def test_a_loop_with_its_own_clock_gives_a_process_what_is_left(
    processes: Executor,
) -> None:
    async with holdfast.timeout(30):
        _, left, _, _ = processes.submit(carry.bind(look)).result(PATIENCE * 3)
    assert 0 < left <= 30
    assert processes.submit(carry.bind(look)).result(PATIENCE)[1] == math.inf


@pytest.mark.real_time
async def test_a_process_does_not_begin_what_expired_while_it_waited(processes: Executor) -> None:
    busy = [processes.submit(overrun, 0.6) for _ in range(2)]
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with holdfast.timeout(0.2):
            bound = carry.bind(add)
            futures = [processes.submit(bound, n) for n in range(2)]
            await asyncio.sleep(5)
    for future in futures:
        with pytest.raises(holdfast.InsufficientBudget, match="for its turn, so it was not begun"):
            await asyncio.wrap_future(future)
    for future in busy:
        await asyncio.wrap_future(future)


@pytest.mark.real_time
async def test_what_waits_for_a_process_is_cancelled_with_its_caller(processes: Executor) -> None:
    busy = [processes.submit(overrun, 0.5) for _ in range(2)]
    carrying = carry.executor(processes)
    with pytest.raises(holdfast.Cancelled):  # noqa: PT012
        async with holdfast.scope("request") as scope:
            futures = [carrying.submit(add, n) for n in range(10)]
            scope.cancel("gone")
            await asyncio.sleep(1)
    for future in busy:
        await asyncio.wrap_future(future)
    cancelled = 0
    for future in futures:
        try:
            await asyncio.wrap_future(future)
        except (CancelledError, asyncio.CancelledError):
            cancelled += 1
    assert cancelled >= 6  # the pool takes some out of its queue beforehand


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_of_its_own(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    with use(WHO), holdfast.timeout(30):
        process = context.Process(target=carry.bind(send), args=(queue,))
        process.start()
        left, who, path = queue.get()
        process.join(PATIENCE)
    assert 0 < left <= 30
    assert who == WHO
    assert path == "send"
    assert process.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_pool_of_multiprocessing() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool, use(WHO), holdfast.timeout(30):
        _, left, who, _ = pool.apply_async(carry.bind(look)).get(PATIENCE * 3)
        assert 0 < left <= 30
        assert who == WHO


def test_errors_come_back_from_a_process(processes: Executor) -> None:
    with pytest.raises(holdfast.DeadlineExceeded, match="ran on") as caught:
        processes.submit(bound_to(0.2), 0.4).result(PATIENCE * 3)
    assert caught.value.cause.scope.endswith("overrun")


def bound_to(seconds: float) -> Any:
    with holdfast.timeout(seconds):
        return pickle.loads(pickle.dumps(carry.bind(overrun)))


def test_a_bound_function_that_was_pickled_is_bounded_all_the_same() -> None:
    with use(WHO), holdfast.timeout(30):
        bound = pickle.loads(pickle.dumps(carry.bind(look)))
    again = pickle.loads(pickle.dumps(bound))
    for each in (bound, again):
        _, left, who, _ = each()
        assert 0 < left <= 30
        assert who == WHO
    assert "look" in repr(bound)
