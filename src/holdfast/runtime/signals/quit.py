"""QUIT: write every stack, and exit at once.

Two steps, of which the first needs nothing that could be stuck:

1. `faulthandler` writes the Python stack of every thread from the handler in C: at once, also when
   the loop is stuck in plain code and when C code holds the interpreter lock.
2. It then passes the signal on to a handler in Python, which runs in the main thread as soon as
   that gets to run Python: it calls `before`, writes the await chain of every task, and ends the
   process with exit code 131 (128 + QUIT), without any clean-up.

So with C code that holds the lock, or that keeps the main thread in a system call which does not
end when a signal comes, the stacks are there at once, and the process ends when that call returns;
if it never does, KILL is what remains. Should step 2 itself not end within two seconds, a watchdog
in C writes the stacks again and ends the process with exit code 1.

Step 1 writes to standard error, and waits for whoever reads that. Where it is a pipe that is full
and that nobody reads, the C code hangs in its `write`, before any watchdog has begun: the process
neither dumps nor ends, whatever else comes, until somebody reads or KILL comes. A file, a terminal
and a collector of logs that lives do not do that.
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Protocol

from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.meaning import Meaning
from holdfast.runtime.signals.note import SignalNote, describe
from holdfast.runtime.stacks import dump

__all__ = ["EXIT_CODE", "QuitDump", "install_quit"]

EXIT_CODE: Final = 131
_WATCHDOG: Final = 2.0
"""Seconds that the second step may take."""


class _File(Protocol):
    def fileno(self) -> int: ...


class QuitDump:
    """What QUIT does, until it is closed.

    Attributes:
        number: of the signal.
    """

    def __init__(self, file: _File, before: Callable[[SignalNote], object] | None) -> None:
        self.number = int(signal.SIGQUIT)
        self._file = file
        self._fd = _descriptor(file)
        self._before = before
        self._old: Any = signal.SIG_DFL

    def install(self) -> None:
        """Take the signal.

        Raises:
            UsageError: this is not the main thread of the main interpreter.
        """
        try:
            self._old = signal.signal(self.number, self._handle)
        except ValueError as error:
            raise UsageError("QUIT can be taken in the main thread only") from error
        # The order matters: what is there already is what faulthandler passes the signal on to.
        faulthandler.register(self.number, file=self._fd, all_threads=True, chain=True)
        # One that is blocked, perhaps by whoever started this process, would never dump.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [self.number])

    def close(self) -> None:
        """Give the signal back; in the main thread."""
        faulthandler.unregister(self.number)
        if signal.getsignal(self.number) == self._handle:
            signal.signal(self.number, signal.SIG_DFL if self._old is None else self._old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback_later(_WATCHDOG, exit=True, file=self._fd)
        try:
            if self._before is not None:
                self._before(describe(number))
        except BaseException:
            self._write(traceback.format_exc())
        try:
            self._write(f"\n{dump()}\n")
        except BaseException:
            self._write(traceback.format_exc())
        finally:
            os._exit(EXIT_CODE)

    def _write(self, text: str) -> None:
        # Past the buffers of the file: the signal may have come in the middle of a `print`.
        rest = memoryview(text.encode("utf-8", "replace"))
        while rest:
            rest = rest[os.write(self._fd, rest) :]


def _descriptor(file: _File) -> int:
    try:
        return file.fileno()
    except (AttributeError, io.UnsupportedOperation, ValueError) as error:
        raise UsageError("the stacks are written by C code: give a file with a descriptor") from (
            error
        )


def install_quit(
    meaning: Meaning = Meaning.DUMP_AND_EXIT,
    file: _File | None = None,
    before: Callable[[SignalNote], object] | None = None,
) -> QuitDump | None:
    """Let QUIT write every stack and exit with 131, see the module; none when it means another.

    Works while the loop is stuck in plain code. QUIT must not be blocked for it, so it is unblocked
    in this thread, and it is taken even where it was ignored when the process began.

    Args:
        meaning: of QUIT. When that is not to dump and exit it is a signal like the others: list it
            in the meanings that `block_signals` and `Signals` are given.
        file: with a descriptor that stays open; standard error by default.
        before: called with the note before the tasks are written, for what must not go unrecorded.
            It has two seconds together with them, and runs in between any two instructions of the
            main thread, so it must not wait for a lock.

    Raises:
        UsageError: not in the main thread, or the file has no descriptor.
    """
    if meaning is not Meaning.DUMP_AND_EXIT or not hasattr(signal, "SIGQUIT"):
        return None
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("QUIT can be taken in the main thread only")
    quitting = QuitDump(sys.stderr if file is None else file, before)
    quitting.install()
    return quitting
