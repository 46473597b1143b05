"""The signals that the process takes for itself: their mask and their handlers.

Only a blocked signal can be read together with its sender, and only by a process whose every thread
blocks it: any thread that does not would take it, with whatever the handler does. A mask belongs to
a thread and is inherited by the threads that it starts, so it has to be set before there are any.

What holds, and is tested:

- A blocked signal gets a handler as well. It runs only where a thread has the signal unblocked
  after all: `multiprocessing` unblocks INT and TERM in the thread that starts its resource tracker,
  and a thread that starts a process unblocks them for that moment. Such a signal is not lost and
  does not kill; only its sender stays unknown.
- A child gets the mask that the process had before (see `runtime.signals.children`).
- HUP that was ignored when the process began (`nohup`) stays ignored. TERM, INT and the others are
  taken all the same: `sh -c 'cmd &'` hands INT and QUIT down ignored, and nobody means that.
- A process that is PID 1 has no default actions: without this, TERM does nothing to it.
- QUIT is not blocked unless it means stop: `faulthandler` could not dump then.

The mask, the handlers and the calls that start processes are one to a process, and so is what is
kept here; all of it belongs to the main interpreter.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.meaning import DEFAULT_MEANINGS, Meaning, Meanings
from holdfast.runtime.signals.children import Spawning
from holdfast.runtime.signals.note import SignalNote, describe, name_of, number_of

__all__ = [
    "PROCESS",
    "Blocked",
    "ProcessSignals",
    "block_signals",
    "child_setup",
    "keep",
    "numbers_of",
    "unblocked",
    "unmasked_threads",
]

_WAITING: Final = 64
"""Notes that wait for a reader before equal ones are joined."""
_RESPECTED: Final = frozenset({"SIGHUP"})


@dataclass(frozen=True, slots=True)
class Blocked:
    """What `block_signals` did.

    Attributes:
        numbers: signals that are blocked now in this thread and in those that it starts.
        respected: signals that were ignored when the process began, and stay so.
        overridden: signals that were ignored when the process began, and are taken all the same.
    """

    numbers: frozenset[int]
    respected: frozenset[int]
    overridden: frozenset[int]


def keep(waiting: deque[SignalNote], note: SignalNote) -> None:
    """Add a note to those that wait for somebody to take them: of each signal at least one."""
    if len(waiting) < _WAITING or all(one.number != note.number for one in tuple(waiting)):
        waiting.append(note)


class ProcessSignals:
    """What was done to the signals of this process, and can be undone.

    Attributes:
        blocked: signals that were blocked.
        before: handlers that there were before, by number.
        sink: takes the notes of the handlers; none until somebody reads.
        early: notes that came before there was a sink.
        after_fork: run in a forked child, which has none of this.
    """

    def __init__(self) -> None:
        self.blocked: frozenset[int] = frozenset()
        self.before: dict[int, Any] = {}
        self.sink: Callable[[SignalNote], None] | None = None
        self.early: deque[SignalNote] = deque()
        self.after_fork: Callable[[], None] | None = None
        self.spawning = Spawning(self.caught)

    def caught(self, number: int, frame: FrameType | None) -> None:
        """The handler: a signal that no reader could take."""
        self.mend()
        note = describe(number)
        sink = self.sink
        if sink is None:
            keep(self.early, note)
        else:
            sink(note)

    def take(self, numbers: Iterable[int]) -> tuple[frozenset[int], frozenset[int]]:
        """Install the handler for those that do not have it, but leave an ignored HUP alone.

        Returns:
            Those that are left ignored, and those that are not any more.

        Raises:
            UsageError: this is not the main thread of the main interpreter.
        """
        respected: set[int] = set()
        overridden: set[int] = set()
        for number in numbers:
            now = signal.getsignal(number)
            if now == self.caught:
                continue
            if now is signal.SIG_IGN:
                chosen = respected if name_of(number) in _RESPECTED else overridden
                chosen.add(number)
                if chosen is respected:
                    continue
            try:
                old = signal.signal(number, self.caught)
            except OSError as error:
                raise UsageError(f"{name_of(number)} cannot be taken by any process") from error
            except ValueError as error:
                raise UsageError(
                    f"{name_of(number)} needs a handler, and only the main thread of the main"
                    " interpreter can install one: call block_signals there, first of all"
                ) from error
            self.before.setdefault(number, old)
        return frozenset(respected), frozenset(overridden)

    def block(self, numbers: frozenset[int]) -> None:
        """Block `numbers` in this thread, and in those and only those that it starts."""
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        self.blocked |= numbers
        self.spawning.numbers = self.blocked

    def mend(self) -> None:
        """Block again in this thread what something has unblocked in it."""
        if self.blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, self.blocked)

    def unblock(self) -> None:
        """Take the mask back in this thread; the handlers stay.

        Threads that were started meanwhile keep it, so what starts processes stays replaced.
        """
        if self.blocked:
            numbers, self.blocked = self.blocked, frozenset()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def give_back(self, numbers: Iterable[int] | None = None) -> None:
        """Restore the handlers there were before; a handler of somebody else's is left alone.

        Does nothing outside the main thread: it cannot be done there.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in tuple(self.before if numbers is None else numbers):
            old = self.before.pop(number, None)
            if signal.getsignal(number) == self.caught:
                # None: a handler that was not installed from Python; nothing can put it back.
                signal.signal(number, signal.SIG_DFL if old is None else old)

    def in_forked_child(self) -> None:
        """Be as the process was before; the child is nobody's server."""
        self.sink = None
        self.early.clear()
        self.give_back()
        self.blocked |= self.spawning.numbers
        self.unblock()
        self.spawning.close()
        after_fork, self.after_fork = self.after_fork, None
        if after_fork is not None:
            after_fork()


PROCESS: Final = ProcessSignals()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.in_forked_child)


def numbers_of(meanings: Meanings = DEFAULT_MEANINGS) -> frozenset[int]:
    """The signals that are read: those with a meaning that this system has.

    One that dumps and exits is not among them: it is for `install_quit`.
    """
    found = {
        number_of(name)
        for name, meaning in meanings.items()
        if meaning is not Meaning.DUMP_AND_EXIT
    }
    return frozenset(number for number in found if number is not None)


def block_signals(
    numbers: Iterable[int] | None = None,
    *,
    meanings: Meanings = DEFAULT_MEANINGS,
    children: bool = True,
) -> Blocked:
    """Take signals for this process, so that `Signals` can read them with their senders.

    To be called in the first line of a program, before anything that may start a thread is
    imported. A signal that comes before `Signals` is there waits. Where the system cannot block
    signals, only handlers are installed.

    Args:
        numbers: which; those that `meanings` names by default.
        meanings: what the signals mean. QUIT is left alone when it dumps.
        children: see to it that processes started from Python do not inherit the mask, by
            replacing `_posixsubprocess.fork_exec`, `os.posix_spawn`, `os.posix_spawnp`,
            `os.system`, `os.execv` and `os.execve` until the mask is taken back. Without it a child
            that is told to end does not, unless `unblocked` or `preexec_fn=child_setup` is used.

    Raises:
        UsageError: not in the main thread of the main interpreter.
    """
    chosen = numbers_of(meanings) if numbers is None else frozenset(map(int, numbers))
    respected, overridden = PROCESS.take(chosen)
    if hasattr(signal, "pthread_sigmask"):
        PROCESS.block(chosen - respected)
        if children:
            PROCESS.spawning.install()
    return Blocked(PROCESS.blocked, respected, overridden)


def child_setup() -> None:
    """For `preexec_fn`: the child is as if this process had taken no signals.

    Needed only after `block_signals(children=False)`.
    """
    PROCESS.in_forked_child()


class unblocked:
    """`with unblocked():` what is started inside has the mask that the process had before.

    For what starts processes from C, behind Python's back. A signal that comes inside, in this
    thread, is taken by the handler: it is not lost, and its sender is not known.
    """

    def __enter__(self) -> None:
        self._window = PROCESS.spawning.window()
        self._window.__enter__()

    def __exit__(self, *error: object) -> None:
        self._window.__exit__(None, None, None)


def unmasked_threads(numbers: frozenset[int]) -> dict[int, str]:
    """Threads that have one of `numbers` unblocked: name by id, as the kernel has it.

    Empty as well where the system does not tell; there is nothing to be known then.
    """
    wanted = sum(1 << number - 1 for number in numbers)
    found: dict[int, str] = {}
    for status in Path("/proc/self/task").glob("*/status"):
        try:
            lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue  # it has ended meanwhile
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        if wanted & ~int(fields.get("SigBlk", "f" * 16), 16):
            found[int(status.parent.name)] = fields.get("Name", "").strip()
    return found
