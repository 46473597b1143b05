"""The end of a process that does not end by itself.

A loop that is stuck in plain code hears of no deadline, and when everything was stopped that can be
stopped, the interpreter still waits for its threads. Python can stop neither. So a thread of its
own looks at the clock, and ends the process when the time of the stop is over.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.clock import monotonic
from holdfast.runtime.stacks import stacks

__all__ = ["LastResort"]

_log: Final = logging.getLogger("holdfast.lifecycle")
_TELLING: Final[Duration] = 0.5
"""Seconds for the last words: whoever is stuck may hold the lock of a log or of a stream."""


class _Wish(NamedTuple):
    at: Instant
    code: int
    why: str


class LastResort:
    """Ends the process, should it be there when its time is over.

    Args:
        tell: is given one sentence about what held the process up, and the exit code, in a thread
            and just before the end; what it does not tell, which it says by `False`, is logged.
    """

    def __init__(self, tell: Callable[[str, int], bool] | None = None) -> None:
        self._tell = tell
        # Its `put` may come in between any two instructions of its own: signal handlers call `by`.
        self._wishes: queue.SimpleQueue[_Wish] = queue.SimpleQueue()
        self._verdict: queue.SimpleQueue[_Wish] = queue.SimpleQueue()
        self._said = threading.Event()
        # Both now: an interpreter that shuts down, and waits for threads, starts no others.
        for work in (self._watch, self._say):
            threading.Thread(target=work, name="holdfast last resort", daemon=True).start()

    def by(self, at: Instant, code: int, why: str) -> None:
        """End the process with `code` at the monotonic instant `at`, should it be there then.

        Said several times, the soonest instant holds, with the last code and reason. To be called
        in any thread.

        Args:
            at: the instant.
            code: for whoever started the process.
            why: what has happened, for example "it was told to stop".
        """
        self._wishes.put(_Wish(at, code, why))

    def _watch(self) -> None:
        at, last = NEVER, _Wish(NEVER, 0, "")
        while True:
            patience = None if at == NEVER else max(0.0, at - monotonic())
            try:
                last = self._wishes.get(timeout=patience)
            except queue.Empty:
                break
            at = min(at, last.at)
        self._verdict.put(last)
        self._said.wait(_TELLING)
        os._exit(last.code)

    def _say(self) -> None:
        _, code, why = self._verdict.get()
        try:
            self._tell_all(code, why)
        finally:
            self._said.set()

    def _tell_all(self, code: int, why: str) -> None:
        text = f"{why}, and the process is still there; it ends now, {_held_up()}"
        if self._tell is None or not self._tell(text, code):
            _log.warning("%s", text)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or nobody reads it any more
                stream.flush()


def _held_up() -> str:
    """Where the main thread is, and which threads the interpreter would wait for."""
    main = threading.main_thread()
    found = [thread for thread in stacks().threads if thread.ident == main.ident]
    frames = found[0].frames if found else ()
    place = next((f for f in reversed(frames) if "/asyncio/" not in f), "")
    names = [t.name for t in threading.enumerate() if not t.daemon and t is not main]
    text = f"with its main thread at {place}" if place else "with its main thread"
    return f"{text} and the threads {', '.join(names)}" if names else text
