"""Notes, channels and the order in which they hand out, without any signal to this process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.meaning import DEFAULT_MEANINGS, Meaning
from holdfast.runtime.signals import SignalNote, Signals, name_of, numbers_of
from holdfast.runtime.signals.channel import SignalChannel
from holdfast.runtime.signals.mask import PROCESS, keep, unmasked_threads
from holdfast.runtime.signals.note import describe, number_of
from holdfast.runtime.signals.readers import Reader, SignalfdReader, WaitingReader
from holdfast.testing import run_virtual

STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
ALL = numbers_of()


def note(name: str, at: float = 0.0) -> SignalNote:
    return SignalNote(signal.Signals[name], name, at)


class Channels:
    """Makes channels and remembers which were forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[SignalChannel] = []

    def make(self, numbers: frozenset[int] = ALL, bound: int = 64) -> SignalChannel:
        return SignalChannel(numbers, DEFAULT_MEANINGS, bound, self.forgotten.append)


# -- notes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "sender"),
    [
        ({}, "unknown (a handler is not told)"),
        ({"pid": 812, "uid": 0, "code": "SI_USER", "process": "bash"}, None),
        ({"pid": 812, "uid": 7, "code": "SI_QUEUE"}, "process 812 of user 7"),
        ({"pid": 812, "code": "SI_TKILL", "process": "x"}, "process 812 (x)"),
        ({"pid": 0, "uid": 0, "code": "SI_USER"}, "somebody outside the container (pid 0)"),
        ({"pid": 0, "uid": 0, "code": "SI_KERNEL"}, "the kernel"),
        ({"pid": 5, "uid": 0, "code": "code 1"}, "the kernel"),
    ],
)
def test_sender_in_a_few_words(told: dict[str, object], sender: str | None) -> None:
    found = SignalNote(15, "SIGTERM", 1.0, **told)  # type: ignore[arg-type]
    assert found.sender == (sender or "process 812 (bash) of user 0")
    assert found.line() == f"SIGTERM from {found.sender}"
    assert found.as_dict()["sender"] == found.sender


def test_a_sender_that_lives_is_looked_up() -> None:
    words = [sys.executable, "-c", "input('runs')", "\n\x1b[31mforged", "x" * 400]
    sleeper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.read(4) == b"runs"
        found = describe(signal.SIGTERM, 0, sleeper.pid, 0)
        assert found.process.startswith("python")
        assert len(found.command) == 200
        assert found.command.isprintable()
        assert "?[31mforged" in found.command
    finally:
        sleeper.communicate(b"\n")
    gone = describe(signal.SIGTERM, 0, sleeper.pid, 0)
    assert (gone.process, gone.command) == ("", "")
    assert gone.sender == f"process {sleeper.pid} of user 0"


def test_the_kernel_is_not_looked_up() -> None:
    found = describe(signal.SIGINT, 0x80, os.getpid(), 0)
    assert (found.process, found.code) == ("", "SI_KERNEL")
    assert describe(signal.SIGINT, 77, 0, 0).code == "code 77"


def test_names_and_numbers() -> None:
    assert name_of(15) == "SIGTERM"
    assert name_of(signal.SIGRTMIN) == "SIGRTMIN"
    assert name_of(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert number_of("SIGTERM") == 15
    assert number_of("SIG_DFL") is None
    assert number_of("SIGNOTHING") is None


def test_what_is_read_by_default() -> None:
    assert numbers_of() == {1, 2, 10, 15}
    assert signal.SIGQUIT in numbers_of({"SIGQUIT": Meaning.STOP})
    assert numbers_of({"SIGBREAK": Meaning.STOP}) == frozenset()  # not on this system


# -- channels ------------------------------------------------------------------------------------


async def test_what_matters_most_comes_first_whatever_came_first() -> None:
    channel = Channels().make()
    for name in ("SIGUSR1", "SIGHUP", "SIGTERM", "SIGINT"):
        assert channel.offer(note(name))
    names = [(await channel.get()).name for _ in range(3)]
    assert names == ["SIGTERM", "SIGINT", "SIGHUP"]
    # One that comes later overtakes what still waits.
    channel.offer(note("SIGTERM"))
    assert [(await channel.get()).name for _ in range(2)] == ["SIGTERM", "SIGUSR1"]


async def test_get_waits_and_loses_nothing_when_it_is_cancelled() -> None:
    channel = Channels().make()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(1):
            await channel.get()
    channel.offer(note("SIGTERM"))
    assert (await channel.get()).name == "SIGTERM"


async def test_a_channel_that_is_cancelled_while_a_signal_comes_keeps_it() -> None:
    channel = Channels().make()
    waiting = asyncio.create_task(channel.get())
    await asyncio.sleep(0)
    channel.offer(note("SIGTERM"))
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (await channel.get()).name == "SIGTERM"


async def test_several_who_wait_for_one_channel_get_one_note_each() -> None:
    channel = Channels().make()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(channel.get()) for _ in range(3)]
        await asyncio.sleep(1)
        for at in range(3):
            channel.offer(note("SIGUSR1", at))
            await asyncio.sleep(1)
    assert sorted(task.result().at for task in tasks) == [0, 1, 2]


async def test_a_closed_channel_gives_what_waits_and_then_ends() -> None:
    channels = Channels()
    with channels.make() as channel:
        channel.offer(note("SIGHUP"))
    assert channels.forgotten == [channel]
    assert channel.closed
    assert not channel.offer(note("SIGTERM"))
    assert [one.name async for one in channel] == ["SIGHUP"]
    with pytest.raises(UsageError, match="this channel of signals has ended"):
        await channel.get()


async def test_who_waits_is_told_that_it_was_closed() -> None:
    channel = Channels().make()
    asyncio.get_running_loop().call_later(1, channel.close)
    assert [one async for one in channel] == []


async def test_a_channel_ends_with_the_scope_it_was_made_in() -> None:
    channels = Channels()
    async with holdfast.scope("serving"):
        channel = channels.make()
        async with holdfast.scope("inner"):
            assert channel.offer(note("SIGHUP"))
    assert channel.closed
    assert not channel.offer(note("SIGTERM"))


def test_a_channel_of_a_loop_that_is_gone_takes_nothing() -> None:
    async def make() -> SignalChannel:
        return Channels().make()

    channel = asyncio.run(make())
    assert not channel.offer(note("SIGTERM"))
    assert channel.closed
    channel.close()


async def test_a_full_channel_joins_the_most_frequent() -> None:
    channel = Channels().make(bound=4)
    for at in range(3):
        channel.offer(note("SIGUSR1", at))
    for name in ("SIGTERM", "SIGTERM", "SIGHUP"):
        channel.offer(note(name))
    channel.close()
    names = [one.name async for one in channel]
    assert len(names) == 4
    assert set(names) == {"SIGTERM", "SIGHUP", "SIGUSR1"}
    assert channel.joined == 2


@given(
    st.lists(st.sampled_from(["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"]), max_size=60),
    st.integers(1, 8),
)
def test_of_each_signal_at_least_one_is_handed_out(names: list[str], bound: int) -> None:
    async def drive() -> list[str]:
        channel = Channels().make(bound=bound)
        for name in names:
            channel.offer(note(name))
        channel.close()
        found = [one.name async for one in channel]
        assert len(found) + channel.joined == len(names)
        return found

    found = run_virtual(drive())
    assert set(found) == set(names)
    assert len(found) <= max(bound, len(ALL))


async def test_from_another_thread() -> None:
    channel = Channels().make()

    def offer() -> None:
        for at in range(50):
            channel.offer(note("SIGUSR1", at))

    thread = threading.Thread(target=offer)
    thread.start()
    found = [(await channel.get()).at for _ in range(50)]
    thread.join()
    assert found == list(range(50))


# -- the rest ------------------------------------------------------------------------------------


def test_of_those_that_wait_for_a_reader_one_of_each_stays() -> None:
    waiting: deque[SignalNote] = deque()
    for at in range(200):
        keep(waiting, note("SIGUSR1", at))
    keep(waiting, note("SIGTERM"))
    keep(waiting, note("SIGTERM"))
    assert [one.name for one in waiting] == ["SIGUSR1"] * 64 + ["SIGTERM"]


def test_threads_that_do_not_block() -> None:
    every = unmasked_threads(frozenset({signal.SIGUSR2}))
    assert threading.get_native_id() in every
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        assert threading.get_native_id() not in unmasked_threads(frozenset({signal.SIGUSR2}))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_nothing_is_taken_by_importing() -> None:
    assert PROCESS.blocked == frozenset()
    assert PROCESS.before == {}
    assert Signals().source == ""


def in_thread_that_blocks(number: int, work: Callable[[], None]) -> None:
    """Run `work` in a thread with `number` blocked: sent to that thread alone, it harms nobody."""

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        work()

    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", [SignalfdReader, WaitingReader])
def test_a_reader_can_be_woken_before_and_while_it_waits(kind: Callable[..., Reader]) -> None:
    def work() -> None:
        reader = kind({signal.SIGUSR2})
        for _ in range(3):
            reader.wake()
        assert reader.wait() == []
        timer = threading.Timer(0.2, reader.wake)
        timer.start()
        assert reader.wait() == []
        timer.join()
        for _ in range(70_000):  # more than a pipe holds
            reader.wake()
        assert reader.wait() == []
        reader.close()

    in_thread_that_blocks(signal.SIGUSR2, work)


def test_signalfd_reads_all_that_wait_with_their_sender() -> None:
    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGRTMIN])
        reader = SignalfdReader({signal.SIGUSR2, signal.SIGRTMIN})
        for _ in range(100):
            signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        found = reader.wait()
        reader.close()
        assert [one.name for one in found].count("SIGRTMIN") == 100
        assert {(one.pid, one.uid, one.code) for one in found} == {
            (os.getpid(), os.getuid(), "SI_TKILL")
        }
        assert re.match(r"process \d+ \(.+\) of user \d+", found[0].sender)

    in_thread_that_blocks(signal.SIGUSR2, work)
