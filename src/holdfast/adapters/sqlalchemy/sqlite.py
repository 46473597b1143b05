"""SQLite: a statement that runs is interrupted at its deadline, or when its scope is cancelled.

SQLite calls back every some thousand steps of its machine, in the thread that runs the statement;
there we look at the clock. So nothing has to be armed, no thread or timer is needed, and also a
thread that nobody can cancel ends in time. While it waits for a lock it does not call back: that
wait is bounded by `busy_timeout`, which is cut to what is left.

The traps. SQLite that is interrupted while it writes rolls back all of the transaction, not only
the statement: who went on would commit the rest alone, so nothing more is done in it. An
application's own progress handler is replaced. A function of Python that a statement
calls is not interrupted while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import exc
from sqlalchemy.util import await_only

from holdfast.adapters.sqlalchemy.state import State
from holdfast.domain.instant import NEVER, Duration

__all__ = ["ProgressBound", "inside"]

_STEPS: Final = 1000
"""Steps between two looks: tens of microseconds of work."""
_LATE: Final = 1.1
_SLACK: Final[Duration] = 0.02


class ProgressBound:
    """See the module.

    Args:
        is_async: whether the driver is aiosqlite.
    """

    def __init__(self, is_async: bool) -> None:
        self._is_async = is_async

    def arm(self, state: State, held: Any, left: Duration) -> None:
        """Bound what is executed next, by what `state` has.

        Args:
            state: of the connection.
            held: the connection.
            left: seconds; infinite without a limit.
        """
        if state.busy is None:
            if left == NEVER and state.here is None:
                return
            self._begin(state, held)
        wanted = min(state.patience, max(0.0, left))
        busy = state.busy or 0.0
        if not wanted <= busy <= wanted * _LATE + _SLACK:
            state.busy = wanted
            self._ask(held, f"PRAGMA busy_timeout = {int(wanted * 1000)}")

    def settle(self, state: State, held: Any) -> None:
        """Let a statement that was cut end, and see what it has left.

        Args:
            state: of the connection.
            held: the connection.
        """
        if state.cut and self._is_async:
            self._ask(held, "PRAGMA busy_timeout")  # the thread does one after the other
        state.cut = False
        self.note(state, held)

    def note(self, state: State, held: Any) -> None:
        """A statement was interrupted and has ended; see `settle`."""
        state.lost = state.lost or (state.inside and not inside(held))

    def refuse(self, state: State) -> None:
        """Refuse what would be done in a transaction that is no more.

        Raises:
            sqlalchemy.exc.PendingRollbackError: it is.
        """
        if state.lost:
            raise exc.PendingRollbackError(
                "a statement was interrupted, and SQLite has rolled back more than that: "
                "roll back fully, and begin anew"
            )

    def _begin(self, state: State, held: Any) -> None:
        connection = held.driver_connection
        if self._is_async:
            await_only(connection.set_progress_handler(_look(state), _STEPS))
        else:
            connection.set_progress_handler(_look(state), _STEPS)
        state.busy = state.patience = self._ask(held, "PRAGMA busy_timeout") / 1000

    def _ask(self, held: Any, pragma: str) -> int:
        cursor = held.cursor()
        try:
            cursor.execute(pragma)
            return int(cursor.fetchone()[0])
        finally:
            cursor.close()


def inside(held: Any) -> bool:
    """Whether SQLite is in a transaction."""
    driver = held.driver_connection
    return bool(driver is not None and driver.in_transaction)


def _look(state: State) -> Callable[[], bool]:
    def look() -> bool:
        here = state.here
        return (
            state.cut
            or state.limit <= state.now()
            or (here is not None and here.reached() is not None)
        )

    return look
