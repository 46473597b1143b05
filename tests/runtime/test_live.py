"""The live tree as an object, as text and as JSON."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012, SIM117
from __future__ import annotations

import asyncio
import json
import re
import threading

import pytest

import holdfast
from holdfast.domain.context import Carried, Identity
from holdfast.runtime.ambient import use
from holdfast.runtime.driver import driver_of

WHO = Carried(Identity("e" * 32, "f" * 16), "canary")


async def waits_for_ever() -> None:
    await asyncio.Event().wait()


async def test_every_open_scope_with_age_rest_task_and_place() -> None:
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.timeout(10, name="request"), use(WHO):
            async with holdfast.tasks("fan") as group:
                group.start(waits_for_ever(), name="leaf")
                await asyncio.sleep(3)
                (root,) = holdfast.tree().roots
                (request,) = root.children
                (carrying,) = request.children
                (fan,) = carrying.children
                (leaf,) = fan.children
                assert request.age == pytest.approx(3)
                assert request.remaining == pytest.approx(7)
                assert request.path == "request"
                assert leaf.path == "request/request/fan/leaf"
                assert leaf.task == "leaf"
                assert (leaf.request_id, leaf.stage) == ("e" * 32, "canary")
                assert "waits_for_ever" in leaf.waits[0]
                assert re.search(r"locks\.py:\d+ Event\.wait", leaf.waits[-1])
                assert leaf.cancelled == ""
                assert len(holdfast.tree()) == 4
                group.cancel()
                await asyncio.sleep(0)
    assert len(holdfast.tree()) == 0
    assert holdfast.tree().roots[0].children == ()


async def test_as_text() -> None:
    async with holdfast.timeout(10, name="request"), use(WHO), holdfast.scope("step"):
        await asyncio.sleep(0.25)
        text = str(holdfast.tree())
    lines = text.splitlines()
    assert lines[0].startswith("process")
    assert any(line.startswith("  request  250 ms old, 9.75 s left") for line in lines)
    assert any("stage canary" in line and "e" * 32 in line for line in lines)
    assert "step" in text
    assert "no deadline" in lines[0]


async def test_as_json() -> None:
    async with holdfast.timeout(10, name="request"), holdfast.scope("step"):
        document = json.loads(json.dumps(holdfast.tree().as_dict(), allow_nan=False))
        (root,) = document["roots"]
        assert root["remaining_s"] is None
        (request,) = root["children"]
        assert request["remaining_s"] == pytest.approx(10)
        assert request["children"][0]["path"] == "request/step"
    empty = json.loads(json.dumps(holdfast.tree().as_dict(), allow_nan=False))
    assert empty["roots"][0]["children"] == []


async def test_a_cancelled_scope_that_lingers_is_marked() -> None:
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(1, name="request"):
            try:
                await asyncio.Event().wait()
            finally:
                async with holdfast.shield(0.5, name="tidy"):
                    await asyncio.sleep(0.25)
                    text = str(holdfast.tree())
                    live = holdfast.tree().roots[0].children[0]
    assert live.cancelled_for == pytest.approx(0.25)
    assert "! cancelled 250 ms ago, still open: deadline exceeded in scope 'request'" in text
    assert live.children[0].cancelled == ""


async def test_counts_are_told() -> None:
    for _ in range(3):
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(1):
                await asyncio.Event().wait()
    assert holdfast.tree().counts["cancelled.deadline"] == 3


async def test_a_tree_of_ten_thousand_scopes_is_told() -> None:
    async with holdfast.tasks() as group:
        children = [group.start(asyncio.sleep(1)) for _ in range(10_000)]
        await asyncio.sleep(0)
        assert len(holdfast.tree()) == 10_001
    assert len(children) == 10_000
    assert len(holdfast.tree()) == 0


async def test_a_deep_tree_is_told() -> None:
    async def deeper(left: int) -> int:
        if not left:
            return len(str(holdfast.tree()).splitlines())
        async with holdfast.scope(f"level-{left}"):
            return await deeper(left - 1)

    assert await deeper(150) >= 151


def test_without_a_loop_there_is_nothing_to_tell() -> None:
    assert len(holdfast.tree()) == 0
    json.dumps(holdfast.tree().as_dict(), allow_nan=False)


async def test_a_plain_scope_is_told_as_json_too() -> None:
    def work() -> str:
        with holdfast.timeout(5, name="in a thread"):
            return json.dumps(holdfast.tree().as_dict(), allow_nan=False)

    async with holdfast.timeout(10, name="request"):
        assert "request" in await asyncio.to_thread(work)


# -- from another thread --------------------------------------------------------------------------


async def test_a_snapshot_touches_no_timers() -> None:
    driver = driver_of(asyncio.get_running_loop())
    async with holdfast.timeout(10, name="request"), holdfast.timeout(5, name="step") as step:
        armed, young = len(driver.timers), driver.young[:]
        (request,) = holdfast.tree().roots[0].children
        assert [child.path for child in request.children] == ["request/step"]
        assert (len(driver.timers), driver.young) == (armed, young)
        assert not step.settled
        await asyncio.sleep(0.01)
        assert step.settled
        (request,) = holdfast.tree().roots[0].children
        assert [child.path for child in request.children] == ["request/step"]


@pytest.mark.real_time("asyncio", "uvloop")
async def test_from_another_thread_a_running_loop_is_left_alone() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # asyncio then refuses calls from another thread
    driver = driver_of(loop)
    async with holdfast.timeout(10, name="request"), holdfast.timeout(5, name="step"):
        armed, young = len(driver.timers), driver.young[:]
        seen: list[holdfast.runtime.live.LiveTree] = []
        # The loop waits meanwhile, so that nothing is settled behind the back of this test.
        thread = threading.Thread(target=lambda: seen.append(holdfast.tree()))
        thread.start()
        thread.join()
        assert (len(driver.timers), driver.young) == (armed, young)
        (request,) = seen[0].roots[-1].children
        assert [child.path for child in request.children] == ["request/step"]
        later = await asyncio.to_thread(holdfast.tree)
        assert "step" in str(later)
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.02):
            await asyncio.to_thread(holdfast.tree)
            await waits_for_ever()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_two_loops_see_each_other() -> None:
    ready, seen_by_main = threading.Event(), threading.Event()
    told: list[str] = []

    async def other() -> None:
        async with holdfast.timeout(20, name="theirs"), holdfast.scope("below"):
            ready.set()
            await asyncio.to_thread(seen_by_main.wait)
            told.append(str(holdfast.tree()))

    async with holdfast.timeout(10, name="ours"):
        thread = threading.Thread(target=lambda: asyncio.run(other(), debug=True))
        thread.start()
        await asyncio.to_thread(ready.wait)
        text = str(holdfast.tree())
        seen_by_main.set()
        await asyncio.to_thread(thread.join)
    for tree in (text, *told):
        assert tree.splitlines().count(tree.splitlines()[0]) >= 1
        assert "ours" in tree
        assert "theirs" in tree
        assert "below" in tree


@pytest.mark.real_time("asyncio", "uvloop")
async def test_snapshots_of_a_busy_loop_from_another_thread() -> None:
    over = threading.Event()
    taken: list[int] = []

    def look() -> None:
        while not over.is_set():
            taken.append(len(holdfast.tree()))

    async def work() -> None:
        for _ in range(200):
            async with holdfast.timeout(5), holdfast.timeout(3), holdfast.scope("leaf"):
                await asyncio.sleep(0)

    looking = asyncio.create_task(asyncio.to_thread(look))
    async with holdfast.tasks() as group:
        for _ in range(20):
            group.start(work())
    over.set()
    await looking
    assert max(taken) > 0
    assert len(holdfast.tree()) == 0
