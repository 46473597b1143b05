"""What a supervisor tells, and where: the story of all its workers is one."""

from __future__ import annotations

import logging
import os
from typing import Final

from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.domain.record import Record, record_from_dict
from holdfast.runtime.lifecycle.journal import FileReader, Journal, LogReader, Reader

__all__ = ["journal_of", "keep_told", "log_to_stderr", "timeline_of"]

_log: Final = logging.getLogger("holdfast.serve")


def journal_of(plan: Plan) -> Journal:
    """A journal that logs what is ours and writes all of it to the time-line of the plan.

    Raises:
        ServeError: the time-line cannot be written.
    """
    # The file first: nobody may read what is logged, and then it stands still there.
    return Journal(*timeline_of(plan), _log_own)


def timeline_of(plan: Plan) -> list[Reader]:
    """What writes the time-line of the plan; nothing where none is wanted.

    Raises:
        ServeError: it cannot be written.
    """
    if not plan.timeline:
        return []
    try:
        return [FileReader(plan.timeline)]
    except OSError as error:
        raise ServeError(
            f"--timeline {plan.timeline}: {error.strerror}; name a file that can be appended to"
        ) from None


def keep_told(journal: Journal, worker: int, told: object) -> Record | None:
    """Keep a record that a worker tells; what is none is logged, and `None`."""
    try:
        record = record_from_dict(told)
    except ValueError as error:
        _log.error("worker %d tells a record that is none: %s", worker, error)
        return None
    journal.keep(record)
    return record


def _log_own(record: Record) -> None:
    if record.pid == os.getpid():
        LogReader(_log)(record)


class _Lines(logging.Formatter):
    """As those of uvicorn, among which they appear."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname + ':':<9} {super().format(record)}"


def log_to_stderr() -> None:
    """Log to standard error, unless the program has said where to."""
    ours = logging.getLogger("holdfast")
    if not ours.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines())
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
