"""The parts of a stream that need no socket: who waits for how long."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.domain.errors import StreamTimeout
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.side import Direction, Side
from holdfast.runtime.net.wires import Closing


def now() -> float:
    return driver_of(asyncio.get_running_loop()).now()


class Whole:
    """A stream whose socket is ready."""

    peer = "nobody"

    def __init__(self, ready: bool) -> None:
        self.driver = driver_of(asyncio.get_running_loop())
        self.ready = ready

    def is_ready(self, direction: Direction) -> bool:
        return self.ready


async def waiting_on(side: Side) -> asyncio.Task[None]:
    waiting = asyncio.ensure_future(side.wait(3))
    await asyncio.sleep(0)
    assert side.waiting
    return waiting


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_the_loop_gets_the_turns_it_needs_to_hand_over_what_is_there(turns: int) -> None:
    side = Side(Whole(ready=True), "read")
    side.at = now() - 1
    waiting = await waiting_on(side)
    for _ in range(turns):
        await asyncio.sleep(0)
    side.wake()
    await waiting


async def test_and_no_more_than_those() -> None:
    side = Side(Whole(ready=True), "read")
    waiting = await waiting_on(side)
    began = now()
    side.move(now() + 5)
    with pytest.raises(StreamTimeout, match="3 bytes moved"):
        await waiting
    assert now() - began == pytest.approx(5, abs=0.1)


async def test_with_nothing_there_the_deadline_is_the_end() -> None:
    side = Side(Whole(ready=False), "write")
    side.at = now() + 5
    waiting = await waiting_on(side)
    side.move(now() + 50)
    await asyncio.sleep(10)
    assert not waiting.done()
    began = now()
    side.move(began + 1)
    with pytest.raises(StreamTimeout) as caught:
        await waiting
    assert now() - began == pytest.approx(1)
    assert caught.value.what == "write"


async def test_what_happens_in_the_turn_of_the_end_wins() -> None:
    side = Side(Whole(ready=False), "read")
    waiting = await waiting_on(side)
    loop = asyncio.get_running_loop()
    side.move(now() - 1)  # found out in the next turn, and the socket is asked after that
    loop.call_soon(side.wake)
    await waiting


async def test_an_alarm_of_an_earlier_wait_does_not_ring_in_a_later_one() -> None:
    side = Side(Whole(ready=False), "read")
    side.at = now() + 5
    waiting = await waiting_on(side)
    side.wake()
    await waiting
    side.at = now() + 100
    waiting = await waiting_on(side)
    await asyncio.sleep(50)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])


def test_closing_goes_on_while_the_peer_takes_something() -> None:
    closing = Closing(3.0, now=10.0, left=100)
    assert closing.goes_on(11.0, 100)  # nothing yet, but within its patience
    assert closing.goes_on(12.9, 50)
    assert closing.goes_on(15.8, 50)  # counted from when it took something
    assert not closing.goes_on(15.9, 50)


def test_what_is_all_sent_has_one_more_turn_for_the_goodbye_of_the_peer() -> None:
    closing = Closing(3.0, now=10.0, left=100)
    assert closing.goes_on(11.0, 0)
    assert not closing.goes_on(12.0, 0)
    assert not Closing(3.0, now=10.0, left=0).goes_on(11.0, 0)
