"""The duty of process 1: to reap processes whose parents have gone, and never one of its own.

When a parent ends, its children are handed to process 1 of the container, or to the nearest
ancestor that asked for them (`become_subreaper`). Whoever does not wait for them collects dead
processes until there are no numbers left. Waiting for all children would do, but it would take from
`subprocess`, `asyncio` and `multiprocessing` what became of theirs: an exit code of 0 where it was
7, or a `join` that never returns. The kernel does not say of a dead child whose it was, so:

Rule 1. What Python starts is ours. Every way in which Python makes a process is watched while the
        reaper runs, and those processes are left alone, however late their exit code is asked for.
Rule 2. What was there before the reaper is ours as well.
Rule 3. Orphans are handed to the main thread. So a child of another thread is ours.
Rule 4. What remains has been made by C code, or is an orphan. C code that starts processes (libuv
        in uvloop is the one that is common) waits for them as soon as they end; so one that has
        been dead for a while, and that nobody has waited for, is an orphan, and is reaped.

The rest that is left is C code in the main thread that looks after its dead later than that.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.clock import clock_of

__all__ = ["Reaper", "become_subreaper", "is_first"]

_SET_CHILD_SUBREAPER: Final = 36
_log: Final = logging.getLogger("holdfast.lifecycle")


def is_first() -> bool:
    """Whether this process is the first one of its container, and so has to reap."""
    return os.getpid() == 1


def become_subreaper() -> None:
    """Ask for the orphans among the descendants of this process, which then has to reap them.

    Raises:
        OSError: this is not Linux, or the kernel refuses.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("only Linux hands orphans to another process than the first")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _makers() -> tuple[tuple[ModuleType, str], ...]:
    """Every function with which Python makes a process, where it is looked up."""
    import _posixsubprocess

    return (
        (os, "fork"),
        (os, "forkpty"),
        (os, "posix_spawn"),
        (os, "posix_spawnp"),
        (subprocess, "_fork_exec"),
        (_posixsubprocess, "fork_exec"),
    )


class Reaper:
    """Reaps orphans between `start` and `stop`.

    Args:
        patience: seconds that C code has to wait for a dead child of its own.
        every: seconds between two looks; one costs a system call where nothing is dead.
    """

    def __init__(self, *, patience: Duration = 10.0, every: Duration = 1.0) -> None:
        self._patience = patience
        self._every = every
        self._own: set[int] = set()
        self._dead_since: dict[int, Instant] = {}
        self._watched: list[tuple[ModuleType, str, Any, Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.reaped = 0

    def start(self) -> None:
        """Reap from now on, on the running loop. Call it before the application is loaded."""
        self.watch()
        self._again(asyncio.get_running_loop())

    def stop(self) -> None:
        """Reap no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.unwatch()

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._every, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for pid in self.look(clock_of(loop)()):
                _log.debug("reaped process %d, whose parent had ended", pid)
        finally:
            self._again(loop)

    def watch(self) -> None:
        """Take note of every process that Python makes from now on (rules 1 and 2)."""
        if self._watched:
            return
        self._own.update(_children(_threads()))
        for module, name in _makers():
            before = getattr(module, name, None)
            if before is not None:
                after = self._noting(before)
                setattr(module, name, after)
                self._watched.append((module, name, before, after))

    def unwatch(self) -> None:
        """Leave the functions of Python as they were."""
        for module, name, before, after in self._watched:
            # Somebody may have put something of theirs over ours: then ours stays, as a link.
            if getattr(module, name) is after:
                setattr(module, name, before)
        self._watched.clear()

    def _noting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            found: Any = make(*args, **kwargs)
            # `forkpty` returns a descriptor as well.
            pid = found if isinstance(found, int) else int(found[0])
            if pid:  # not in the child
                self._own.add(pid)
            return found

        return made

    def look(self, now: Instant) -> tuple[int, ...]:
        """Reap what has been dead for long enough; the numbers of the processes.

        Args:
            now: an instant of any clock, always the same one.
        """
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._own.clear()
            dead = None
        if dead is None:
            self._dead_since.clear()
            return ()
        children = _children((os.getpid(),))
        self._own &= children | _children(_threads())
        strangers = {pid for pid in children - self._own if _is_dead(pid)}
        self._dead_since = {pid: self._dead_since.get(pid, now) for pid in strangers}
        ripe = [pid for pid, since in self._dead_since.items() if now - since >= self._patience]
        return tuple(pid for pid in sorted(ripe) if self._reap(pid))

    def _reap(self, pid: int) -> bool:
        del self._dead_since[pid]
        try:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return False  # somebody waited for it just now: it was theirs
        self.reaped += found is not None
        return found is not None


def _is_dead(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _threads() -> Iterable[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/task")]
    return ()


def _children(threads: Iterable[int]) -> set[int]:
    """The children that threads of this process have made or, the main thread, were handed."""
    found: set[int] = set()
    for thread in threads:
        with suppress(OSError):  # the thread has ended, and its children are another's
            text = Path(f"/proc/self/task/{thread}/children").read_text(encoding="ascii")
            found.update(int(word) for word in text.split())
    return found
