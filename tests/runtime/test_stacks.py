"""Where everything is: every task with its await chain, every thread with its stack."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from typing import Any

import pytest

import holdfast
from holdfast.runtime.stacks import Stacks, TaskStack, ThreadStack, dump, stacks


async def innermost() -> None:
    await asyncio.Event().wait()


async def middle() -> None:
    await innermost()


async def outer() -> None:
    async with holdfast.timeout(30, name="request"), holdfast.scope("step"):
        await middle()


def find(name: str) -> TaskStack:
    (found,) = [task for task in stacks().tasks if task.name == name]
    return found


async def ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_task_with_its_await_chain_and_its_scope() -> None:
    task = asyncio.create_task(outer(), name="one")
    await asyncio.sleep(5)
    found = find("one")
    await ended(task)
    places = [place.rpartition(" ")[2] for place in found.waits]
    assert places == ["outer", "middle", "innermost", "Event.wait"]
    assert re.fullmatch(r"\S+test_stacks\.py:\d+ outer", found.waits[0])
    assert (found.state, found.on, found.cancelled) == ("waits", "", "")
    assert found.scope == "request/step"
    assert found.remaining == pytest.approx(25)
    assert found.line() == "one, waits, scope request/step, 25 s left"


async def test_the_one_that_asks_runs_and_one_that_has_not_begun_is_ready() -> None:
    task = asyncio.create_task(outer(), name="fresh")
    asking = asyncio.current_task()
    assert asking is not None
    assert find(asking.get_name()).state == "running"
    assert find("fresh").state == "ready"
    await ended(task)
    assert [one.name for one in stacks().tasks] == [asking.get_name()]


async def test_a_task_that_waits_for_a_task() -> None:
    async def waits_for(task: asyncio.Task[Any]) -> None:
        await task

    first = asyncio.create_task(outer(), name="first")
    second = asyncio.create_task(waits_for(first), name="second")
    await asyncio.sleep(1)
    found = find("second")
    await ended(second, first)
    assert found.on == "first"
    assert found.line().startswith("second, waits for task first")


async def test_why_a_task_was_cancelled() -> None:
    async def deaf() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)  # its clean-up

    async def bounded() -> None:
        async with holdfast.timeout(1, name="late"):
            await deaf()

    late = asyncio.create_task(bounded(), name="late")
    told = asyncio.create_task(deaf(), name="told")
    await asyncio.sleep(1.1)
    told.cancel()
    await asyncio.sleep(0.1)
    by_scope, by_somebody = find("late"), find("told")
    await asyncio.wait([late, told])
    assert isinstance(late.exception(), holdfast.DeadlineExceeded)
    assert "late" in by_scope.cancelled
    assert by_scope.remaining < 0
    assert by_somebody.cancelled == "1 times by somebody else"
    assert "cancelled: 1 times by somebody else" in by_somebody.line()


async def test_the_scope_of_a_task_that_hosts_none() -> None:
    async with holdfast.scope("around"):
        task = asyncio.create_task(innermost(), name="inside")
        await asyncio.sleep(1)
        found = find("inside")
        await ended(task)
    # Before 3.12 the context of a task cannot be looked at from outside.
    assert found.scope == ("around" if sys.version_info >= (3, 12) else "")


async def test_nothing_is_settled_by_looking() -> None:
    async with holdfast.timeout(60), holdfast.timeout(30, name="young") as scope:
        assert not scope.settled
        young = stacks()
        assert not scope.settled
    assert any(task.scope.endswith("/young") for task in young.tasks)


def test_every_thread_and_the_tasks_of_every_loop_from_anywhere() -> None:
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        task = asyncio.create_task(outer(), name="of the other loop")
        await asyncio.sleep(0)
        ready.set()
        await asyncio.to_thread(over.wait)
        await ended(task)

    def run() -> None:
        asyncio.run(serve())

    thread = threading.Thread(target=run, name="loop thread")
    thread.start()
    ready.wait()
    found = stacks()
    text = dump()
    over.set()
    thread.join()
    assert "of the other loop" in [task.name for task in found.tasks]
    threads = {one.name: one for one in found.threads}
    assert threads["MainThread"].here
    assert not threads["loop thread"].here
    assert any(frame.endswith(".run") for frame in threads["loop thread"].frames)
    assert threads["loop thread"].ident == thread.ident
    assert "task of the other loop, waits, scope request/step, " in text
    assert "MainThread, asks for this\n" in text


def test_a_loop_without_any_scope_and_a_thread_that_python_did_not_start() -> None:
    import _thread

    ready, over = threading.Event(), threading.Event()

    def run() -> None:
        ready.set()
        over.wait()

    async def serve() -> Stacks:
        task = asyncio.create_task(innermost(), name="bare")
        await asyncio.sleep(0)
        found = stacks()
        await ended(task)
        return found

    ident = _thread.start_new_thread(run, ())
    ready.wait()
    found = asyncio.run(serve())
    over.set()
    assert "bare" in [task.name for task in found.tasks]
    (foreign,) = [one for one in found.threads if one.ident == ident]
    assert foreign.name == ""
    assert f"thread {ident} (not started by Python)" in found.text()


async def test_thousands_in_one_place_are_written_together() -> None:
    tasks = [asyncio.create_task(outer(), name=f"t{n:04}") for n in range(3000)]
    await asyncio.sleep(1)
    text = dump()
    some = stacks(most_tasks=100)
    await ended(*tasks)
    assert text.count("task t") == 20
    assert "  and 2980 more in the same place" in text
    assert text.count(" innermost") == 1
    assert len(some.tasks) == 100
    assert some.omitted == 2901
    assert "100 tasks, 2901 more left out" in some.text()


async def test_bounded_depth_and_size() -> None:
    async def deep(n: int) -> None:
        if n:
            await deep(n - 1)
        else:
            await innermost()

    def dig(n: int) -> Stacks:
        return dig(n - 1) if n else stacks()

    task = asyncio.create_task(deep(200), name="deep")
    await asyncio.sleep(1)
    found = dig(200)
    await ended(task)
    (one,) = [task for task in found.tasks if task.name == "deep"]
    assert len(one.waits) == 65
    assert re.fullmatch(r"\.\.\. \d+ frames", one.waits[32])
    assert one.waits[-1].endswith("Event.wait")
    (here,) = [thread for thread in found.threads if thread.here]
    assert len(here.frames) == 65
    assert here.frames[0] == "... more frames outside"
    text = found.text(most=500)
    assert len(text) < 600
    assert text.endswith("... cut off here: the dump has reached its bound")


def test_plain_values() -> None:
    task = TaskStack("t", "waits", ("a:1 f",), "", "s", float("inf"), "")
    found = Stacks((task,), (ThreadStack("main", 1, True, ("b:2 g",)),))
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["tasks"][0]["remaining"] is None
    assert values["tasks"][0]["waits"] == ["a:1 f"]
    assert values["threads"][0]["name"] == "main"


def test_while_other_threads_make_tasks_and_threads() -> None:
    over = threading.Event()

    async def busy() -> None:
        while not over.is_set():
            async with holdfast.tasks("fan") as group:
                for _ in range(20):
                    group.start(asyncio.sleep(0))

    threads = [threading.Thread(target=lambda: asyncio.run(busy())) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert dump()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert stacks().tasks == ()
