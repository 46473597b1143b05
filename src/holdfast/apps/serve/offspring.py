"""Processes that are children of this one: started clean, and their death noticed.

A child starts as a fresh interpreter with nothing blocked and nothing ignored, whatever its parent
has done to its own signals. SIGHUP alone is left as it is: `nohup` is for the children too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from holdfast.domain.instant import Duration
from holdfast.runtime.driver import driver_of

__all__ = ["DeathWatch", "die_with", "start_python"]

_EVERY: Final[Duration] = 0.1
_UNTOUCHABLE: Final = (signal.SIGKILL, signal.SIGSTOP, signal.SIGHUP)
_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def start_python(module: str, *words: str, inherit: Sequence[int]) -> int:
    """Run a module in an interpreter like this one; the pid.

    Args:
        module: its name.
        words: its arguments.
        inherit: numbers of the open files that it gets, beside the three that everybody has.

    Raises:
        OSError: there is no process, for want of memory or of processes.
    """
    before = {number: os.get_inheritable(number) for number in inherit}
    try:
        for number in inherit:
            os.set_inheritable(number, True)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *_flags(), "-m", module, *words],
            os.environ,
            setsigmask=(),
            setsigdef=[item for item in signal.valid_signals() if item not in _UNTOUCHABLE],
        )
    finally:
        for number, inheritable in before.items():
            os.set_inheritable(number, inheritable)


def _flags() -> list[str]:
    # Not promised, but what `multiprocessing` and the test suite of Python go by.
    flags: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags", list)
    return flags()


class DeathWatch:
    """Notices that a child is gone, and takes its exit code from the kernel.

    Args:
        pid: the child.
        gone: is called once, with the pid and the exit code: -N for signal N; None when somebody
            else was told.
        polled: look from time to time, as where the kernel does not tell by itself.
    """

    def __init__(
        self, pid: int, gone: Callable[[int, int | None], object], *, polled: bool = False
    ) -> None:
        self._pid = pid
        self._gone = gone
        self._driver = driver_of(asyncio.get_running_loop())
        self._fd = -1 if polled else _pidfd(pid)
        if self._fd >= 0:
            self._driver.loop.add_reader(self._fd, self._look)
        else:
            self._look()

    def _look(self) -> None:
        code: int | None = None
        try:
            found, status = os.waitpid(self._pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            found = self._pid  # somebody else has waited for it
        if not found:
            if self._fd < 0:
                self._driver.alarm(self._driver.now() + _EVERY, self._look)
            return
        if self._fd >= 0:
            self._driver.loop.remove_reader(self._fd)
            os.close(self._fd)
        # Never from within the call that began to watch.
        self._driver.loop.call_soon(self._gone, self._pid, code)


def _pidfd(pid: int) -> int:
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # a kernel before 5.3, a sandbox, no number left
            return os.pidfd_open(pid)
    return -1


def die_with(parent: int) -> bool:
    """Be told to stop (SIGTERM) when the process that started this one is gone; Linux only.

    Whether that process is still there.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        with suppress(OSError, AttributeError):
            libc: Any = ctypes.CDLL(None)
            cast("Callable[[int, int], int]", libc.prctl)(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    return os.getppid() == parent
