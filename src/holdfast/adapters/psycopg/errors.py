"""Our errors, as users of psycopg expect them: each is one of psycopg's as well.

What belongs here: how a spent limit, a cancellation and a commit without an answer are raised. What
psycopg raises by itself for a statement that was ended is `QueryCanceled`, so that is what ours are
too, and existing `except` clauses hold.

A trap: psycopg's errors keep what the server said in private attributes. They are filled in blank,
so that `.diag` and `.pgresult` can be read on ours, and say nothing.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg import errors

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    InsufficientBudget,
    OutcomeUnknown,
    ScopeEnded,
)
from holdfast.domain.instant import NEVER
from holdfast.domain.shares import Phase
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both
from holdfast.runtime.scope import running_task

__all__ = ["Dial", "Statement", "elsewhere", "ended", "unknown"]

_HOME: Final = "holdfast.adapters.psycopg.errors"
_BLANK: Final = ("_info", "_pgconn", "_encoding")


def _made(ours: type, theirs: type) -> Any:
    return both(ours, theirs, _HOME, *_BLANK)


_EXCEEDED: Final = _made(DeadlineExceeded, errors.QueryCanceled)
_INSUFFICIENT: Final = _made(InsufficientBudget, errors.QueryCanceled)
_CANCELLED: Final = _made(Cancelled, errors.QueryCanceled)
_UNKNOWN: Final = _made(OutcomeUnknown, errors.OperationalError)
_TOO_LATE: Final = _made(DeadlineExceeded, errors.ConnectionTimeout)
_NOT_DIALLED: Final = _made(InsufficientBudget, errors.ConnectionTimeout)


class Statement(Bounded):
    """One wait for the server; its errors are `psycopg.errors.QueryCanceled` as well."""

    __slots__ = ()
    client = "psycopg"
    phase = Phase.STATEMENT

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        """See `Bounded`."""
        error: DeadlineExceeded = _EXCEEDED(cause)
        return error

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        """See `Bounded`."""
        error: InsufficientBudget = _INSUFFICIENT(cause)
        return error


class Dial(Bounded):
    """One attempt to connect; its errors are `psycopg.errors.ConnectionTimeout` as well."""

    __slots__ = ()
    client = "psycopg"
    phase = Phase.CONNECT

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        """See `Bounded`."""
        error: DeadlineExceeded = _TOO_LATE(cause)
        return error

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        """See `Bounded`."""
        error: InsufficientBudget = _NOT_DIALLED(cause)
        return error


def elsewhere(bound: Bounded) -> bool:
    """Whether its scope cancels some other task than this, so that the limit is seen to here."""
    here = bound.here
    return here is not None and bound.limit != NEVER and here.task is not running_task()


def ended(bound: Bounded, cause: Cause) -> ScopeEnded:
    """The error for a wait that was ended from above with `cause`."""
    if cause.kind is CauseKind.DEADLINE:
        return bound.over("the scope around it is spent")
    error: ScopeEnded = _CANCELLED(cause)
    return error


def unknown(bound: Bounded, detail: str) -> OutcomeUnknown:
    """The error for a commit that was sent and never answered; an `OperationalError` as well."""
    kind = CauseKind.DEADLINE if bound.left <= 0 else CauseKind.CALLER
    error: OutcomeUnknown = _UNKNOWN(bound.cause(detail, kind=kind))
    return error
