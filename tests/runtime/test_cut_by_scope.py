"""Whether a cancellation is one of a scope, or somebody else's that has to arrive as it is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import holdfast
from holdfast.runtime.bounded import cut_by_scope


async def told(seen: list[Any]) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as cut:
        seen.append(cut_by_scope(cut))
        raise


@pytest.mark.parametrize("how", ["plain", "nested", "child", "gather"])
async def test_a_scopes_own(how: str) -> None:
    seen: list[Any] = []
    with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012 - four ways to wait
        async with holdfast.timeout(1.0):
            if how == "nested":
                async with holdfast.timeout(5.0):
                    await told(seen)
            elif how == "child":
                async with holdfast.tasks() as group:
                    group.start(told(seen))
            elif how == "gather":
                await asyncio.gather(told(seen), told(seen))
            else:
                await told(seen)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("first", ["task", "scope"])
async def test_somebody_elses_in_the_same_turn(first: str) -> None:
    seen: list[Any] = []
    scopes: list[holdfast.Scope] = []

    async def work() -> None:
        async with holdfast.timeout(5.0) as scope:
            scopes.append(scope)
            await told(seen)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    if first == "task":
        task.cancel()
        scopes[0].cancel("enough")
    else:
        scopes[0].cancel("enough")
        task.cancel()
    await asyncio.wait([task])
    assert seen == [None]
    assert task.cancelled()


async def test_one_of_asyncio_alone() -> None:
    seen: list[Any] = []
    async with holdfast.timeout(5.0):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await told(seen)
    assert seen == [None]


async def test_in_clean_up_after_somebody_elses() -> None:
    """What was cancelled before the scope began does not count."""
    seen: list[Any] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            with suppress(holdfast.DeadlineExceeded):
                async with holdfast.timeout(0.5):
                    await told(seen)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    assert seen[0]
    assert task.cancelled()
