"""Asking the C library for names, in threads of our own.

Never the executor of the loop: there, forty look-ups of a dead name server keep a file that is to
be read waiting for half a minute, and the process from ending. These threads are daemons, as many
as there are questions under way, and a question that nobody waits for any more holds up nobody.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from holdfast.domain.discovery.names import Answer
from holdfast.domain.instant import Duration
from holdfast.ports.lookup import Done

__all__ = ["ASSUMED_TTL", "DaemonThreads", "SystemLookup"]

ASSUMED_TTL: Final[Duration] = 5.0
"""Seconds that an answer of getaddrinfo is taken to be good for: it does not say."""

_NEGATIVE_TTL: Final[Duration] = 1.0
_IDLE: Final[Duration] = 10.0
_MOST: Final = 64


class DaemonThreads:
    """Threads that come with work and go when there is none; the process never waits for them.

    Args:
        most: threads at the same time; more work waits.
        idle: seconds that a thread without work stays.
    """

    def __init__(self, name: str, most: int = _MOST, idle: Duration = _IDLE) -> None:
        self._name = name
        self._most = most
        self._idle_for = idle
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # In a forked child there are no threads, and nobody waits for their work.
        self._changed = threading.Condition()
        self._work: deque[Callable[[], object]] = deque()
        self._idle = 0
        self._threads = 0

    def start(self, call: Callable[[], object]) -> Callable[[], object]:
        """Call `call` in a thread, soon. What is returned takes it back if it has not begun."""
        with self._changed:
            self._work.append(call)
            if self._idle >= len(self._work):
                self._changed.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return lambda: self._take_back(call)

    def _take_back(self, call: Callable[[], object]) -> None:
        with self._changed:
            if call in self._work:
                self._work.remove(call)

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                self._idle += 1
                there = changed.wait_for(lambda: self._work, self._idle_for)
                self._idle -= 1
                if not there:
                    self._threads -= 1
                    return
                call = self._work.popleft()
            call()
            del call


class SystemLookup:
    """A `Lookup` by getaddrinfo: whatever the system is set up for, and no times to live.

    Args:
        ttl: seconds that an answer is taken to be good for.
    """

    kinds = ("ADDRESS",)
    asks = "getaddrinfo"

    def __init__(self, ttl: Duration = ASSUMED_TTL) -> None:
        self._ttl = ttl
        self._threads = DaemonThreads("holdfast names")

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        """Ask; see `Lookup`."""
        return self._threads.start(lambda: done(self._ask(name)))

    def _ask(self, name: str) -> Answer | OSError:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as exc:
            if exc.errno in (socket.EAI_NONAME, _EAI_NODATA):
                return Answer((), min(self._ttl, _NEGATIVE_TTL), exists=exc.errno == _EAI_NODATA)
            return exc
        except (OSError, UnicodeError) as exc:
            # A label of more than 63 characters is a UnicodeError: there is no such name.
            return exc if isinstance(exc, OSError) else Answer((), self._ttl, exists=False)
        return Answer(tuple(dict.fromkeys(str(row[4][0]) for row in found)), self._ttl)


_EAI_NODATA: Final = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)
