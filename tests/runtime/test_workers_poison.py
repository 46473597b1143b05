"""Items that raise what should end a task, a generator or the program: the pool goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from holdfast.runtime.workers import workers


async def take(seconds: float, answer: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return answer


class Odd(BaseException):
    pass


class Shy(Exception):
    def __repr__(self) -> str:
        raise ValueError("no words")


def poisons() -> dict[str, tuple[Any, type[BaseException], str]]:
    dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dead.cancel()

    def stops() -> Any:
        return next(iter(()))

    def looks_at_what_is_dead() -> Any:
        return take(0, dead.result())

    def odd() -> Any:
        raise Odd("poison")

    def leaves() -> Any:
        raise GeneratorExit("poison")

    async def awaits_what_is_dead() -> None:
        await dead

    async def stops_within() -> None:
        next(iter(()))

    nobody = "raised CancelledError, and nobody had cancelled it"
    return {
        "stop": (stops, RuntimeError, "'stops' raised StopIteration"),
        "cancelled": (looks_at_what_is_dead, RuntimeError, nobody),
        "odd": (odd, Odd, "poison"),
        "exit": (leaves, RuntimeError, "'leaves' raised GeneratorExit"),
        "stop within": (stops_within, RuntimeError, "StopIteration"),
        "cancelled within": (awaits_what_is_dead, RuntimeError, nobody),
    }


POISONS = ("stop", "cancelled", "odd", "exit", "stop within", "cancelled within")


@pytest.mark.parametrize("which", POISONS)
@pytest.mark.parametrize("queued", [False, True])
async def test_whatever_an_item_raises_the_next_ones_are_done(which: str, queued: bool) -> None:
    poison, kind, said = poisons()[which]
    async with asyncio.timeout(60), workers(1) as pool:
        blocker = pool.submit(take, 1 if queued else 0)
        if not queued:
            await blocker
        bad = pool.submit(poison)
        after = [pool.submit(take, 0.1, n) for n in range(3)]
        with pytest.raises(kind, match=said):
            await bad
        assert await asyncio.gather(*after) == [0, 1, 2]
        with pytest.raises(kind, match=said):
            await pool.run(poison)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
    stats = pool.stats()
    assert (stats.done, stats.failed, stats.cancelled, stats.dropped) == (4, 2, 0, 0)


@pytest.mark.parametrize("which", POISONS)
async def test_whatever_an_item_raises_that_nobody_waits_for_is_logged(
    which: str, caplog: pytest.LogCaptureFixture
) -> None:
    poison, _, said = poisons()[which]
    with caplog.at_level(logging.ERROR, "holdfast.workers"):
        async with asyncio.timeout(60), workers(1) as pool:
            for _ in range(3):
                await pool.put(poison)
            await pool.put(take, 1)
    assert [said in record.getMessage() for record in caplog.records] == [True] * 3
    assert (pool.stats().done, pool.stats().failed) == (1, 3)


async def test_an_error_without_words_does_not_stop_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def shy() -> None:
        raise Shy

    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("holdfast.workers").addHandler(mute := logging.NullHandler())
    try:
        async with asyncio.timeout(60), workers(1) as pool:
            await pool.put(shy)
            await pool.put(take, 1)
            await pool.put(take, 1)
    finally:
        logging.getLogger("holdfast.workers").removeHandler(mute)
    assert (pool.stats().done, pool.stats().failed) == (2, 1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_program_goes_on_and_leaves_the_pool_whole(
    kind: type[BaseException],
) -> None:
    done: list[int] = []

    def end() -> Any:
        raise kind

    async def note(n: int) -> None:
        done.append(n)

    async def body() -> None:
        async with workers(1) as pool:
            pool.submit(take, 0.01)
            pool.submit(end).add_done_callback(lambda handle: handle.exception())
            for n in range(3):
                pool.submit(note, n)

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(body())
        with pytest.raises(kind):
            loop.run_until_complete(task)
        assert not done
        loop.run_until_complete(asyncio.wait_for(task, 10))
    finally:
        loop.close()
    assert done == [0, 1, 2]
