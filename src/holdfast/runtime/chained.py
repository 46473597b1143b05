"""The signals of a server that has its own handlers: the first one is delivered later.

A server that is started by its own command has installed its handlers by the time it starts its
application. They stay; what is new stands before them: the first signal is told, and held back
until it is released. The second one is passed straight through, and the first one with it: whoever
sends two gets what the server makes of two.

It is not told who sent a signal: a handler never is.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

__all__ = ["ELSEWHERE", "ChainedSignals"]

ELSEWHERE: Final = "it does not run in the main thread"
"""Why no signal can be taken from a thread, where test clients run applications."""

_TAKEN: Final = (signal.SIGTERM, signal.SIGINT)


class ChainedSignals:
    """See the module.

    Args:
        loop: the one that is told; it runs in the main thread.
        heard: is called on it with the number of every signal.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[int], None]) -> None:
        self._loop = loop
        self._heard = heard
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._first: int | None = None
        self._released = False

    def take(self) -> str:
        """Stand before the handlers of the server; why that cannot be, empty when it was done."""
        if threading.current_thread() is not threading.main_thread():
            return ELSEWHERE
        for number in _TAKEN:
            before = signal.getsignal(number)
            if callable(before) and before is not signal.default_int_handler:
                if getattr(before, "__name__", "") == "_sighandler_noop":
                    return "it has given its signals to the event loop"
                self._before[number] = before
        if signal.SIGTERM not in self._before:
            self._before.clear()
            return "it has no handler for SIGTERM in this process"
        for taken in self._before:
            signal.signal(taken, self._handle)
        return ""

    def release(self) -> None:
        """Have the server hear what was held back; from now on nothing is."""
        first, self._released = self._first, True
        if first is not None:
            self._first = None
            self._before[first](first, inspect.currentframe())

    def give_back(self) -> None:
        """Stand there no more, unless somebody else does by now."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Between any two instructions of the main thread: nothing here may wait for a lock.
        again = self._released or self._first is not None
        try:
            self._loop.call_soon_threadsafe(self._heard, number)
        except RuntimeError:  # the loop is closed: nobody is left who could let it through
            again = True
        if not again:
            self._first = number
            return
        self.release()
        self._before[number](number, frame)
