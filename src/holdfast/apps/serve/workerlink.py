"""What a supervisor and its worker tell each other, over a socket pair: one JSON object a line.

    down  the handover (see `handover`), first and once
          {"stop": {"seconds": 12.0, "final": true, "force": false, "stop": "4711@2879.3",
                    "cause": "SIGTERM from process 1 (systemd) of user 0"}}
    up    {"phase": "initializing"}    where the worker is in its life
          {"ready": true}              it accepts connections
          {"record": {...}}            see `domain.record`

The end of the file says that the other side is gone. A worker that finds it so stops by itself, and
is ended by force when that takes too long: nobody would do it otherwise.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from holdfast.domain.instant import Duration
from holdfast.domain.record import Record

__all__ = ["MARGIN", "StopOrder", "SupervisorEnd", "WorkerEnd"]

MARGIN: Final[Duration] = 1.0
"""Seconds between the end of a worker's own time and its end by force. Out of the grace (law 1)."""
_LARGEST_LINE: Final = 4 * 1024 * 1024
_MOST_UNSENT: Final = 1024 * 1024
_CHUNK: Final = 65_536
_LAST_WORDS: Final[Duration] = 1.0
_MOMENT: Final[Duration] = 0.2
"""Seconds for a lock that is held for far less, unless by the code that a signal interrupted."""
_ORPHANED: Final = 4
_TOLD_EARLY: Final = 128 + signal.SIGTERM
_log: Final = logging.getLogger("holdfast.serve")


@dataclass(frozen=True, slots=True)
class StopOrder:
    """A worker is to stop.

    Attributes:
        seconds: how long it may take for it; it is killed some time later.
        final: whether nobody else serves what waits in the accept queue.
        force: whether it is to cut what it serves.
        cause: why, in one line.
        stop: which stop of the supervisor it is part of; empty for one of this worker alone.
        orphan: whether it is no order at all: the supervisor is gone.
    """

    seconds: Duration
    final: bool = False
    force: bool = False
    cause: str = ""
    stop: str = ""
    orphan: bool = False


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"


class SupervisorEnd:
    """The supervisor's end of the link to one worker. Never waits for the worker.

    Args:
        sock: its end of the socket pair.
        heard: is called with each message.
    """

    def __init__(
        self, sock: socket.socket, heard: Callable[[Mapping[str, object]], object]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._come = b""
        self._going = bytearray()
        self._open = True
        self._loop.add_reader(sock, self._read)

    def say(self, text: str) -> None:
        """Send a line. Nothing happens when the worker has closed its end."""
        if self._open:
            self._going += text.encode() + b"\n"
            self._write()

    def stop(self, order: StopOrder) -> None:
        """Have the worker stop."""
        told = {
            "seconds": order.seconds,
            "final": order.final,
            "force": order.force,
            "cause": order.cause,
            "stop": order.stop,
        }
        self.say(json.dumps({"stop": told}))

    def close(self) -> None:
        """Hear what it said last, then hang up."""
        while self._open and self._read():
            pass
        self._hang_up()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._going)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # it is gone, and its end is told by its death
            self._going.clear()
            sent = 0
        del self._going[:sent]
        if self._going:
            self._loop.add_writer(self._sock, self._write)
        else:
            self._loop.remove_writer(self._sock)

    def _read(self) -> bool:
        """Whether anything came."""
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        self._come += data
        *lines, self._come = self._come.split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._come) > _LARGEST_LINE:
            _log.error("a worker says too much in one line; nothing more is heard of it")
            data = b""
        if not data:
            self._hang_up()
        return bool(data)

    def _take(self, line: bytes) -> None:
        try:
            message: object = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict):
            self._heard(cast("dict[str, object]", message))
        else:
            _log.error("a worker says what nobody understands: %r", line[:200])

    def _hang_up(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()


class WorkerEnd:
    """The worker's end of the link. A thread of its own listens, whatever the loop is busy with.

    Args:
        sock: its end of the socket pair, inherited.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.set_inheritable(False)  # else programs that the application starts keep it open
        self._sock = sock
        self._come = b""
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._lost = 0
        self._over = threading.Event()
        self._stop: Callable[[StopOrder], object] = _end_at_once

    def handover(self) -> bytes:
        """The first line; empty when the supervisor is gone already."""
        return self._next_line()

    def listen(self, patience: Duration) -> None:
        """Hear orders from now on. Until there is somebody who obeys, one is the end at once.

        Args:
            patience: seconds that a worker without a supervisor has to stop by itself.
        """
        # Signals are for the threads of the application: a thread starts with the mask of whoever
        # started it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            ears = threading.Thread(
                target=self._hear, args=(patience,), name="holdfast supervisor", daemon=True
            )
            ears.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def obey(self, stop: Callable[[StopOrder], object]) -> None:
        """Have `stop` called with each order from now on, in a thread of its own."""
        self._stop = stop

    def ready(self) -> None:
        """Say that connections are accepted."""
        self._say({"ready": True})

    def phase(self, name: str) -> None:
        """Say where the process is in its life."""
        self._say({"phase": name})

    def record(self, record: Record) -> None:
        """Pass on what happened."""
        self._say({"record": record.as_dict()})

    def follow(self, record: Record) -> None:
        """A reader of a journal: all that happens is passed on, with phase and readiness said."""
        self.record(record)
        if record.kind == "phase.entered":
            self.phase(record.subject)
        elif record.kind == "ready.changed" and record.data.get("ready") is True:
            self.ready()

    def close(self) -> None:
        """Send what is left to say, if the supervisor takes it soon."""
        self._over.set()
        with self._lock, suppress(OSError):
            if self._lost:
                self._unsent += _line({"lost": self._lost})
            self._sock.settimeout(_LAST_WORDS)
            self._sock.sendall(self._unsent)
            self._unsent.clear()

    def _say(self, message: Mapping[str, object]) -> None:
        # A supervisor that does not listen must not hold its workers: what does not fit is kept,
        # and what is too much is only counted.
        line = _line(message)
        if not self._lock.acquire(timeout=_MOMENT):
            self._lost += 1
            return
        try:
            if len(self._unsent) + len(line) > _MOST_UNSENT:
                self._lost += 1
                return
            self._unsent += line
            with suppress(OSError):  # full, or nobody is there any more
                sent = self._sock.send(self._unsent, socket.MSG_DONTWAIT)
                del self._unsent[:sent]
        finally:
            self._lock.release()

    def _hear(self, patience: Duration) -> None:
        with suppress(OSError):
            while line := self._next_line():
                order = _order(line)
                if order is not None:
                    self._tell(order)
        if self._over.is_set():
            return
        self._tell(StopOrder(patience, final=True, cause="the supervisor is gone", orphan=True))
        threading.Event().wait(patience)
        _say_at_last(
            f"holdfast serve: worker {os.getpid()} has no supervisor, and did not stop within "
            f"{patience:g} s: ended by force"
        )
        os._exit(_ORPHANED)

    def _tell(self, order: StopOrder) -> None:
        with suppress(RuntimeError):  # its loop is closed: it has stopped already
            self._stop(order)

    def _next_line(self) -> bytes:
        """The next line, with its end; empty when the supervisor is gone."""
        while b"\n" not in self._come:
            data = self._sock.recv(_CHUNK)
            if not data or len(self._come) > _LARGEST_LINE:
                return b""
            self._come += data
        line, self._come = self._come.split(b"\n", 1)
        return line + b"\n"


def _say_at_last(text: str) -> None:
    """Say it, unless nobody reads what we say."""
    words = partial(print, text, file=sys.stderr, flush=True)
    voice = threading.Thread(target=words, name="holdfast last words", daemon=True)
    with suppress(RuntimeError):  # an interpreter that shuts down starts no threads
        voice.start()
        voice.join(_LAST_WORDS)


def _end_at_once(order: StopOrder) -> None:
    """While the application is loaded nothing is served, and nobody can wait for its code."""
    sys.stderr.flush()
    os._exit(_TOLD_EARLY)


def _order(line: bytes) -> StopOrder | None:
    try:
        given: dict[str, Any] = json.loads(line)["stop"]
        return StopOrder(
            seconds=float(given["seconds"]),
            final=given["final"] is True,
            force=given["force"] is True,
            cause=str(given["cause"]),
            stop=str(given["stop"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        _log.error("the supervisor says what nobody understands: %r", line[:200])
        return None
