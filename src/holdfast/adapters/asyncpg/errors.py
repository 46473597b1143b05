"""Our errors, as programs of asyncpg expect them: each is one of asyncpg's as well."""

from __future__ import annotations

from typing import Any, ClassVar

import asyncpg

from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, OutcomeUnknown
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both
from holdfast.runtime.scope import running_task

__all__ = ["Dial", "Place", "Statement", "outcome_unknown"]

_HOME = "holdfast.adapters.asyncpg"
_UNKNOWN = both(OutcomeUnknown, asyncpg.TransactionResolutionUnknownError, _HOME)
_EXCEEDED = both(DeadlineExceeded, asyncpg.QueryCanceledError, _HOME)
_INSUFFICIENT = both(InsufficientBudget, asyncpg.QueryCanceledError, _HOME)


class Statement(Bounded):
    """The bounds of one statement, or of what is done for it."""

    __slots__ = ()
    client = "asyncpg"
    phase: ClassVar[Phase | None] = Phase.STATEMENT

    def bound(self, timeout: Any) -> tuple[Any, bool]:
        """How long to wait, where `timeout` was given, and whether that is what is left.

        Only where the scope cancels some other task than this: it is not seen here, then.
        """
        here = self.here
        if here is None or self.limit == NEVER or here.task is running_task():
            return timeout, False
        left = max(0.001, self.left)
        if isinstance(timeout, int | float) and timeout <= left:
            return timeout, False
        return left, True

    def told(self, exc: Exception, otherwise: str, *, ours: bool) -> Exception:
        """The error for `exc`, which says that a time has passed; itself when that was not ours.

        Args:
            exc: what was raised.
            otherwise: what was the matter, where it does not say.
            ours: the time was what was left. A timer may be early, so the clock does not tell.
        """
        if isinstance(exc, DeadlineExceeded) or not (ours or self.left <= 0):
            return exc
        return self.over(str(exc) or otherwise)

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        made: DeadlineExceeded = _EXCEEDED(cause)
        return made

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        made: InsufficientBudget = _INSUFFICIENT(cause)
        return made


class Place(Statement):
    """The bounds of waiting for a place in a pool."""

    __slots__ = ()
    phase = Phase.POOL


class Dial(Statement):
    """The bounds of a connect."""

    __slots__ = ()
    phase = Phase.CONNECT


def outcome_unknown(cause: Cause) -> OutcomeUnknown:
    """The error for a commit without an answer."""
    made: OutcomeUnknown = _UNKNOWN(cause)
    return made
