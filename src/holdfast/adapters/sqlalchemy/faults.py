"""What an error of a driver means, and what becomes of its connection.

SQLAlchemy takes each cancellation and each time-out for the end of a connection. It is not, where
the driver knows what the server is at; and it is, where nobody knows what is left of a transaction.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy import exc

from holdfast.adapters.sqlalchemy.errors import (
    Statement,
    is_interrupt,
    is_server_timeout,
    ours_behind,
    ours_for,
)
from holdfast.adapters.sqlalchemy.sqlite import ProgressBound
from holdfast.adapters.sqlalchemy.state import State, state_of
from holdfast.adapters.sqlalchemy.words import kind_of
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import InsufficientBudget, OutcomeUnknown, ScopeEnded
from holdfast.domain.instant import Duration
from holdfast.runtime.scope import ambient

__all__ = ["Faults", "autocommits"]

_IDLE: Final = 0
_USABLE: Final = frozenset({_IDLE, 2, 3})
"""Of libpq's transaction status: idle, in a transaction, or in one that has failed."""
_SLACK: Final[Duration] = 0.05
"""Seconds: what a server is told is what was left, a little earlier."""


class Faults:
    """See the module.

    Args:
        driver: name of the driver, as SQLAlchemy has it.
        progress: of SQLite; none for others.
    """

    def __init__(self, driver: str, progress: ProgressBound | None) -> None:
        self._driver = driver
        self._progress = progress

    def is_sound(self, driver: Any) -> bool:
        """Whether a connection of the driver that comes back to a pool may stay there.

        It was rolled back, or should have been: a rollback that was cut is not seen elsewhere.
        """
        if self._driver == "asyncpg":
            return not driver.is_closed() and not driver.is_in_transaction()
        if self._driver == "psycopg":
            return bool(driver.pgconn.transaction_status == _IDLE)
        return True

    def handle(self, context: Any) -> ScopeEnded | None:
        """What SQLAlchemy is to raise in the place of what came; the event `handle_error`.

        Args:
            context: of SQLAlchemy. Whether the connection is at its end is told there.
        """
        error: BaseException = context.original_exception
        held, state = self._of(context)
        committing = state is not None and state.committing
        if state is not None:
            state.committing = False
        if isinstance(error, asyncio.CancelledError):
            if state is not None:
                self._cut(context, held, state)
            return None
        if state is not None and self._progress is not None and is_interrupt(error):
            self._progress.note(state, held)
        theirs = context.sqlalchemy_exception
        found = ours_behind(error)
        if found is not None:
            made_here = isinstance(found, exc.SQLAlchemyError)
            refused = made_here and isinstance(found, InsufficientBudget)  # nothing was sent
            unknown = isinstance(found, OutcomeUnknown) and self._progress is None
            usable = refused or (self._is_usable(held) and not self._halves(context, found))
            # SQLAlchemy takes every time-out for the end of the connection.
            context.is_disconnect = unknown or not usable
            context.invalidate_pool_on_disconnect = False
            return None if made_here else ours_for(found, theirs)
        if committing and context.is_disconnect and theirs is not None:
            bounds = _begun(Statement("COMMIT"), state)
            detail = "the connection was lost after the commit was sent"
            return ours_for(bounds.cause(detail), theirs)
        if is_server_timeout(error) and self._halves(context, error):
            context.is_disconnect = True
        return self._late(error, theirs, context, state)

    def _cut(self, context: Any, held: Any, state: State) -> None:
        """A cancellation came in a statement; or in what begins or ends a transaction."""
        # One that was rolled back not at all would come back to the pool with all that it did.
        whole = self._progress is not None or bool(context.statement)
        if whole and self._survives(held, state) and not self._halves(context, None):
            context.is_disconnect = False
        if not state.by_driver and context.statement:
            _begun(Statement(kind_of(context.statement).verb), state).interrupted()

    def _halves(self, context: Any, error: BaseException | None) -> bool:
        """Whether nobody knows what of a transaction there is when this has failed.

        What a savepoint was to undo would be committed with the rest. SQLite does it or does not.
        """
        if self._progress is not None or not context.statement:
            return False
        kind = kind_of(context.statement)
        return (kind.undoes or kind.releases) and not isinstance(error, InsufficientBudget)

    def _late(
        self, error: BaseException, theirs: Any, context: Any, state: State | None
    ) -> ScopeEnded | None:
        """Ours, where an error of a driver means that the time is over."""
        here = ambient()
        if here is None:
            return None
        verb = kind_of(context.statement).verb if context.statement else "connection"
        bounds = _begun(Statement(verb), state)
        reached = here.reached()
        server = is_server_timeout(error)
        if reached is not None and reached.kind is not CauseKind.DEADLINE and server:
            return ours_for(_Ended(bounds.cause("interrupted", kind=reached.kind)), theirs)
        slack = _SLACK if server else 0.0
        # A connection that is lost then was given up for it.
        lost = context.connection is None or context.is_disconnect
        if bounds.left > slack or not (server or lost):
            return None
        if theirs is None:
            return bounds.over(str(error))
        return ours_for(bounds.over(str(theirs.orig)), theirs)

    def _of(self, context: Any) -> tuple[Any, State | None]:
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return None, None
        held = connection.connection
        return held, state_of(held)

    def _survives(self, held: Any, state: State) -> bool:
        """Whether a connection can be used after a cancellation has cut a statement."""
        if self._progress is not None:
            state.cut = True  # the rollback waits behind it
            return True
        return state.by_driver and self._is_usable(held)

    def _is_usable(self, held: Any) -> bool:
        if held is None:
            return False
        driver: Any = held.driver_connection
        if self._driver == "asyncpg":
            if driver.is_closed():
                return False
            # Else a BEGIN was cut, of which nobody knows whether it was done.
            plain = held.dbapi_connection
            begun = getattr(plain, "_started", plain._transaction is not None)  # the former in 2.0
            return begun or autocommits(held)
        if self._driver == "psycopg":
            return driver.pgconn.transaction_status in _USABLE
        return True


class _Ended(ScopeEnded):
    """What a scope that was cancelled means for a thread below it."""


def _begun(bounds: Statement, state: State | None) -> Statement:
    """With the instant at which it began, not that of its error."""
    if state is not None:
        bounds.begun = min(bounds.begun, state.began)
    return bounds


def autocommits(held: Any) -> bool:
    """Whether a connection is in AUTOCOMMIT."""
    plain = held.dbapi_connection
    if hasattr(plain, "autocommit"):
        return bool(plain.autocommit)
    return bool(plain.isolation_level == "autocommit")
