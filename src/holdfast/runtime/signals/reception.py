"""One reader for the process, and channels for whoever wants to know."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.meaning import (
    DEFAULT_MEANINGS,
    Meaning,
    Meanings,
    by_priority,
    canonical,
)
from holdfast.runtime.signals.channel import BOUND, SignalChannel
from holdfast.runtime.signals.mask import PROCESS, keep, numbers_of, unmasked_threads
from holdfast.runtime.signals.note import SignalNote, name_of, number_of
from holdfast.runtime.signals.readers import Reader, WaitingReader, reader_for

__all__ = ["Signals"]

_FAULTS: Final = frozenset(
    {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
)
_PATIENCE: Final = 5.0
"""Seconds that `close` waits for the reading thread, which ends at once."""


class Signals:
    """Reads the signals of the process and hands them to its channels.

        block_signals()                      # first line of the program
        ...
        with Signals() as signals:
            with signals.subscribe("TERM", "INT") as stops:
                note = await stops.get()     # note.sender: "process 812 (bash) of user 0"

    Signals that `block_signals` has blocked are read by a thread of its own, at once, even while
    the loop is stuck, and with their senders. Where that cannot be, handlers take them: when
    nothing was blocked, when a thread was started before (it would take the signal, and the process
    would die of it), or when the system knows no other way. Handlers run in the main thread, when
    that gets to run Python, and are not told the sender.

    The loop may run in any thread with a reader. Signals that nobody has subscribed to yet wait for
    the first who does. A signal sent to one thread (`signal.raise_signal`) is not one to the
    process, and while it is blocked it is not seen: use `os.kill(os.getpid(), number)`.

    Args:
        meanings: decide the order of signals that wait together, and which are taken.
        tell: called with each note at once, before the channels get it, in the thread that read
            it: the reading thread, or the main thread between any two of its instructions. For what
            must not wait for a loop that is stuck. An exception in it goes to `sys.excepthook`.

    Attributes:
        source: `signalfd`, `sigwaitinfo` or `handlers`; empty before `start`.
        why: why it is handlers; empty otherwise.
    """

    def __init__(
        self,
        meanings: Meanings = DEFAULT_MEANINGS,
        tell: Callable[[SignalNote], object] | None = None,
    ) -> None:
        self.meanings = meanings
        self.source = ""
        self.why = ""
        self._tell = tell
        self._reader: Reader | None = None
        self._thread: threading.Thread | None = None
        # Only two threads that change them exclude one another: a handler may come in at any point,
        # and all it can do here is to forget a channel that has ended.
        self._lock = threading.RLock()
        self._channels: tuple[SignalChannel, ...] = ()
        self._unclaimed: deque[SignalNote] = deque()
        self._ended = False

    def __enter__(self) -> Signals:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read.

        Raises:
            UsageError: the process is being read already, this one was started before, or handlers
                are needed and this is not the main thread.
        """
        if self.source:
            raise UsageError("these signals were started before")
        if PROCESS.sink is not None:
            raise UsageError("one reader for a process: subscribe to the one that there is")
        PROCESS.mend()
        self.why = self._hindrance()
        self._reader = None if self.why else reader_for(PROCESS.blocked)
        if self._reader is None:
            self._use_handlers()
        PROCESS.after_fork = self._forked
        PROCESS.sink = self._heard
        while PROCESS.early:
            self._heard(PROCESS.early.popleft())
        if self._reader is not None:
            self.source = self._reader.source
            PROCESS.spawning.after = self._started_a_process
            self._thread = threading.Thread(
                target=self._read, args=(self._reader,), name="holdfast signals", daemon=True
            )
            self._thread.start()

    def _hindrance(self) -> str:
        if not PROCESS.blocked:
            return "block_signals was not called"
        threads = unmasked_threads(PROCESS.blocked)
        if threads:
            ident, name = next(iter(threads.items()))
            others = f" and {len(threads) - 1} more" if len(threads) > 1 else ""
            return f"thread {ident} ({name}){others} was started before the signals were blocked"
        return ""

    def _use_handlers(self) -> None:
        if PROCESS.blocked and threading.current_thread() is not threading.main_thread():
            raise UsageError(
                f"signals have to be taken by handlers, because {self.why or 'there is no reader'};"
                " start them in the main thread, where handlers run"
            )
        self.why = self.why or "this system cannot read blocked signals"
        PROCESS.unblock()
        PROCESS.take(numbers_of(self.meanings))
        self.source = "handlers"

    def close(self, *, restore: bool = True) -> None:
        """Stop reading, end the channels, and put handlers and mask back.

        Args:
            restore: false for a process that is about to exit: a signal that comes from now on
                should not change its exit code.

        The mask is put back in the calling thread, and the handlers if that is the main thread:
        the system allows no more.
        """
        if self._ended or not self.source:
            return
        self._ended = True
        PROCESS.spawning.after = None
        if self._reader is not None and self._thread is not None:
            self._reader.wake()
            self._thread.join(_PATIENCE)
            self._reader.close()
        PROCESS.sink = PROCESS.after_fork = None
        for channel in self._channels:
            channel.close()
        if restore:
            # Handlers first: what is pending belongs to whoever has the signal from now on.
            PROCESS.give_back()
            PROCESS.unblock()
            PROCESS.spawning.close()

    # -- consumers -------------------------------------------------------------------------------

    def subscribe(self, *signals: int | str, bound: int = BOUND) -> SignalChannel:
        """A channel for `signals`, by number or name; for all that have a meaning without any.

        To be called on the loop that will read it. The channel ends with its `with` block, or with
        the scope that is open here. One for HUP stays silent in a process that was started with HUP
        ignored.

        Args:
            signals: of which it gets the notes; `TERM`, `SIGTERM` and `signal.SIGTERM` are one.
            bound: notes that wait before equal ones are joined.

        Raises:
            UsageError: there is no such signal here, or it has to be taken by a handler and this is
                not the main thread, or no loop runs.
        """
        numbers = frozenset(map(_number, signals)) if signals else numbers_of(self.meanings)
        for number in numbers - PROCESS.blocked:
            if self.meanings.get(name_of(number)) is Meaning.DUMP_AND_EXIT:
                raise UsageError(f"{name_of(number)} dumps and exits: see install_quit")
        PROCESS.take(numbers - PROCESS.blocked)
        try:
            channel = SignalChannel(numbers, self.meanings, bound, self._forget)
        except RuntimeError as error:
            raise UsageError("subscribe on the loop that reads the channel") from error
        with self._lock:
            self._channels = (*self._channels, channel)
        self._hand_out()
        return channel

    def pass_on(self, signal_: int | str) -> None:
        """Do what the process would have done with the signal if it had not been taken.

        For library mode: the server has a handler of its own, and gets the signal when it may stop.
        Nothing happens for a signal that was ignored. A server that uses `loop.add_signal_handler`
        has had it already: asyncio reads the number from a pipe, whatever handlers there are.
        """
        number = _number(signal_)
        old: Any = PROCESS.before.get(number)
        if callable(old):
            old(number, None)
        elif old is signal.SIG_DFL:
            PROCESS.give_back([number])
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
            os.kill(os.getpid(), number)

    def _forget(self, channel: SignalChannel) -> None:
        with self._lock:
            self._channels = tuple(one for one in self._channels if one is not channel)

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, reader: Reader) -> None:
        # What is not read here is for the main thread, whose system calls it has to interrupt.
        every = {n for n in signal.valid_signals() if name_of(n) not in _FAULTS}
        signal.pthread_sigmask(signal.SIG_BLOCK, every)
        while not self._ended:
            try:
                notes = reader.wait()
            except OSError as error:
                # Somebody has closed the descriptors of others, as programs do that detach
                # themselves from their terminal. What needs none can still read.
                sys.excepthook(type(error), error, error.__traceback__)
                self._reader = reader = WaitingReader(PROCESS.blocked)
                self.source = reader.source
                continue
            self._heard(*by_priority(notes, self.meanings, lambda note: note.name))

    def _heard(self, *notes: SignalNote) -> None:
        if self._tell is not None:
            for note in notes:
                try:
                    self._tell(note)
                except BaseException as error:  # the thread has to go on, whatever it was
                    sys.excepthook(type(error), error, error.__traceback__)
        channels = self._channels
        for note in notes:
            if not self._offer(note, channels):
                keep(self._unclaimed, note)
        if self._channels is not channels:
            self._hand_out()

    def _hand_out(self) -> None:
        # Without a lock, because a handler may come in between in the same thread. A note is taken
        # off by one; a channel that was added meanwhile either sees it here or is seen here.
        while True:
            seen = self._channels
            for _ in range(len(self._unclaimed)):
                try:
                    note = self._unclaimed.popleft()
                except IndexError:
                    break
                if not self._offer(note, seen):
                    self._unclaimed.append(note)
            if self._channels is seen:
                return

    def _offer(self, note: SignalNote, channels: Sequence[SignalChannel]) -> bool:
        taken = False
        for channel in channels:
            if note.number in channel.numbers:
                if channel.offer(note):
                    taken = True
                else:
                    self._forget(channel)
        return taken

    def _started_a_process(self) -> None:
        # A handler may be due in the main thread, which a signal taken by another thread does not
        # wake; and the start may have unblocked something.
        for channel in self._channels:
            channel.poke(PROCESS.mend)

    def _forked(self) -> None:
        self._ended = True
        self._channels = ()
        if self._reader is not None:
            self._reader.close()


def _number(given: int | str) -> int:
    number = number_of(canonical(given)) if isinstance(given, str) else int(given)
    if number is None or number not in signal.valid_signals():
        raise UsageError(f"{given!r} is not a signal of this system")
    return number
