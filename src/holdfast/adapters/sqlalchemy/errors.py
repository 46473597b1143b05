"""Errors that are ours and SQLAlchemy's, and what an error of a driver is in our words.

What belongs here: the classes, and the one table from errors of drivers to them. The trap: drivers
that keep deadlines by themselves raise our errors as their own; SQLAlchemy's dialects wrap those
again, so ours is looked for along the causes.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import exc

from holdfast.domain.cause import Cause
from holdfast.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    InsufficientBudget,
    OutcomeUnknown,
    ScopeEnded,
)
from holdfast.domain.shares import Phase
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both

__all__ = [
    "CommitUnknown",
    "Dial",
    "PoolWait",
    "Statement",
    "is_interrupt",
    "is_server_timeout",
    "ours_behind",
    "ours_for",
]

_HOME: Final = "holdfast.adapters.sqlalchemy"
_BLANK: Final = (
    "statement",
    "params",
    "orig",
    "ismulti",
    "hide_parameters",
    "connection_invalidated",
    "detail",
)
_QUERY_CANCELED: Final = "57014"
_SQLITE_BUSY: Final = 5
_SQLITE_INTERRUPT: Final = 9
_DEPTH: Final = 8


class CommitUnknown(OutcomeUnknown):
    """The connection was lost, or given up, after a commit was sent: it may have been done."""

    def __init__(self, cause: Cause) -> None:
        # Not super(): what comes next may be a class of SQLAlchemy that wants other arguments.
        Exception.__init__(self, cause)
        self.cause = cause


class PoolWait(Bounded):
    """What is waited for is a place in a pool."""

    __slots__ = ()

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        made: DeadlineExceeded = both(DeadlineExceeded, exc.TimeoutError, _HOME)(cause)
        return made

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        made: InsufficientBudget = both(InsufficientBudget, exc.TimeoutError, _HOME)(cause)
        return made


class Statement(Bounded):
    """What is bounded is a statement."""

    __slots__ = ()
    client = "sqlalchemy"
    phase = Phase.STATEMENT

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        made: DeadlineExceeded = _filled(
            both(DeadlineExceeded, exc.OperationalError, _HOME, *_BLANK)(cause)
        )
        return made

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        made: InsufficientBudget = _filled(
            both(InsufficientBudget, exc.OperationalError, _HOME, *_BLANK)(cause)
        )
        return made


class Dial(Statement):
    """What is bounded is an attempt to connect."""

    __slots__ = ()
    phase = Phase.CONNECT


def _filled(error: Any, theirs: Any = None) -> Any:
    """With what SQLAlchemy keeps in its errors of statements."""
    error.detail = []
    error.hide_parameters = True
    error.connection_invalidated = False
    error.orig = None
    if theirs is not None:
        for name in ("statement", "params", "orig", "ismulti", "hide_parameters"):
            setattr(error, name, getattr(theirs, name, None))
    return error


def ours_for(found: ScopeEnded | Cause, theirs: Any) -> ScopeEnded:
    """Ours, as one of SQLAlchemy's.

    Args:
        found: what a driver has raised; or the cause of an outcome that is unknown.
        theirs: what SQLAlchemy would raise, if that is known.
    """
    if isinstance(found, Cause):
        kind: Any = exc.DBAPIError
        if theirs is not None:
            kind = theirs.__class__
        made: Any = both(CommitUnknown, kind, _HOME, *_BLANK)(found)
    elif isinstance(found, OutcomeUnknown):
        made = both(CommitUnknown, exc.DBAPIError, _HOME, *_BLANK)(found.cause)
    elif isinstance(found, InsufficientBudget):
        made = both(InsufficientBudget, exc.OperationalError, _HOME, *_BLANK)(found.cause)
    elif isinstance(found, DeadlineExceeded):
        made = both(DeadlineExceeded, exc.OperationalError, _HOME, *_BLANK)(found.cause)
        made.trail = found.trail
    else:
        return both(Cancelled, exc.SQLAlchemyError, _HOME)(found.cause)  # type: ignore[no-any-return]
    filled: ScopeEnded = _filled(made, theirs)
    return filled


def ours_behind(error: BaseException | None) -> ScopeEnded | None:
    """Our error that an error of a driver was made from, if it was one."""
    at: Any = error
    for _ in range(_DEPTH):
        if at is None or isinstance(at, ScopeEnded):
            return at
        at = at.__cause__ or getattr(at, "orig", None)
    return None


def is_server_timeout(error: Any) -> bool:
    """Whether a database has ended the statement before it was done, or did not begin it.

    Of PostgreSQL that is `query_canceled`, of SQLite `SQLITE_INTERRUPT` and `SQLITE_BUSY`.
    """
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        return bool(state == _QUERY_CANCELED)
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in (_SQLITE_BUSY, _SQLITE_INTERRUPT)


def is_interrupt(error: Any) -> bool:
    """Whether SQLite was interrupted in a statement; then it may have rolled back by itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) == _SQLITE_INTERRUPT
