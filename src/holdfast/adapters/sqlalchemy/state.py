"""What is known of one connection of a pool between its statements.

Kept in the `info` of the pool's record, which SQLAlchemy clears with the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.clock import monotonic
from holdfast.runtime.hosted import HostedNode

__all__ = ["UNSURE", "State", "state_of"]

UNSURE: Final = -1
_KEY: Final = "holdfast"


class State:
    """See the module. One user at a time, as of the connection.

    Attributes:
        began: instant at which the last statement began that had a deadline.
        told: milliseconds that the server was told in this transaction; none before, and
            `UNSURE` when a part of it was rolled back since.
        by_hand: the application may have set the time-out by itself in this transaction.
        own: milliseconds of the server's own bound, 0 for none; none while it is not known.
        limit: instant at which what runs now is interrupted (SQLite).
        here: the scope that it runs in (SQLite).
        now: the clock of that scope.
        cut: it is to be interrupted at once (SQLite).
        busy: seconds that a lock is waited for now (SQLite); none while that is not known.
        patience: seconds that the application wants a lock to be waited for (SQLite).
        committing: a commit is under way.
        inside: it was in a transaction when the last statement began (SQLite).
        lost: a statement was interrupted, and nobody may go on with what SQLite has left of the
            transaction.
        by_driver: the driver keeps deadlines by itself.
    """

    __slots__ = (
        "began",
        "busy",
        "by_driver",
        "by_hand",
        "committing",
        "cut",
        "here",
        "inside",
        "limit",
        "lost",
        "now",
        "own",
        "patience",
        "told",
    )

    def __init__(self, driver: Any) -> None:
        # Of a connection that is a `holdfast.ports.statements.BoundsStatements`.
        self.by_driver: bool = getattr(driver, "bounds_statements", False)
        self.began: Instant = NEVER
        self.told: int | None = None
        self.own: int | None = None
        self.limit: Instant = NEVER
        self.here: HostedNode | None = None
        self.now: Callable[[], Instant] = monotonic
        self.cut = False
        self.busy: Duration | None = None
        self.patience: Duration = 0.0
        self.committing = False
        self.by_hand = False
        self.inside = False
        self.lost = False

    def end(self) -> None:
        """The transaction is over, and what the server was told with it."""
        self.told = None
        if self.by_hand:
            self.own, self.by_hand = None, False

    def undo(self) -> None:
        """A part of the transaction is rolled back, and perhaps what the server was told in it."""
        self.limit, self.here = NEVER, None
        if self.by_hand:
            self.own = self.told = None
        elif self.told is not None:
            self.told = UNSURE


def state_of(held: Any) -> State:
    """The state of a connection, made when it is asked for first.

    Args:
        held: a connection as the pool hands it out.
    """
    try:
        info: dict[Any, Any] = held.info
    except NotImplementedError:
        # Of the very first connection, which the engine looks its server up with.
        info = held._connection_record.info
    state = info.get(_KEY)
    if state is None:
        state = info[_KEY] = State(held.driver_connection)
    return state
