"""Pools under random programs, in virtual time: what must hold whatever comes together."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import holdfast
from holdfast.runtime.workers import Workers, WorkersFull, workers
from holdfast.testing import run_checked
from holdfast.testing.virtual import VirtualLoop

TIMES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 5.0])
LIMITS = st.sampled_from([0.5, 1.0, 2.0, 4.0, 100.0])


@dataclass(frozen=True)
class Caller:
    """One task that hands work over.

    Attributes:
        at: when it comes.
        how: `run`, `put`, `submit`, or `submit and cancel`.
        items: how many, one after another.
        takes: seconds for each.
        limit: of its scope.
        leaves: when its task or scope is cancelled; infinite for never.
        by: `task` or `scope`.
        fails: whether its items raise.
    """

    at: float
    how: str
    items: int
    takes: float
    limit: float
    leaves: float
    by: str
    fails: bool


CALLERS = st.builds(
    Caller,
    at=TIMES,
    how=st.sampled_from(["run", "put", "submit", "submit and cancel"]),
    items=st.integers(1, 4),
    takes=TIMES,
    limit=LIMITS,
    leaves=TIMES | st.just(float("inf")),
    by=st.sampled_from(["task", "scope"]),
    fails=st.booleans(),
)


@dataclass
class Seen:
    running: int = 0
    most: int = 0
    begun: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    handles: list[asyncio.Future[Any]] = field(default_factory=list)
    numbers: int = 0


async def item(seen: Seen, number: int, caller: Caller) -> int:
    seen.begun[number] = seen.begun.get(number, 0) + 1
    seen.running += 1
    seen.most = max(seen.most, seen.running)
    if holdfast.remaining() <= 0 or holdfast.remaining() > caller.limit:
        seen.late.append(number)
    try:
        await asyncio.sleep(caller.takes)
        if caller.fails:
            raise ValueError(number)
        return number
    finally:
        seen.running -= 1
        seen.ended[number] = seen.ended.get(number, 0) + 1


async def hand_over(pool: Workers, caller: Caller, seen: Seen) -> None:
    for _ in range(caller.items):
        seen.numbers += 1
        number = seen.numbers
        try:
            if caller.how == "run":
                assert await pool.run(item, seen, number, caller) == number
            elif caller.how == "put":
                await pool.put(item, seen, number, caller)
            else:
                handle = pool.submit(item, seen, number, caller)
                seen.handles.append(handle)
                if caller.how == "submit and cancel":
                    handle.cancel()
        except (ValueError, WorkersFull):
            pass


async def call(pool: Workers, caller: Caller, seen: Seen) -> None:
    await asyncio.sleep(caller.at)
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None
    with suppress(holdfast.ScopeEnded, asyncio.CancelledError):
        async with holdfast.timeout(caller.limit) as scope:
            leaver = None
            if caller.leaves != float("inf"):
                leave = task.cancel if caller.by == "task" else scope.cancel
                leaver = loop.call_later(caller.leaves, leave)
            try:
                await hand_over(pool, caller, seen)
            finally:
                if leaver is not None:
                    leaver.cancel()


@pytest.mark.parametrize("ends", ["in peace", "cancelled"])
@settings(max_examples=150)
@given(
    callers=st.lists(CALLERS, min_size=1, max_size=8),
    count=st.integers(1, 3),
    most=st.integers(0, 3),
    order=st.sampled_from(["fifo", "deadline"]),
)
def test_whatever_comes_together(
    callers: list[Caller], count: int, most: int, order: Any, ends: str
) -> None:
    seen = Seen()

    async def main() -> None:
        pool = workers(count, order=order, most=most)
        with suppress(holdfast.ScopeEnded):
            async with (
                holdfast.timeout(3.0 if ends == "cancelled" else 1000.0),
                pool,
                asyncio.TaskGroup() as group,
            ):
                for caller in callers:
                    group.create_task(call(pool, caller, seen))
        stats = pool.stats()
        assert stats.queued == stats.running == seen.running == 0
        assert stats.done + stats.failed + stats.cancelled + stats.dropped >= len(seen.begun)
        for handle in seen.handles:
            assert handle.done()
            if not handle.cancelled():
                handle.exception()

    run_checked(main, VirtualLoop)
    assert seen.most <= count
    assert all(times == 1 for times in seen.begun.values())
    assert seen.begun == seen.ended
    assert not seen.late
