"""What an instrumented engine does at every statement, and at the ends of what it has begun.

What SQLAlchemy has events for is an event: execution, connecting, errors. For commit, rollback and
close there is none that could wait or refuse, so these methods of the engine's dialect are covered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from sqlalchemy import event, exc

from holdfast.adapters.sqlalchemy.dialling import dialled
from holdfast.adapters.sqlalchemy.endings import (
    close_within,
    commit_by_driver,
    commit_within,
    in_thread_within,
    rollback_within,
)
from holdfast.adapters.sqlalchemy.errors import Statement
from holdfast.adapters.sqlalchemy.faults import Faults, autocommits
from holdfast.adapters.sqlalchemy.postgres import ServerTimeout
from holdfast.adapters.sqlalchemy.sqlite import ProgressBound, inside
from holdfast.adapters.sqlalchemy.state import state_of
from holdfast.adapters.sqlalchemy.words import kind_of
from holdfast.domain.errors import InsufficientBudget
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.scope import ambient

__all__ = ["Hooks"]

_POSTGRES: Final = frozenset({"asyncpg", "psycopg", "psycopg2"})
_COVERED: Final = (
    "connect",
    "do_commit",
    "do_rollback",
    "do_rollback_to_savepoint",
    "do_release_savepoint",
    "do_close",
    "do_terminate",
)


class Hooks:
    """See the module.

    Args:
        engine: that is instrumented, the synchronous one.
        refuse_below: seconds; a statement with less left is refused.
        commit_grace: seconds.
        grace: seconds for rollbacks and closes.
        tell_server: whether a plain driver's server is told what is left.
        connection_class: of the driver, for new connections; none for what the dialect takes.
    """

    def __init__(
        self,
        engine: Any,
        refuse_below: Duration,
        commit_grace: Duration,
        grace: Duration,
        tell_server: bool,
        connection_class: Any,
    ) -> None:
        self.engine = engine
        self.dialect = dialect = engine.dialect
        self._plain: Any = type(dialect)
        self._refuse_below = refuse_below
        self._commit_grace = commit_grace
        self._grace = grace
        self._connection_class = connection_class
        self._is_async: bool = dialect.is_async
        self._server: ServerTimeout | None = None
        self._progress: ProgressBound | None = None
        self._driver: str = dialect.driver
        if dialect.name == "postgresql" and tell_server and self._driver in _POSTGRES:
            self._server = ServerTimeout(self._driver)
        elif dialect.name == "sqlite" and self._driver in ("pysqlite", "aiosqlite"):
            self._progress = ProgressBound(self._is_async)
        self._faults = Faults(self._driver, self._progress)

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
            ("handle_error", self._faults.handle),
            ("checkin", self._checkin),
        ]

    # -- statements ------------------------------------------------------------------------------

    def _do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any) -> bool:
        if kind_of(statement).undoes and context is not None:
            self._undo(context, self.dialect.do_execute, cursor, statement, parameters, context)
            return True
        text = self._bounded(cursor, statement, context, many=False)
        if text is statement:
            return False
        self.dialect.do_execute(cursor, text, parameters, context)
        return True

    def _do_execute_no_params(self, cursor: Any, statement: Any, context: Any) -> bool:
        if kind_of(statement).undoes and context is not None:
            self._undo(context, self.dialect.do_execute_no_params, cursor, statement, context)
            return True
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
                Statement(kind_of(statement).verb).admit(self._refuse_below)
        held = context.root_connection.connection
        state = state_of(held)
        if here is not None:
            state.began = here.driver.now()
        if self._progress is not None:
            if state.cut:
                self._progress.settle(state, held)
            self._progress.refuse(state)
            state.inside = inside(held)
            state.here, state.limit = here, NEVER
            if here is not None:
                state.limit, state.now = here.limit, here.driver.now
            self._progress.arm(state, held, left)
        elif self._server is not None and not state.by_driver and not autocommits(held):
            alone = many or getattr(cursor, "name", None) is not None
            return self._server.arm(state, held, left, statement, alone)
        return statement

    # -- connections -----------------------------------------------------------------------------

    def _connect(self, *args: Any, **options: Any) -> Any:
        plain: Callable[..., Any] = self._plain.connect
        return dialled(self.dialect, plain, self._connection_class, args, options)

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
        if not self._faults.is_sound(record.driver_connection):
            record.invalidate()

    # -- transactions ----------------------------------------------------------------------------

    def _undo(self, context: Any, run: Callable[..., Any], *args: Any) -> None:
        """Roll back by a statement, to a savepoint mostly: never refused, and within the grace."""
        held = context.root_connection.connection
        state = state_of(held)
        state.began = Statement("ROLLBACK").begun
        state.undo()
        if self._progress is not None:
            if state.cut:
                self._progress.settle(state, held)
            if state.lost:
                return  # all of it is rolled back
        if ambient() is None:
            run(*args)
        elif self._is_async:
            rollback_within(self._grace, lambda _: run(*args), self._driver, held)
        elif state.by_driver:
            in_thread_within(self._grace, lambda: run(*args))
        else:
            run(*args)

    def _do_rollback_to_savepoint(self, connection: Any, name: str) -> None:
        def undo(_: Any) -> None:
            self._plain.do_rollback_to_savepoint(self.dialect, connection, name)

        if self._is_async and ambient() is not None:  # aiosqlite awaits before the statement too
            rollback_within(self._grace, undo, self._driver, connection.connection)
        else:
            undo(None)

    def _do_release_savepoint(self, connection: Any, name: str) -> None:
        try:
            self._plain.do_release_savepoint(self.dialect, connection, name)
        except BaseException as error:
            # Its caller hears an error, so nothing of it may stay.
            cut = self._progress is not None and isinstance(error, asyncio.CancelledError)
            if cut or isinstance(error, InsufficientBudget):
                self._unrelease(connection, name)
            raise

    def _unrelease(self, connection: Any, name: str) -> None:
        try:
            self.dialect.do_rollback_to_savepoint(connection, name)
        except exc.DBAPIError:
            if self._progress is None:
                raise
            state_of(connection.connection).lost = True  # it was released all the same

    def _do_commit(self, held: Any) -> None:
        state = state_of(held)
        bounds = Statement("COMMIT")
        bounds.admit()
        if self._progress is not None:
            if state.cut:
                self._progress.settle(state, held)
            self._progress.refuse(state)
        state.began = bounds.begun
        state.committing = True
        if state.by_driver:
            commit_by_driver(self._commit, self._driver, held)
        elif self._is_async:
            commit_within(self._commit_grace, self._commit, self._driver, held)
        else:
            self._commit(held)
        state.committing = False
        state.end()

    def _commit(self, held: Any) -> None:
        self._plain.do_commit(self.dialect, held)

    def _do_rollback(self, held: Any) -> None:
        state = state_of(held)
        state.end()
        state.limit, state.here = NEVER, None
        here = ambient()
        if here is not None:
            state.began = here.driver.now()
        if self._is_async and not state.by_driver and here is not None:
            rollback_within(self._grace, self._rollback, self._driver, held)
        else:
            self._rollback(held)
        state.cut = state.lost = False

    def _rollback(self, held: Any) -> None:
        self._plain.do_rollback(self.dialect, held)
