"""Our errors, as programs of asyncpg expect them: each is one of asyncpg's as well."""

from __future__ import annotations

import asyncpg

from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both

__all__ = ["Statement"]

_HOME = "holdfast.adapters.asyncpg"
_EXCEEDED = both(DeadlineExceeded, asyncpg.QueryCanceledError, _HOME)
_INSUFFICIENT = both(InsufficientBudget, asyncpg.QueryCanceledError, _HOME)


class Statement(Bounded):
    """The bounds of one statement, or of what is done for it."""

    __slots__ = ()

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        made: DeadlineExceeded = _EXCEEDED(cause)
        return made

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        made: InsufficientBudget = _INSUFFICIENT(cause)
        return made
