"""Random programs of scopes, groups and clean-up, ours and foreign, cancelled at random.

Whatever the program: it ends, the counters balance, nothing is left, and without a foreign
cancellation no `CancelledError` comes out at the top.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

import holdfast
from holdfast.testing import run_checked

Body = Callable[[], Coroutine[Any, Any, None]]
EXPECTED = (TimeoutError, holdfast.ScopeEnded, ValueError)


def program(dice: random.Random, depth: int) -> Body:
    """A coroutine function; the dice are thrown now, so that it does the same every time."""
    if depth == 0:
        pause = dice.choice([0, 0, 0.05, 0.2, 0.5, 1.0, 3.0])

        async def leaf() -> None:
            await asyncio.sleep(pause)

        return leaf
    kind = dice.choice(KINDS)
    inner = [
        program(dice, depth - 1 - dice.randrange(depth)) for _ in range(dice.choice([1, 2, 3]))
    ]
    return kind(dice, inner)


async def in_turn(inner: list[Body]) -> None:
    for body in inner:
        await body()


def own_timeout(dice: random.Random, inner: list[Body]) -> Body:
    budget, grace = dice.choice([0.1, 0.3, 1.0, 2.0]), dice.choice([0, 0, 0.05])

    async def run() -> None:
        async with holdfast.timeout(budget, grace=grace):
            await in_turn(inner)

    return run


def own_scope(dice: random.Random, inner: list[Body]) -> Body:
    after = dice.choice([None, None, 0.0, 0.15, 0.6])

    async def run() -> None:
        async with holdfast.scope("s") as scope:
            if after is not None:
                asyncio.get_running_loop().call_later(after, scope.cancel)
            await in_turn(inner)

    return run


def own_shield(dice: random.Random, inner: list[Body]) -> Body:
    grace = dice.choice([0.0, 0.1, 0.5])

    async def run() -> None:
        async with holdfast.shield(grace):
            await in_turn(inner)

    return run


def own_group(dice: random.Random, inner: list[Body]) -> Body:
    async def run() -> None:
        async with holdfast.tasks() as group:
            for body in inner[1:]:
                group.start(body())
            await inner[0]()

    return run


def native_group(dice: random.Random, inner: list[Body]) -> Body:
    async def run() -> None:
        async with anyio.create_task_group() as group:
            for body in inner[1:]:
                group.start_soon(body)
            await inner[0]()

    return run


def native_timeout(dice: random.Random, inner: list[Body]) -> Body:
    budget = dice.choice([0.1, 0.4, 2.0])

    async def run() -> None:
        async with asyncio.timeout(budget):
            await in_turn(inner)

    return run


def foreign_timeout(dice: random.Random, inner: list[Body]) -> Body:
    budget = dice.choice([0.1, 0.4, 2.0])

    async def run() -> None:
        with anyio.move_on_after(budget):
            await in_turn(inner)

    return run


def cleans_up(dice: random.Random, inner: list[Body]) -> Body:
    pause = dice.choice([0.0, 0.1, 0.7])

    async def run() -> None:
        try:
            await inner[0]()
        finally:
            await asyncio.sleep(pause)

    return run


def catches(dice: random.Random, inner: list[Body]) -> Body:
    async def run() -> None:
        for body in inner:
            with contextlib.suppress(*EXPECTED, ExceptionGroup):
                await body()

    return run


def fails(dice: random.Random, inner: list[Body]) -> Body:
    async def run() -> None:
        await inner[0]()
        raise ValueError

    return run


KINDS = [
    own_timeout,
    own_timeout,
    own_scope,
    own_shield,
    own_group,
    native_group,
    native_timeout,
    foreign_timeout,
    cleans_up,
    catches,
    catches,
    fails,
]


def flat(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in flat(each)]
    return [error]


async def attempt(body: Body, cancel_after: float | None) -> None:
    task = asyncio.create_task(body())
    if cancel_after is not None:
        await asyncio.sleep(cancel_after)
        task.cancel()
    done, _ = await asyncio.wait([task], timeout=500)
    assert done, "it never ended"
    cancelled = cancel_after is not None
    if task.cancelled():
        assert cancelled, "a cancellation of nobody came out"
    elif (error := task.exception()) is not None:
        assert all(isinstance(leaf, EXPECTED) for leaf in flat(error)), repr(error)


async def in_place(body: Body) -> None:
    """In the task of the test, whose counter is looked at."""
    with contextlib.suppress(*EXPECTED, ExceptionGroup):
        await body()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(5)  # nothing may be left to be delivered


@pytest.mark.parametrize("block", range(12))
def test_random_programs(block: int) -> None:
    for seed in range(block * 60, block * 60 + 60):
        dice = random.Random(seed)
        body = program(dice, 5)
        moment = dice.choice([None, 0.0, 0.05, 0.12, 0.3, 0.9])
        try:
            run_checked(lambda body=body: in_place(body))
            run_checked(lambda body=body, moment=moment: attempt(body, moment))
        except BaseException as exc:
            exc.add_note(f"seed {seed}, cancelled after {moment}")
            raise
