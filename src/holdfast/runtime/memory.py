"""The file in which a service remembers how its last stops went.

One file for each service, and not one for each of its processes: they have one drain time-out, and
what one of them has learned holds for all. Whoever writes holds a lock (on a file beside it, since
the file itself is replaced), reads, steps the machine and puts a new file in the place of the old
one: written, synced, renamed. So a reader sees the old state or the new one, whenever the power
goes, and of two processes that end at the same time neither is lost.

A service does not fail for its memory: what is wrong with the file is told, and it goes on without.
Every call here waits for the disk, and up to a second for the lock; on an event loop, make it in a
thread.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.history import (
    Begun,
    Cleared,
    Ended,
    Event,
    Found,
    History,
    Outcome,
    StopHistory,
    Terms,
    history_as_plain,
    history_from_plain,
)
from holdfast.runtime.clock import wall
from holdfast.runtime.owndir import UnsafeDirectory, own_directory

__all__ = ["SUFFIX", "StopMemory", "place_of_memories"]

SUFFIX: Final = ".stops.json"
_VERSION: Final = 1
_LARGEST: Final = 1_048_576
_PATIENCE: Final = 1.0
_PAUSE: Final = 0.01
# A link in the place of a file of ours could lead to any other, so none is followed.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_log: Final = logging.getLogger("holdfast.lifecycle")


def place_of_memories() -> Path:
    """The directory of the files, whether it exists or not.

    `$XDG_STATE_HOME/holdfast`, else `~/.local/state/holdfast`, else, for a user without a home, a
    directory under the one for temporary files, which has to be the user's own.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if state and os.path.isabs(state):
        return Path(state, "holdfast")
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return Path(home, ".local", "state", "holdfast")
    return _beside_others()


def _beside_others() -> Path:
    return Path(tempfile.gettempdir(), f"holdfast-state-{os.getuid()}")


class StopMemory:
    """What a service remembers of its last stops.

    Args:
        path: its file.
        tell: takes what is wrong, one sentence each; the log by default.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        tell: Callable[[str], None] = _log.warning,
        now: Callable[[], Instant] = wall,
    ) -> None:
        self.path = path
        self._tell = tell
        self._now = now
        self._told: set[str] = set()
        self._mine: tuple[str, str] | None = None

    @classmethod
    def of(cls, service: str, path: str = "") -> StopMemory:
        """The memory of a service, at a path or, without one, in its default place."""
        name = quote(service, safe="") or "unnamed"
        return cls(Path(path) if path else place_of_memories() / f"{name}{SUFFIX}")

    def read(self) -> History:
        """What the file says. Changes nothing; a file that makes no sense says nothing."""
        try:
            return self._read()
        except OSError as error:
            self._warn(f"{self.path}: cannot be read: {error.strerror}")
            return History()

    def recall(self) -> History:
        """What is remembered, after stops that never ended were counted as failed.

        For a start, and for the beginning of a stop: its drain depends on `failures`.
        """
        return self._step(lambda history: Found(_gone(history)))

    def begun(self, terms: Terms, stop: str = "") -> History:
        """This process has begun to stop. Call it before anything else is done.

        Args:
            terms: what the stop is given.
            stop: which stop this is part of, the same for all workers of a supervisor that stops;
                empty for a stop of this process alone.
        """
        member = _identity(os.getpid())
        self._mine = stop or f"{member}@{self._now():.3f}", member
        event = Begun(*self._mine, terms)
        return self._step(lambda _: event)

    def ended(self, outcome: Outcome) -> History:
        """This process has stopped. Does nothing when it never began to."""
        if self._mine is None:
            return self.read()
        event = Ended(*self._mine, outcome)
        return self._step(lambda _: event)

    def reset(self) -> None:
        """Forget everything.

        Raises:
            OSError: the file cannot be written.
        """
        with self._locked():
            after, _ = StopHistory().step(History(), Cleared(), self._now())
            self._write(after)

    def _step(self, event_of: Callable[[History], Event]) -> History:
        history = History()
        try:
            with self._locked():
                history = self._read()
                after, decisions = StopHistory().step(history, event_of(history), self._now())
                if after != history:
                    history = after
                    self._write(after)
        except OSError as error:
            self._warn(
                f"{self.path}: cannot be written: {error.strerror}; the next start will not know "
                "how this stop went. Name a writable file as memory in [stop]"
            )
            return history
        for decision in decisions:
            if decision.stop.failed:
                _log.warning(
                    "a stop was %s, so the next drain gets more time; failures that count: %d",
                    (decision.stop.outcome or "").replace("_", " "),
                    decision.failures,
                )
        return history

    def _read(self) -> History:
        try:
            self._trusted(make=False)
            with os.fdopen(os.open(self.path, _READ), "rb") as file:
                text = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return History()
        if len(text) > _LARGEST:
            self._warn(f"{self.path}: larger than {_LARGEST} bytes, so nothing of it is believed")
            return History()
        try:
            found: object = json.loads(text)
        except (ValueError, RecursionError):
            self._warn(f"{self.path}: not JSON, so nothing is remembered")
            return History()
        content = cast("dict[str, object]", found) if isinstance(found, dict) else {}
        if content.get("version") != _VERSION:
            self._warn(f"{self.path}: of another version, so nothing is remembered")
            return History()
        history, problems = history_from_plain(content.get("stops"))
        for problem in problems:
            self._warn(f"{self.path}: {problem}")
        return history

    def _write(self, history: History) -> None:
        content = {"version": _VERSION, "stops": history_as_plain(history)}
        descriptor, draft = tempfile.mkstemp(
            dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".new"
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(content, indent=1).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self._trusted(make=True)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", _LOCK, 0o600)
        try:
            _lock(lock)
            yield
        finally:
            os.close(lock)  # which unlocks it

    def _trusted(self, *, make: bool) -> None:
        """Raise an `OSError` where others could have laid the files for us."""
        if self.path.parent != _beside_others():
            return
        try:
            own_directory(self.path.parent, make=make, variable="XDG_STATE_HOME")
        except UnsafeDirectory as error:
            raise PermissionError(errno.EPERM, str(error)) from error

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def _lock(descriptor: int) -> None:
    """Wait for the lock, but not for ever: whoever stops has no time for one that hangs."""
    pause = threading.Event()
    for _ in range(int(_PATIENCE / _PAUSE)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pause.wait(_PAUSE)
        else:
            return
    raise TimeoutError(errno.ETIMEDOUT, "another process holds the lock")


def _identity(pid: int) -> str:
    """A process, told apart from later ones of the same number; empty when there is none.

    The number, when it began, and the namespace and the boot that both of them belong to. Where
    there is no /proc, the number alone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rpartition(")")[2].split()
        began = "" if state in "ZX" else rest[18]
    except OSError:
        return str(pid) if not os.path.isdir("/proc/self") and _exists(pid) else ""
    return f"{pid}.{began}.{_world()}" if began else ""


def _world() -> str:
    """The namespace of process numbers and the boot: beyond them a number means nothing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        return f"{os.stat('/proc/self/ns/pid').st_ino}.{boot}"
    except OSError:
        return "0.0"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _gone(history: History) -> frozenset[str]:
    """Members under way that have ended for certain. Of those elsewhere nothing is known."""
    world = _world()
    open_ = {m.name for stop in history.stops for m in stop.members if m.outcome is None}
    found: set[str] = set()
    for name in open_:
        pid, _, rest = name.partition(".")
        here = not rest or rest.partition(".")[2] == world
        if here and pid.isascii() and pid.isdigit() and _identity(int(pid)) != name:
            found.add(name)
    return frozenset(found)
