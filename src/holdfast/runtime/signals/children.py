"""Children do not inherit the blocked mask.

A process inherits the mask of the thread that starts it, over `exec` too, and a program that was
started with TERM blocked does not end when it is told to. Python gives `subprocess` no way to say
which mask a child gets, short of `preexec_fn`, which costs a fork of the whole process instead of a
vfork and runs the fork hooks of everybody. So for the moment of the start the signals are unblocked
in the thread that starts the process. A signal that comes in that moment is taken by the handler
that is there for it.

    subprocess, asyncio, multiprocessing   the call below them all, `_posixsubprocess.fork_exec`
    os.posix_spawn, os.posix_spawnp        told the mask: no such moment
    os.system                              the same, and it waits without blocking the signals
    os.fork, os.forkpty, os.spawn*         a fork hook takes mask and handlers back in the child
    os.exec*                               unblocked; blocked again when it fails
    uvloop                                 libuv clears the mask of its children by itself

Where several threads may take such a signal, the handler is due in the main thread, which it does
not wake; so the loops that listen are woken instead. When none of them runs in the main thread, a
signal that another thread took while it started a process is told when the main thread next runs.

Not covered: what starts processes from C (in a library): see `unblocked`. And a program that wants
these signals blocked in its children has to block them there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

__all__ = ["Spawning"]

_TRACKER: Final = "from multiprocessing.resource_tracker import main"
"""It blocks INT and TERM for its child on purpose, until that can take them."""


class Spawning:
    """The calls that start processes, replaced while signals are blocked.

    Attributes:
        numbers: the blocked signals.
        after: called in the thread that has started a process: its handlers may have been due.
    """

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.numbers: frozenset[int] = frozenset()
        self.after: Callable[[], None] | None = None
        self._handler = handler
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def install(self) -> None:
        """Replace the calls; does nothing when they are."""
        if self._replaced:
            return
        low = sys.modules.get("_posixsubprocess")
        for home, name, make in (
            (low, "fork_exec", self._around_fork_exec),
            (subprocess, "_fork_exec", self._around_fork_exec),
            (os, "posix_spawn", self._around_posix_spawn),
            (os, "posix_spawnp", self._around_posix_spawn),
            (os, "system", self._around_system),
            (os, "execv", self._around_exec),
            (os, "execve", self._around_exec),
        ):
            inner = getattr(home, name, None)
            if inner is not None:
                wrapper = make(inner)
                self._replaced.append((home, name, inner, wrapper))
                setattr(home, name, wrapper)

    def close(self) -> None:
        """Put the calls back, unless somebody has replaced them after us: then ours do nothing."""
        self.numbers = frozenset()
        while self._replaced:
            home, name, inner, wrapper = self._replaced.pop()
            if getattr(home, name) is wrapper:
                setattr(home, name, inner)

    @contextmanager
    def window(self) -> Generator[None]:
        """In this thread the signals are unblocked for a moment."""
        # One without a handler would do its worst, so it stays blocked, and in the child too. That
        # comes of a handler that somebody installed and took away again.
        unhandled = signal.SIG_DFL, None
        numbers = [n for n in self.numbers if signal.getsignal(n) not in unhandled]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if self.after is not None:
                self.after()

    def _mask(self) -> set[int]:
        return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))) - self.numbers

    def _around_fork_exec(self, inner: Callable[..., int]) -> Callable[..., int]:
        def fork_exec(*args: Any) -> int:
            if _is_tracker(args[0]):
                return inner(*args)
            with self.window():
                return inner(*args)

        return fork_exec

    def _around_posix_spawn(self, inner: Callable[..., int]) -> Callable[..., int]:
        def posix_spawn(*args: Any, **options: Any) -> int:
            options.setdefault("setsigmask", self._mask())
            return inner(*args, **options)

        return posix_spawn

    def _around_system(self, inner: Callable[..., int]) -> Callable[..., int]:
        spawn = os.posix_spawn

        def system(command: str | bytes | os.PathLike[str]) -> int:
            sys.audit("os.system", os.fsencode(command))
            shell: list[str | bytes] = ["sh", "-c", os.fsencode(command)]
            deaf = [signal.SIGINT, signal.SIGQUIT]
            pid = spawn("/bin/sh", shell, os.environ, setsigmask=self._mask(), setsigdef=deaf)
            try:
                return os.waitpid(pid, 0)[1]
            except ChildProcessError:
                return -1  # somebody else has taken its status, as with system(3)

        return system

    def _around_exec(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def execute(*args: Any, **options: Any) -> Any:
            with self.window():
                return inner(*args, **options)

        return execute


def _is_tracker(words: object) -> bool:
    if not isinstance(words, list | tuple):
        return False
    last = cast("Sequence[object]", words)[-1:]
    return any(_TRACKER in os.fsdecode(word) for word in last if isinstance(word, str | bytes))
