"""Ways to read blocked signals, with what the kernel tells of their senders.

Either is used by one thread, which waits in it and does nothing else. Both see the signals sent to
the process. What is sent to a single thread (`signal.raise_signal`, `pthread_kill`) waits at that
thread, and no other can take it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from holdfast.runtime.signals.note import SignalNote, describe

__all__ = ["Reader", "SignalfdReader", "WaitingReader", "reader_for"]


class Reader(Protocol):
    """Where the signals of the process are read.

    Attributes:
        source: its name, for people.
    """

    source: str

    def wait(self) -> list[SignalNote]:
        """Block until there are signals or `wake` was called; all that wait, as they are told."""
        ...

    def wake(self) -> None:
        """Make `wait` return, now or the next time; callable from any thread."""
        ...

    def close(self) -> None:
        """Give back what the reader holds; nobody is in `wait` any more."""
        ...


_SIGSET_BYTES: Final = 128
_SFD_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_SFD_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_INFO: Final = struct.Struct("=IiiII108x")
"""The beginning of `struct signalfd_siginfo`: signo, errno, code, pid, uid."""

_AT_ONCE: Final = 64


class SignalfdReader:
    """Reads a descriptor of signalfd(2). Linux only.

    Raises:
        OSError: the system has no signalfd, or no descriptor left.
    """

    source = "signalfd"

    def __init__(self, numbers: Iterable[int]) -> None:
        self._fd = _signalfd(numbers)
        try:
            self._woken, self._waker = os.pipe()
        except OSError:
            os.close(self._fd)
            raise
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def wait(self) -> list[SignalNote]:
        self._poll.poll()
        found: list[SignalNote] = []
        while raw := _read(self._fd, _AT_ONCE * _INFO.size):
            for number, _, code, pid, uid in _INFO.iter_unpack(raw):
                found.append(describe(number, code, pid, uid))
        _read(self._woken, 4096)
        return found

    def wake(self) -> None:
        # Full of calls that were not heard yet: one of them will do.
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def close(self) -> None:
        for fd in (self._fd, self._woken, self._waker):
            os.close(fd)


def _read(fd: int, most: int) -> bytes:
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return b""


def _signalfd(numbers: Iterable[int]) -> int:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "signalfd"):
        raise OSError("the system has no signalfd")
    word = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (8 * _SIGSET_BYTES // word))()
    for number in numbers:
        mask[(number - 1) // word] |= 1 << (number - 1) % word
    fd: int = libc.signalfd(-1, ctypes.byref(mask), _SFD_NONBLOCK | _SFD_CLOEXEC)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


class WaitingReader:
    """Waits in sigwaitinfo(2), which other systems than Linux have as well."""

    source = "sigwaitinfo"

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = frozenset(numbers)
        self._lock = threading.Lock()
        self._waits: int | None = None
        self._woken = False
        self._called = False

    def wait(self) -> list[SignalNote]:
        with self._lock:
            if self._woken:
                self._woken = False
                return []
            self._waits = threading.get_ident()
        info: signal.struct_siginfo | None = signal.sigwaitinfo(self._numbers)
        with self._lock:  # who wakes a thread must find it alive
            self._waits = None
        found: list[SignalNote] = []
        while info is not None:
            if not self._is_call(info):
                found.append(describe(info.si_signo, info.si_code, info.si_pid, info.si_uid))
            info = signal.sigtimedwait(self._numbers, 0)
        return found

    def wake(self) -> None:
        # A signal to that thread alone; the kernel hands those out before the ones to the process.
        # The C library does not say which is which, so there is never more than one under way.
        with self._lock:
            if self._waits is None:
                self._woken = True
            elif not self._called:
                self._called = True
                signal.pthread_kill(self._waits, min(self._numbers))

    def close(self) -> None:
        pass  # it holds nothing

    def _is_call(self, info: signal.struct_siginfo) -> bool:
        if self._called and info.si_signo == min(self._numbers) and info.si_pid == os.getpid():
            self._called = False
            return True
        return False


def reader_for(numbers: Iterable[int]) -> Reader | None:
    """The best reader that the system has; none when it cannot tell about blocked signals."""
    chosen = frozenset(numbers)
    if not chosen:
        return None
    try:
        return SignalfdReader(chosen)
    except (OSError, AttributeError, TypeError):
        # AttributeError and TypeError: a system without poll, or without a C library to look in.
        return WaitingReader(chosen) if hasattr(signal, "sigwaitinfo") else None
