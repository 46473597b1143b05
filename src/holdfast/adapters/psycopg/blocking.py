"""The connection of threads.

Nothing cancels a thread, but psycopg waits in small steps: so a wait ends exactly at the deadline,
and within `POLL` seconds after the scope around it was cancelled by whoever runs the loop. The
statement is then cancelled at the server, in `GRACE`, or the connection is closed.

Traps. A commit may be answered up to `COMMIT_GRACE` after the deadline; a rollback that begins
after it gets `GRACE`. Names are resolved before the connection is dialled, by the C library, and
that nobody can end.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
from psycopg import Xid, errors
from psycopg.rows import Row
from psycopg.waiting import Ready, Wait, wait

from holdfast.adapters.psycopg.bounds import Bounds, WaitTimeout, with_patience
from holdfast.adapters.psycopg.errors import Dial, Statement, ended, unknown
from holdfast.adapters.psycopg.flight import bringing
from holdfast.adapters.psycopg.transactions import Transaction
from holdfast.domain.cause import Cause
from holdfast.domain.errors import InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.scope import ambient

if TYPE_CHECKING:
    from psycopg.abc import PQGen, PQGenConn

__all__ = ["POLL", "Connection"]

T = TypeVar("T")

POLL: Final[Duration] = 0.1
"""Seconds after which a thread that waits looks whether the scope around it was cancelled."""

_INTERVAL: Final = 0.1
_ASK_AGAIN: Final[Duration] = 0.03
_INTERRUPTED: Final = (KeyboardInterrupt, SystemExit)


class Connection(Bounds[Row], psycopg.Connection[Row]):
    """A `psycopg.Connection` that keeps to the ambient deadline.

        with Connection.connect("dbname=shop") as connection, holdfast.timeout(2.0):
            connection.execute("SELECT ...")   # ends by then, here and at the server

    Goes wherever psycopg takes a class: `connection_class` of a pool, `creator` of SQLAlchemy.

    Raises, besides what psycopg does:
        InsufficientBudget: nothing is left, nothing was sent. Also a
            `psycopg.errors.QueryCanceled`.
        DeadlineExceeded: the limit is spent. Also a `QueryCanceled`.
        Cancelled: the scope around was cancelled. Also a `QueryCanceled`.
        OutcomeUnknown: a commit was sent and its answer did not come. Also a
            `psycopg.OperationalError`.
    """

    # -- connecting ------------------------------------------------------------------------------

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """See `psycopg.Connection.connect`.

        Raises:
            InsufficientBudget: nothing is left. Also a `psycopg.errors.ConnectionTimeout`.
            DeadlineExceeded: the limit is spent. Also a `ConnectionTimeout`.
        """
        bound = Dial("connect to PostgreSQL")
        bound.admit(cls.refuse_below)
        try:
            return super().connect(conninfo, **kwargs)
        except errors.Error as exc:
            if bound.left > 0:
                raise
            raise bound.over("connecting") from exc

    @classmethod
    def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
        return with_patience(super()._get_connection_params(conninfo, **kwargs))

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        dialling = super()._connect_gen(conninfo)
        bound = Dial("connect to PostgreSQL")
        if bound.limit == NEVER:
            return (yield from dialling)
        try:
            number, state = next(dialling)
            while (left := bound.left) > 0:
                # Whoever drives this looks at its clock every `_INTERVAL` only.
                ready = (yield number, state) if left > _INTERVAL else _polled(number, state, left)
                number, state = dialling.send(ready)
        except StopIteration as done:
            made: Self = done.value
            return made
        dialling.close()
        raise errors.ConnectionTimeout("the deadline has passed")

    @property
    def cursor_factory(self) -> Any:
        """The class of its cursors: what it was set to, with the limit brought along."""
        return self._cursors

    @cursor_factory.setter
    def cursor_factory(self, kind: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._cursors = bringing(kind)

    # -- waiting ---------------------------------------------------------------------------------

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL, timeout: float | None = None) -> T:
        """See `psycopg.Connection.wait`: all that is said to the server goes through here.

        Raises:
            DeadlineExceeded, Cancelled, OutcomeUnknown: see the class.
        """
        bound = self._bound = Statement(self._label)
        self.note_level()
        try:
            if bound.here is None and not self._winding_up:
                result = wait(gen, self.pgconn.socket, interval=interval, timeout=timeout)
            elif self._winding_up and self.at_work():
                result = self._within_grace(gen, "rest of a cut statement")
            else:
                result = self._watched(gen, interval, timeout, bound)
        except _INTERRUPTED as exc:
            self._cut(gen, exc)
            raise
        except errors.QueryCanceled as exc:
            raise self.explained(exc) from exc.__cause__
        if self._unsure:
            self.settled_with_pipeline()
        return result

    def _watched(
        self, gen: PQGen[T], interval: float, timeout: float | None, bound: Statement
    ) -> T:
        now = bound.begun
        until = NEVER if timeout is None else now + timeout
        end = min(bound.limit, until)
        while True:
            step = POLL if end - now > POLL else max(0.0, end - now)
            try:
                return wait(gen, self.pgconn.socket, interval=interval, timeout=step)
            except WaitTimeout as exc:
                now, timed_out = bound.now(), exc
            cause = _told()
            if cause is not None or bound.limit <= now:
                break
            if now >= until:
                raise timed_out
        if self._unsure:
            return self._late(gen)
        self._cut(gen, timed_out)
        how = "the connection is closed" if self.lost() else "the server has ended it"
        raise bound.over(how) if cause is None else ended(bound, cause)

    def _late(self, gen: PQGen[T]) -> T:
        """Wait for the answer to a commit, sent in a pipeline or as text, that is late."""
        bound = self._bound
        try:
            return wait(gen, self.pgconn.socket, interval=_INTERVAL, timeout=self.commit_grace)
        except (WaitTimeout, *_INTERRUPTED) as exc:
            self.abandon(gen)
            raise unknown(bound, "COMMIT was sent, and not answered") from exc
        except errors.OperationalError as exc:
            if self.lost():
                raise unknown(bound, "COMMIT was sent, and the connection is lost") from exc
            raise

    def _cut(self, gen: PQGen[Any], error: BaseException) -> None:
        """End the statement at the server, or the connection."""
        try:
            if self.at_work():
                self._ended(gen, self._bound.now() + self.grace)
        except errors.QueryCanceled:
            pass  # as it should be
        except Exception:
            self.abandon()
        except BaseException:
            self.abandon()
            raise
        finally:
            self.leave(gen, error)
        self._winding_up = self.at_work()

    def _ended(self, gen: PQGen[Any], until: Instant) -> None:
        """Ask until it has ended: a request that overtakes the statement comes to nothing."""
        pause = _ASK_AGAIN
        while (left := until - self._bound.now()) > 0:
            super().cancel_safe(timeout=left)
            left = max(0.0, until - self._bound.now())
            try:
                wait(gen, self.pgconn.socket, interval=_INTERVAL, timeout=min(pause, left))
            except WaitTimeout:
                pause *= 2
            else:
                return
        raise WaitTimeout

    def _try_cancel(self, *, timeout: float = NEVER) -> None:
        super()._try_cancel(timeout=min(timeout, self.grace))
        self._winding_up = True

    def _within_grace(self, gen: PQGen[T], what: str) -> T:
        try:
            return wait(gen, self.pgconn.socket, interval=_INTERVAL, timeout=self.grace)
        except WaitTimeout:
            self.abandon()
            raise self.unanswered(what) from None

    # -- the end of a transaction ----------------------------------------------------------------

    def commit(self) -> None:
        """See `psycopg.Connection.commit`; may be answered up to `COMMIT_GRACE` too late.

        Raises:
            InsufficientBudget: nothing is left; it was not sent, and all is rolled back.
            OutcomeUnknown: no answer by then; the connection is closed.
        """
        with self.lock:
            try:
                self.settle(self._commit_gen())
            except InsufficientBudget:
                if not self._num_transactions:
                    self.undo(self._rollback_gen())
                raise

    def rollback(self) -> None:
        """See `psycopg.Connection.rollback`; answered within what is left, or `GRACE`, or the
        connection is closed.

        Raises:
            psycopg.OperationalError: it is.
        """
        with self.lock:
            self.undo(self._rollback_gen())

    def tpc_commit(self, xid: Xid | str | None = None) -> None:
        """See `psycopg.Connection.tpc_commit`, and `commit`."""
        with self.lock:
            self.settle(self._tpc_finish_gen("COMMIT", xid), prepared=True)

    def tpc_rollback(self, xid: Xid | str | None = None) -> None:
        """See `psycopg.Connection.tpc_rollback`, and `rollback`."""
        with self.lock:
            self.undo(self._tpc_finish_gen("ROLLBACK", xid))

    def settle(self, gen: PQGen[T], *, prepared: bool = False) -> T:
        """Run what commits; for the transactions of ours."""
        if self.idle() and self._pipeline is None and not prepared:
            return self.wait(gen)  # there is nothing to be committed
        bound = self._bound = Statement(self._label)
        if bound.limit <= bound.begun:
            bound.admit()
        if self._pipeline is not None:
            self._unsure = True
            return self.wait(gen)
        usable = self.usable()
        left = None if bound.limit == NEVER else bound.left + self.commit_grace
        try:
            return wait(gen, self.pgconn.socket, interval=_INTERVAL, timeout=left)
        except (WaitTimeout, *_INTERRUPTED) as exc:
            self.abandon()
            raise unknown(bound, "COMMIT was sent, and not answered") from exc
        except errors.QueryCanceled as exc:
            raise self.explained(exc) from exc.__cause__
        except errors.OperationalError as exc:
            if usable and self.lost():
                raise unknown(bound, "COMMIT was sent, and the connection is lost") from exc
            raise

    def undo(self, gen: PQGen[T]) -> T:
        """Run what rolls back; for the transactions of ours."""
        bound = self._bound = Statement(self._label)
        patience = None if bound.limit == NEVER else max(bound.left, self.grace)
        if self._hurried or _told() is not None:
            patience = self.grace
        try:
            return wait(gen, self.pgconn.socket, interval=_INTERVAL, timeout=patience)
        except WaitTimeout:
            self.abandon(gen)
            raise self.unanswered("rollback") from None
        except _INTERRUPTED as exc:
            self._cut(gen, exc)
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        except BaseException:
            if not getattr(self, "_pool", None):
                self._closed = True
                self.abandon()
            raise

    @contextmanager
    def pipeline(self) -> Generator[psycopg.Pipeline]:
        """See `psycopg.Connection.pipeline`; never left behind by a deadline."""
        with self.block_of_pipeline(), super().pipeline() as made:
            yield made

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Generator[Transaction]:
        """See `psycopg.Connection.transaction`; its commit is one as by `commit`."""
        made = Transaction(self, savepoint_name, force_rollback)
        if self._pipeline is not None:
            with self.pipeline(), made, self.pipeline():
                yield made
        else:
            with made:
                yield made


def _told() -> Cause | None:
    """Why the scope around this thread was cancelled, if it was."""
    scope = ambient()
    while scope is not None:
        cause = scope.reached()
        if cause is not None:
            return cause
        scope = scope.outer
    return None


def _polled(number: int, state: Wait, patience: Duration) -> Ready:
    """What a descriptor is ready for, after at most `patience` seconds."""
    poll = select.poll()
    wanted = (select.POLLIN if state & Wait.R else 0) | (select.POLLOUT if state & Wait.W else 0)
    poll.register(number, wanted)
    ready = 0
    for _, event in poll.poll(patience * 1000):
        ready |= Ready.R if event & ~select.POLLOUT else 0
        ready |= Ready.W if event & ~select.POLLIN else 0
    return Ready(ready)
