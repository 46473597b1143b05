"""The journal of a process: what happened, in order, and who reads it.

Rule 1. A record is kept and handed to every reader before `write` returns, so that a process that
        is killed has told everything up to there.
Rule 2. Nothing here raises into the process. A reader that fails is told about once, and is left
        out from then on. The one that writes a file does not fail for a full disk: it waits.
Rule 3. Bounded: the last 10,000 records are kept.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from holdfast.domain.instant import Instant
from holdfast.domain.record import Record
from holdfast.runtime.clock import monotonic, wall

__all__ = ["FileReader", "Journal", "LogReader", "Reader"]

_KEPT: Final = 10_000
_MOST_DUE: Final = 1_000
"""Lines that a file did not take and that are tried again."""
_LOUD: Final = frozenset(
    {
        "component.failed",
        "component.died",
        "component.forced",
        "shutdown.unanswered",
        "drain.cut",
        "hook.failed",
        "config.refused",
        "worker.died",
    }
)
"""What a log shows as a warning: something did not go as it should."""

_log: Final = logging.getLogger("holdfast.lifecycle")

Reader: TypeAlias = Callable[[Record], object]
"""Is called with every record, in the thread that wrote it; must not wait."""


class Journal:
    """The records of one process.

    Args:
        readers: are handed every record from now on.
        now: the clock of the records.
        keep: how many of the last records are kept.
    """

    def __init__(
        self,
        *readers: Reader,
        now: Callable[[], Instant] = monotonic,
        keep: int = _KEPT,
    ) -> None:
        self.now = now
        self._kept: deque[Record] = deque(maxlen=keep)
        self._readers = list(readers)

    @property
    def records(self) -> tuple[Record, ...]:
        """What was kept, oldest first."""
        return tuple(self._kept)

    def read_by(self, reader: Reader) -> None:
        """Hand every record from now on to `reader` as well."""
        self._readers.append(reader)

    def write(
        self,
        kind: str,
        subject: str = "",
        detail: str = "",
        *,
        cause: str = "",
        scope: str = "process",
        at: Instant | None = None,
        data: Mapping[str, object] | None = None,
    ) -> Record:
        """Keep one record and hand it on; `at` is now, unless it is given.

        Raises:
            ValueError: `kind` is not a kind of record.
        """
        record = Record(
            at=self.now() if at is None else at,
            kind=kind,
            subject=subject,
            detail=detail,
            cause=cause,
            scope=scope,
            wall=wall(),
            pid=os.getpid(),
            data=data or {},
        )
        self.keep(record)
        return record

    def keep(self, record: Record) -> None:
        """Keep a record that was made elsewhere, and hand it on."""
        self._kept.append(record)
        for reader in tuple(self._readers):
            try:
                reader(record)
            except Exception:
                self._readers.remove(reader)
                _log.exception("a reader of the journal failed and gets nothing more: %r", reader)


class LogReader:
    """Writes one line for each record to a logger of the standard library."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or _log

    def __call__(self, record: Record) -> None:
        level = logging.WARNING if record.kind in _LOUD else logging.INFO
        self._logger.log(level, "%s", record.line())


class FileReader:
    """Appends one line of JSON for each record to a file, and has the system take it at once.

    Each line is one write to a file that is opened for appending, so that several processes may
    share it, and a process that is killed leaves whole lines.

    What cannot be written, since the disk is full for example, is kept and tried again with the
    next record: the last 1,000 lines. One of which only a part was taken is ended there, and
    comes again as a whole.

    Raises:
        OSError: the file cannot be opened for appending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = io.FileIO(path, "a")
        self._due: deque[bytes] = deque(maxlen=_MOST_DUE)
        self._torn = False
        self._failing = False
        self._lost = 0

    def __call__(self, record: Record) -> None:
        line = json.dumps(record.as_dict(), default=repr, ensure_ascii=False) + "\n"
        self._lost += len(self._due) == _MOST_DUE
        self._due.append(line.encode("utf-8", "backslashreplace"))
        self._catch_up()

    def close(self) -> None:
        """Close the file; records after that are an error, which the journal bears."""
        if self._due and not self._file.closed:
            self._catch_up()
        self._file.close()

    def _catch_up(self) -> None:
        try:
            while self._due:
                self._put(self._due[0])
                self._due.popleft()
        except OSError as error:
            if not self._failing:
                self._failing = True
                why = error.strerror or error
                _log.warning("%s: %s; it is tried again at each record", self._file.name, why)
            return
        if self._failing:
            self._failing = False
            _log.warning("%s: is written again; records lost: %d", self._file.name, self._lost)
            self._lost = 0

    def _put(self, line: bytes) -> None:
        """One line as a whole, behind the end of one that was not."""
        whole = b"\n" + line if self._torn else line
        taken = self._file.write(whole) or 0
        if taken < len(whole):
            before = len(whole) - len(line)
            self._torn = taken > before or (self._torn and taken < before)
            raise OSError(errno.EIO, "only a part of a record was taken")
        self._torn = False
