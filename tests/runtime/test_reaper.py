"""What the reaper leaves alone, without namespaces."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from holdfast.runtime.reaper import Reaper, become_subreaper, is_first
from holdfast.testing import run_virtual


def dead_child() -> int:
    """A child that C code has made, as far as the reaper can know: it is made before the watch."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_was_there_before_is_left_alone() -> None:
    pid = dead_child()
    reaper = Reaper(patience=1.0)
    reaper.watch()
    assert reaper.look(0.0) == reaper.look(100.0) == ()
    reaper.unwatch()
    assert status(pid) == 7


def test_what_python_makes_is_left_alone() -> None:
    reaper = Reaper(patience=1.0)
    reaper.watch()
    try:
        pid = dead_child()
        assert reaper.look(0.0) == reaper.look(100.0) == ()
    finally:
        reaper.unwatch()
    assert status(pid) == 7


def test_a_stranger_is_reaped_when_nobody_waited_for_it() -> None:
    reaper = Reaper(patience=1.0)
    pid = dead_child()  # and the reaper has not seen it made
    assert reaper.look(10.0) == ()
    assert reaper.look(10.9) == ()
    assert reaper.look(11.0) == (pid,)
    assert reaper.reaped == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_stranger_whose_maker_waits_is_not() -> None:
    reaper = Reaper(patience=1.0)
    pid = dead_child()
    assert reaper.look(10.0) == ()
    assert status(pid) == 7
    assert reaper.look(20.0) == ()
    assert reaper.reaped == 0


def test_a_living_stranger_is_not() -> None:
    reaper = Reaper(patience=1.0)
    living = os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 30"], os.environ)
    dead = dead_child()
    assert reaper.look(0.0) == ()
    assert reaper.look(1.0) == (dead,)
    os.kill(living, 9)
    assert status(living) == -9


def test_the_patience_begins_anew_for_a_number_that_comes_again() -> None:
    reaper = Reaper(patience=1.0)
    pid = dead_child()
    assert reaper.look(10.0) == ()
    status(pid)
    assert reaper.look(10.5) == ()  # nothing is dead
    other = dead_child()
    assert reaper.look(11.0) == ()
    assert status(other) == 7


def test_watching_twice_is_watching_once() -> None:
    before = os.fork, subprocess._fork_exec  # type: ignore[attr-defined]
    reaper = Reaper()
    reaper.watch()
    reaper.watch()
    assert os.fork is not before[0]
    reaper.unwatch()
    assert (os.fork, subprocess._fork_exec) == before  # type: ignore[attr-defined]


def test_what_others_put_over_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    reaper = Reaper()
    monkeypatch.setattr(os, "fork", os.fork)  # so that it is as it was afterwards
    reaper.watch()
    ours = os.fork

    def theirs() -> int:
        return ours()

    os.fork = theirs
    reaper.unwatch()
    assert os.fork is theirs


def test_it_looks_again_and_again_until_it_is_stopped() -> None:
    looks: list[float] = []

    class Counting(Reaper):
        def look(self, now: float) -> tuple[int, ...]:
            looks.append(now)
            return (4711,)

    async def main() -> None:
        import asyncio

        reaper = Counting(every=1.0)
        reaper.start()
        await asyncio.sleep(3.5)
        reaper.stop()
        await asyncio.sleep(10)

    before = os.fork
    run_virtual(main())
    assert len(looks) == 3
    assert os.fork is before


def test_this_is_not_the_first_process() -> None:
    assert is_first() is (os.getpid() == 1)


def test_orphans_can_only_be_asked_for_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="only Linux"):
        become_subreaper()
