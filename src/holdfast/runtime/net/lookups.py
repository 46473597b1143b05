"""Asking the C library for names, in threads of our own.

Never the executor of the loop: there, forty look-ups of a dead name server keep a file that is to
be read waiting for half a minute, and the process from ending. These threads are daemons, as many
as there are questions under way, and a question that nobody waits for any more holds up nobody.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from holdfast.domain.discovery.names import Answer
from holdfast.domain.instant import Duration
from holdfast.ports.lookup import Done
from holdfast.runtime.net.hosts import RESOLV_CONF, ResolvConf, Watched

__all__ = ["ASSUMED_TTL", "DaemonThreads", "SystemLookup", "after_fork"]

ASSUMED_TTL: Final[Duration] = 5.0
"""Seconds that an answer of getaddrinfo is taken to be good for: it does not say."""

_NEGATIVE_TTL: Final[Duration] = 1.0
_IDLE: Final[Duration] = 10.0
_MOST: Final = 64
_EAI_NODATA: Final = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)


_IN_CHILD: Final[set[weakref.WeakMethod[Callable[[], object]]]] = set()


def after_fork(call: Callable[[], object]) -> None:
    """Call a method in every forked child for as long as its object lives."""
    _IN_CHILD.add(weakref.WeakMethod(call, _IN_CHILD.discard))


def _forked() -> None:
    with ExitStack() as calls:  # calls them all, whatever one of them raises
        for method in tuple(_IN_CHILD):
            alive = method()
            if alive is not None:
                calls.callback(alive)


# Once: a hook of the interpreter is never taken back.
os.register_at_fork(after_in_child=_forked)


class DaemonThreads:
    """Threads that come with work and go when there is none; the process never waits for them.

    Args:
        name: of the threads.
        most: threads at the same time; more work waits.
        idle: seconds that a thread without work stays.
    """

    def __init__(self, name: str, most: int = _MOST, idle: Duration = _IDLE) -> None:
        self._name = name
        self._most = most
        self._idle_for = idle
        self._reset()
        after_fork(self._reset)

    def _reset(self) -> None:
        # In a forked child there are no threads, and nobody waits for their work.
        self._changed = threading.Condition()
        self._work: deque[Callable[[], object]] = deque()
        self._idle = 0
        self._busy = 0
        self._threads = 0
        self._leave = False

    @property
    def spare(self) -> bool:
        """Whether more than half of the threads that there may be have nothing to do."""
        with self._changed:
            return 2 * (self._busy + len(self._work)) < self._most

    def start(self, call: Callable[[], object]) -> None:
        """Call `call` in a thread, soon."""
        with self._changed:
            self._leave = False
            self._work.append(call)
            if self._idle >= len(self._work):
                self._changed.notify()
            elif self._threads < self._most:
                try:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                except RuntimeError:
                    # There can be no more of them here. Those that there are will do it.
                    if not self._threads:
                        self._work.remove(call)
                        raise
                    return
                self._threads += 1

    def close(self) -> None:
        """Let the idle threads go now, and the others when they are idle."""
        with self._changed:
            self._leave = True
            self._changed.notify_all()

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                self._idle += 1
                changed.wait_for(lambda: self._work or self._leave, self._idle_for)
                self._idle -= 1
                if not self._work:
                    self._threads -= 1
                    return
                call = self._work.popleft()
                self._busy += 1
            try:
                call()
            except BaseException:
                with changed:
                    self._busy -= 1
                    self._threads -= 1
                raise
            with changed:
                self._busy -= 1
            del call


class SystemLookup:
    """A `Lookup` by getaddrinfo: whatever the system is set up for, and no times to live.

    Args:
        ttl: seconds that an answer is taken to be good for.
        most: look-ups at the same time. A dead name server holds each for ten seconds, by default;
            only `options timeout:1 attempts:1` in resolv.conf, or in RES_OPTIONS, changes that.
    """

    kinds = ("ADDRESS",)

    def __init__(self, ttl: Duration = ASSUMED_TTL, *, most: int = _MOST) -> None:
        self._ttl = ttl
        self._threads = DaemonThreads("holdfast names", most)
        self._conf = Watched(Path(RESOLV_CONF), ResolvConf.parse)

    @property
    def asks(self) -> str:
        """Who is asked: getaddrinfo, and the servers that it is set up for."""
        return f"getaddrinfo ({', '.join(self._conf.value().servers)})"

    @property
    def spare(self) -> bool:
        """Whether it has threads for what is asked a second time; see `Questions`."""
        return self._threads.spare

    def start(self, name: str, kind: str, done: Done) -> None:
        """Ask; see `Lookup`."""
        self._threads.start(lambda: done(self._ask(name)))

    def close(self) -> None:
        """Let the idle threads go."""
        self._threads.close()

    def _ask(self, name: str) -> Answer | OSError:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as exc:
            if exc.errno in (socket.EAI_NONAME, _EAI_NODATA):
                ttl = min(self._ttl, _NEGATIVE_TTL)
                return Answer((), ttl, exists=exc.errno != socket.EAI_NONAME)
            return exc
        except UnicodeError:
            # A label of more than 63 characters, or none at all: there is no such name.
            return Answer((), self._ttl, exists=False)
        except OSError as exc:
            return exc
        return Answer(tuple(dict.fromkeys(_text(row[4]) for row in found)), self._ttl)


def _text(sockaddr: tuple[object, ...]) -> str:
    # A link-local address without its zone leads nowhere; some systems have it in the text already.
    text = str(sockaddr[0])
    zone = sockaddr[3] if len(sockaddr) > 3 else 0
    return f"{text}%{zone}" if zone and "%" not in text else text
