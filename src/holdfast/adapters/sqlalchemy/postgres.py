"""PostgreSQL with a plain driver: the server is told what is left by `statement_timeout`.

`set_config(..., true)` and `SET LOCAL` last until the end of the transaction, so nothing reaches
the next client behind a pooler. For psycopg2 it goes in front of the statement, in the same
message: the server takes the time of each command in a message by itself. The other two drivers
cannot do that in one message, and it costs a round trip: in the first statement of a transaction,
and again only where what was said would be too early, or too late by more than a tenth.

Left alone: connections in AUTOCOMMIT, where it could only be said for the whole session; and
drivers that see to it by themselves. A bound that the server has of its own is never loosened, nor
one that the application sets: after a statement that may have done so the server is asked anew.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast.adapters.sqlalchemy.state import State
from holdfast.adapters.sqlalchemy.words import kind_of
from holdfast.domain.instant import NEVER, Duration

__all__ = ["ServerTimeout"]

_PARAMETER: Final = {"asyncpg": "$1", "psycopg": "%s"}
_OWN: Final = (
    "SELECT (extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::bigint"
)
_LATE: Final = 1.1
_SLACK: Final = 10
"""Milliseconds: with the tenth, how much too late the server's bound may be."""


class ServerTimeout:
    """See the module.

    Args:
        driver: name of the driver, as SQLAlchemy has it.
    """

    def __init__(self, driver: str) -> None:
        self._in_front = driver == "psycopg2"
        self._set = f"SELECT set_config('statement_timeout', {_PARAMETER.get(driver, '%s')}, true)"

    def arm(self, state: State, held: Any, left: Duration, statement: str, alone: bool) -> str:
        """Tell the server, where that is needed; the statement that is to be executed.

        Args:
            state: of the connection.
            held: the connection.
            left: seconds; infinite without a limit.
            statement: that is to be executed.
            alone: whether a command in front of it in the same message would break it.
        """
        text = self._armed(state, held, left, statement, alone)
        if kind_of(statement).sets:
            state.own = state.told = None
            state.by_hand = True
        return text

    def _armed(self, state: State, held: Any, left: Duration, statement: str, alone: bool) -> str:
        if left == NEVER and state.told is None:
            return statement
        if state.own is None:
            state.own = self._asked(held)
        own = wanted = state.own
        if left != NEVER:
            ms = max(1, int(left * 1000))  # never up; and 0 would be no limit
            wanted = min(ms, own) if own else ms
        if _fits(own if state.told is None else state.told, wanted):
            return statement
        state.told = wanted
        if self._in_front and not alone:
            return f"SET LOCAL statement_timeout = {wanted}; {statement}"
        self._tell(held, wanted)
        return statement

    def _tell(self, held: Any, ms: int) -> None:
        other = held.cursor()
        try:
            if self._in_front:
                other.execute(f"SET LOCAL statement_timeout = {ms}")
            else:
                other.execute(self._set, (str(ms),))
        finally:
            other.close()

    def _asked(self, held: Any) -> int:
        other = held.cursor()
        try:
            other.execute(_OWN)
            return int(other.fetchone()[0])
        finally:
            other.close()


def _fits(told: int, wanted: int) -> bool:
    """Whether the server, with this bound, ends a statement neither early nor much too late."""
    return told == wanted or (wanted > 0 and wanted <= told <= wanted * _LATE + _SLACK)
