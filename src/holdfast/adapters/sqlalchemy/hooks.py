"""What an instrumented engine does at every statement, and at the ends of what it has begun.

What SQLAlchemy has events for is an event: execution, connecting, errors. For commit, rollback and
close there is none that could wait or refuse, so these methods of the engine's dialect are covered.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import event, exc

from holdfast.adapters.sqlalchemy.endings import (
    close_within,
    commit_by_driver,
    commit_within,
    rollback_within,
)
from holdfast.adapters.sqlalchemy.errors import (
    Statement,
    is_server_timeout,
    ours_behind,
    ours_for,
)
from holdfast.adapters.sqlalchemy.postgres import ServerTimeout
from holdfast.adapters.sqlalchemy.sqlite import ProgressBound
from holdfast.adapters.sqlalchemy.state import State, state_of
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import InsufficientBudget, OutcomeUnknown, ScopeEnded
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.scope import ambient

__all__ = ["Hooks"]

_POSTGRES: Final = frozenset({"asyncpg", "psycopg", "psycopg2"})
_LIBPQ: Final = frozenset({"psycopg", "psycopg2"})
_COVERED: Final = (
    "do_commit",
    "do_rollback",
    "do_rollback_to_savepoint",
    "do_close",
    "do_terminate",
)
_USABLE: Final = frozenset({0, 2, 3})
"""Of libpq's transaction status: idle, in a transaction, or in one that has failed."""
_NAME: Final = 48
_SLACK: Final[Duration] = 0.05
"""Seconds: what a server is told is what was left, a little earlier."""


class Hooks:
    """See the module.

    Args:
        engine: that is instrumented, the synchronous one.
        refuse_below: seconds; a statement with less left is refused.
        commit_grace: seconds.
        grace: seconds for rollbacks and closes.
        tell_server: whether a plain driver's server is told what is left.
    """

    def __init__(
        self,
        engine: Any,
        refuse_below: Duration,
        commit_grace: Duration,
        grace: Duration,
        tell_server: bool,
    ) -> None:
        self.engine = engine
        self.dialect = dialect = engine.dialect
        self._plain: Any = type(dialect)
        self._refuse_below = refuse_below
        self._commit_grace = commit_grace
        self._grace = grace
        self._is_async: bool = dialect.is_async
        self._server: ServerTimeout | None = None
        self._progress: ProgressBound | None = None
        self._driver: str = dialect.driver
        if dialect.name == "postgresql" and tell_server and self._driver in _POSTGRES:
            self._server = ServerTimeout(self._driver)
        elif dialect.name == "sqlite" and self._driver in ("pysqlite", "aiosqlite"):
            self._progress = ProgressBound(self._is_async)

    def install(self) -> None:
        """Listen to the engine, and cover methods of its dialect."""
        for name, call in self._listeners():
            event.listen(self.engine, name, call)
        for name in _COVERED:
            setattr(self.dialect, name, getattr(self, "_" + name))

    def remove(self) -> None:
        """Undo `install`."""
        for name, call in self._listeners():
            event.remove(self.engine, name, call)
        for name in _COVERED:
            delattr(self.dialect, name)

    def _listeners(self) -> list[tuple[str, Any]]:
        return [
            ("do_execute", self._do_execute),
            ("do_executemany", self._do_executemany),
            ("do_execute_no_params", self._do_execute_no_params),
            ("do_connect", self._do_connect),
            ("handle_error", self._handle_error),
            ("checkin", self._checkin),
        ]

    # -- statements ------------------------------------------------------------------------------

    def _do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any) -> bool:
        text = self._bounded(cursor, statement, context, many=False)
        if text is statement:
            return False
        self.dialect.do_execute(cursor, text, parameters, context)
        return True

    def _do_execute_no_params(self, cursor: Any, statement: Any, context: Any) -> bool:
        text = self._bounded(cursor, statement, context, many=False)
        if text is statement:
            return False
        self.dialect.do_execute_no_params(cursor, text, context)
        return True

    def _do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any) -> bool:
        self._bounded(cursor, statement, context, many=True)
        if self._driver != "psycopg2" or self._server is None or ambient() is None:
            return False
        # One command for each set of them, and the server would bound each by itself.
        sets = self._while_left(cursor, statement, parameters, context)
        self.dialect.do_executemany(cursor, statement, sets, context)
        return True

    def _while_left(self, cursor: Any, statement: Any, sets: Any, context: Any) -> Iterator[Any]:
        for one in sets:
            self._bounded(cursor, statement, context, many=True)
            yield one

    def _bounded(self, cursor: Any, statement: Any, context: Any, *, many: bool) -> Any:
        """The statement as it is to be executed, when it may begin and its bounds are set."""
        if context is None:
            return statement
        # The name of the statement is made, and what is known of it kept, when there is an error.
        here, left = ambient(), NEVER
        if here is not None and here.limit != NEVER:
            left = here.limit - here.driver.now()
            if left <= 0 or left < self._refuse_below:
                Statement(_name(statement)).admit(self._refuse_below)
        held = context.root_connection.connection
        state = state_of(held)
        if here is not None:
            state.began = here.driver.now()
        if self._progress is not None:
            state.here, state.limit, state.cut = here, NEVER, False
            if here is not None:
                state.limit, state.now = here.limit, here.driver.now
            self._progress.arm(state, held, left)
        elif self._server is not None and not state.by_driver and not _autocommits(held):
            alone = many or getattr(cursor, "name", None) is not None
            return self._server.arm(state, held, left, statement, alone)
        return statement

    # -- connections -----------------------------------------------------------------------------

    def _do_connect(self, dialect: Any, record: Any, args: Any, options: dict[str, Any]) -> None:
        here = ambient()
        if here is None or here.limit == NEVER:
            return
        left = here.remaining()
        if self._driver in _LIBPQ:
            # libpq counts in seconds, and takes less than two for two.
            own = float(options.get("connect_timeout") or math.inf)
            options["connect_timeout"] = max(2, math.ceil(min(own, left)))

    def _do_close(self, connection: Any) -> None:
        self._closed(self._plain.do_close, connection)

    def _do_terminate(self, connection: Any) -> None:
        self._closed(self._plain.do_terminate, connection)

    def _closed(self, plain: Any, connection: Any) -> None:
        def close(given: Any) -> None:
            plain(self.dialect, given)

        if not self._is_async:
            close(connection)
        else:
            close_within(self._grace, close, self._driver, connection)

    def _checkin(self, connection: Any, record: Any) -> None:
        """What comes back to the pool closed, or in the middle of something, does not stay."""
        if connection is None:
            return
        driver: Any = record.driver_connection
        if self._driver == "asyncpg":
            sound = not driver.is_closed()
        elif self._driver == "psycopg":
            sound = driver.pgconn.transaction_status in _USABLE
        else:
            return
        if not sound:
            record.invalidate()

    # -- transactions ----------------------------------------------------------------------------

    def _do_rollback_to_savepoint(self, connection: Any, name: str) -> None:
        self._plain.do_rollback_to_savepoint(self.dialect, connection, name)
        state_of(connection.connection).told = None

    def _do_commit(self, held: Any) -> None:
        state = state_of(held)
        Statement("COMMIT").admit()
        state.committing = True
        if state.by_driver:
            commit_by_driver(self._commit, self._driver, held)
        elif self._is_async:
            commit_within(self._commit_grace, self._commit, self._driver, held)
        else:
            self._commit(held)
        state.committing = False
        state.told = None

    def _commit(self, held: Any) -> None:
        self._plain.do_commit(self.dialect, held)

    def _do_rollback(self, held: Any) -> None:
        state = state_of(held)
        state.told, state.limit, state.here = None, NEVER, None
        if self._is_async and not state.by_driver and ambient() is not None:
            rollback_within(self._grace, self._rollback, self._driver, held)
        else:
            self._rollback(held)
        state.cut = False

    def _rollback(self, held: Any) -> None:
        self._plain.do_rollback(self.dialect, held)

    # -- errors ----------------------------------------------------------------------------------

    def _handle_error(self, context: Any) -> ScopeEnded | None:
        error: BaseException = context.original_exception
        held, state = self._of(context)
        committing = state is not None and state.committing
        if state is not None:
            state.committing = False
        if isinstance(error, asyncio.CancelledError):
            if state is not None:
                if self._survives(held, state):
                    context.is_disconnect = False
                if not state.by_driver and context.statement:
                    bounds = Statement(_name(context.statement))
                    bounds.begun = min(bounds.begun, state.began)
                    bounds.interrupted()
            return None
        found = ours_behind(error)
        if found is not None:
            made_here = isinstance(found, exc.SQLAlchemyError)
            refused = made_here and isinstance(found, InsufficientBudget)  # nothing was sent
            unknown = isinstance(found, OutcomeUnknown) and self._progress is None
            # SQLAlchemy takes every time-out for the end of the connection.
            context.is_disconnect = unknown or not (refused or self._is_usable(held))
            context.invalidate_pool_on_disconnect = False
            return None if made_here else ours_for(found, context.sqlalchemy_exception)
        theirs = context.sqlalchemy_exception
        if committing and context.is_disconnect and theirs is not None:
            bounds = Statement("COMMIT")
            detail = "the connection was lost after the commit was sent"
            return ours_for(bounds.cause(detail), theirs)
        return self._late(error, theirs, context)

    def _late(self, error: BaseException, theirs: Any, context: Any) -> ScopeEnded | None:
        """Ours, where an error of a driver means that the time is over."""
        here = ambient()
        if here is None:
            return None
        bounds = Statement(_name(context.statement or "connect"))
        reached = here.reached()
        server = is_server_timeout(error)
        if reached is not None and reached.kind is not CauseKind.DEADLINE and server:
            return ours_for(_Ended(bounds.cause("interrupted", kind=reached.kind)), theirs)
        slack = _SLACK if server else 0.0
        # A connection that is lost then was given up for it, or could not be made in time.
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
            return begun or _autocommits(held)
        if self._driver == "psycopg":
            return driver.pgconn.transaction_status in _USABLE
        return True


class _Ended(ScopeEnded):
    """What a scope that was cancelled means for a thread below it."""


def _name(statement: Any) -> str:
    return " ".join(str(statement)[:_NAME].split())


def _autocommits(held: Any) -> bool:
    plain = held.dbapi_connection
    if hasattr(plain, "autocommit"):
        return bool(plain.autocommit)
    return bool(plain.isolation_level == "autocommit")
