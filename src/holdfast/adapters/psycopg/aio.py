"""The connection of asyncio.

Its scope ends a statement by cancelling the task. psycopg then asks the server to cancel, and waits
up to five seconds for each of two answers; here both together get `GRACE`, and then the connection
is closed. The cancellation always comes out, but for one case: a commit that was sent and whose
answer is not there raises `OutcomeUnknown`.

Traps. A rollback runs after a cancellation, in a task that is being cancelled, and nothing would
end it: it has a time-out of its own; and whatever becomes of it, a cancellation comes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
from psycopg import Xid, errors
from psycopg.rows import Row
from psycopg.waiting import wait_async

from holdfast.adapters.psycopg.bounds import Bounds, WaitTimeout, with_patience
from holdfast.adapters.psycopg.errors import Dial, Statement, elsewhere, unknown
from holdfast.adapters.psycopg.flight import bringing
from holdfast.adapters.psycopg.transactions import AsyncTransaction
from holdfast.domain.errors import InsufficientBudget, OutcomeUnknown, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.ambient import shield
from holdfast.runtime.bounded import cut_by_scope
from holdfast.runtime.shield import let_come

if TYPE_CHECKING:
    from psycopg.abc import PQGen

__all__ = ["AsyncConnection"]

T = TypeVar("T")

_INTERVAL: Final = 0.1
_ASK_AGAIN: Final[Duration] = 0.03
_TIMER_IS_LATE: Final[Duration] = 0.2
_INTERRUPTED: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)


class AsyncConnection(Bounds[Row], psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that keeps to the ambient deadline.

        connection = await AsyncConnection.connect("dbname=shop")
        async with holdfast.timeout(2.0):
            await connection.execute("SELECT ...")   # ends by then, here and at the server

    Goes wherever psycopg takes a class: `connection_class` of a pool, `async_creator` of
    SQLAlchemy.

    Raises, besides what psycopg does:
        InsufficientBudget: nothing is left, nothing was sent. Also a
            `psycopg.errors.QueryCanceled`.
        DeadlineExceeded: the server ended the statement by the deadline. Also a `QueryCanceled`.
        OutcomeUnknown: a commit was sent and its answer did not come. Also a
            `psycopg.OperationalError`.
    """

    # -- connecting ------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """See `psycopg.AsyncConnection.connect`.

        Raises:
            InsufficientBudget: nothing is left. Also a `psycopg.errors.ConnectionTimeout`.
        """
        bound = Dial("connect to PostgreSQL")
        bound.admit(cls.refuse_below)
        if not elsewhere(bound):
            return await super().connect(conninfo, **kwargs)
        within = asyncio.timeout(max(0.0, bound.left))
        try:
            async with within:
                return await super().connect(conninfo, **kwargs)
        except TimeoutError as exc:
            if not within.expired():
                raise
            raise bound.over("connecting") from exc

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
        return with_patience(await super()._get_connection_params(conninfo, **kwargs))

    @property
    def cursor_factory(self) -> Any:
        """The class of its cursors: what it was set to, with the limit brought along."""
        return self._cursors

    @cursor_factory.setter
    def cursor_factory(self, kind: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._cursors = bringing(kind)

    # -- waiting ---------------------------------------------------------------------------------

    async def wait(
        self, gen: PQGen[T], interval: float = _INTERVAL, timeout: float | None = None
    ) -> T:
        """See `psycopg.AsyncConnection.wait`: all that is said to the server goes through here."""
        bound = self._bound = Statement(self._label)
        self.note_level()
        ours = False
        winding_up = self._winding_up and self.at_work()
        if winding_up:
            timeout = self.grace
        elif bound.here is not None and elsewhere(bound):
            left = max(0.0, bound.left)
            ours = timeout is None or left < timeout
            timeout = left if ours else timeout
        try:
            result = await wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except _INTERRUPTED as exc:
            if self._unsure:
                await self._late(gen, exc)
                self.leave(gen, exc)
                raise
            bound.interrupted()
            await self._cut(gen, exc)
            raise
        except errors.QueryCanceled as exc:
            self.leave(gen, exc)
            raise await self._in_time(exc) from exc.__cause__
        except WaitTimeout as exc:
            if winding_up:
                self.abandon(gen)
                raise self.unanswered("rest of a cut statement") from None
            if not ours:
                raise
            raise await self._too_late(gen, exc) from None
        if self._unsure:
            self.settled_with_pipeline()
        return result

    async def _too_late(self, gen: PQGen[Any], timed_out: Exception) -> Exception:
        """The error of a statement that is ended in a task that its scope does not cancel."""
        if self._unsure:
            await self._late(gen, timed_out)
            self.leave(gen, timed_out)
        else:
            await self._cut(gen, timed_out)
        how = "the connection is closed" if self.lost() else "the server has ended it"
        return self._bound.over(how)

    async def _late(self, gen: PQGen[Any], cut: BaseException) -> None:
        """Wait for the answer to a commit, sent in a pipeline or as text, that is cut.

        Raises:
            OutcomeUnknown: it does not come in time, or somebody else than a scope has cut it.
        """
        ours = not isinstance(cut, _INTERRUPTED) or (
            isinstance(cut, asyncio.CancelledError) and cut_by_scope(cut) is not None
        )
        grace = self.commit_grace
        answered = False
        if ours:
            late = wait_async(gen, self.pgconn.socket, interval=_INTERVAL, timeout=grace)
            try:
                await self._shielded(late, grace, "commit")
                self.settled_with_pipeline()
                answered = not self._unsure
            except (WaitTimeout, ScopeEnded, *_INTERRUPTED):
                answered = False
            except errors.Error:
                answered = not self.lost()  # it is not done, and that is known
        if not answered:
            self.abandon(gen)
            if ours:
                await let_come()
            raise unknown(self._bound, "COMMIT was sent, and cut") from cut

    async def _in_time(self, error: errors.QueryCanceled) -> Exception:
        """What the user sees for it: the cancellation that is due now, where there is one.

        The server's time-out may be a little faster than the timer of the scope, whose cancellation
        must not come in the midst of the user's clean-up.
        """
        ours = self.explained(error)
        if ours is not error:
            await asyncio.sleep(max(0.0, self._bound.left) + _TIMER_IS_LATE)
        return ours

    async def _cut(self, gen: PQGen[Any], error: BaseException) -> None:
        """End the statement at the server, or the connection."""
        try:
            if self.at_work():
                ended = self._ended(gen, self._bound.now() + self.grace)
                await self._shielded(ended, self.grace, "cancel request")
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

    async def _ended(self, gen: PQGen[Any], until: Instant) -> None:
        """Ask until it has ended: a request that overtakes the statement comes to nothing."""
        pause = _ASK_AGAIN
        while (left := until - self._bound.now()) > 0:
            await super().cancel_safe(timeout=left)
            left = max(0.0, until - self._bound.now())
            try:
                await wait_async(
                    gen, self.pgconn.socket, interval=_INTERVAL, timeout=min(pause, left)
                )
            except WaitTimeout:
                pause *= 2
            else:
                return
        raise WaitTimeout

    async def _try_cancel(self, *, timeout: float = NEVER) -> None:
        await super()._try_cancel(timeout=min(timeout, self.grace))
        self._winding_up = True

    # -- the end of a transaction ----------------------------------------------------------------

    async def commit(self) -> None:
        """See `psycopg.AsyncConnection.commit`; a cancellation waits for its answer, bounded.

        Raises:
            InsufficientBudget: nothing is left; it was not sent, and all is rolled back.
            OutcomeUnknown: no answer within `COMMIT_GRACE`; the connection is closed.
        """
        async with self.lock:
            try:
                await self.settle(self._commit_gen())
            except InsufficientBudget:
                if not self._num_transactions:
                    await self.undo(self._rollback_gen())
                raise

    async def rollback(self) -> None:
        """See `psycopg.AsyncConnection.rollback`; answered within `GRACE`, or the connection is
        closed.

        Raises:
            psycopg.OperationalError: it is.
        """
        async with self.lock:
            await self.undo(self._rollback_gen())

    async def tpc_commit(self, xid: Xid | str | None = None) -> None:
        """See `psycopg.AsyncConnection.tpc_commit`, and `commit`."""
        async with self.lock:
            await self.settle(self._tpc_finish_gen("COMMIT", xid), prepared=True)

    async def tpc_rollback(self, xid: Xid | str | None = None) -> None:
        """See `psycopg.AsyncConnection.tpc_rollback`, and `rollback`."""
        async with self.lock:
            await self.undo(self._tpc_finish_gen("ROLLBACK", xid))

    async def settle(self, gen: PQGen[T], *, prepared: bool = False) -> T:
        """Run what commits; for the transactions of ours."""
        if self.idle() and self._pipeline is None and not prepared:
            return await self.wait(gen)  # there is nothing to be committed
        bound = self._bound = Statement(self._label)
        if bound.limit <= bound.begun:
            bound.admit()
        if self._pipeline is not None:
            self._unsure = True
            return await self.wait(gen)
        try:
            return await self._shielded(self._answered(gen, bound), self.commit_grace, "commit")
        except OutcomeUnknown:
            await let_come()
            raise

    async def _answered(self, gen: PQGen[T], bound: Statement) -> T:
        usable = self.usable()
        try:
            return await wait_async(gen, self.pgconn.socket, interval=_INTERVAL)
        except _INTERRUPTED as exc:
            if not self.at_work():
                raise
            self.abandon(gen)
            raise unknown(bound, "COMMIT was sent, and cut") from exc
        except errors.QueryCanceled as exc:
            raise await self._in_time(exc) from exc.__cause__
        except errors.OperationalError as exc:
            if usable and self.lost():
                raise unknown(bound, "COMMIT was sent, and the connection is lost") from exc
            raise

    async def undo(self, gen: PQGen[T]) -> T:
        """Run what rolls back; for the transactions of ours."""
        bound = self._bound = Statement(self._label)
        patience = self.grace if self._hurried else _patience(bound.left, self.grace)
        try:
            return await self._undone_within(gen, patience)
        except _INTERRUPTED:
            await self._undone_after_all(gen)
            raise  # whatever became of the rollback
        except (WaitTimeout, ScopeEnded):
            self.abandon(gen)
            raise self.unanswered("rollback") from None

    async def _undone_after_all(self, gen: PQGen[Any]) -> None:
        """A rollback was cut: it is answered within the grace, or the connection is closed."""
        try:
            await self._undone_within(gen, self.grace)
        except Exception:
            self.abandon(gen)
        finally:
            if self.at_work():
                self.abandon(gen)

    async def _undone_within(self, gen: PQGen[T], seconds: float | None) -> T:
        undone = wait_async(gen, self.pgconn.socket, interval=_INTERVAL, timeout=seconds)
        return await self._shielded(undone, self.grace, "rollback")

    async def _shielded(self, work: Coroutine[Any, Any, T], grace: Duration, name: str) -> T:
        """What a cancellation of a scope must not cut at once; a native one does."""
        if self._bound.here is None:
            return await work
        answer: list[T] = []
        try:
            async with shield(grace, name=name):
                answer.append(await work)
        except ScopeEnded:
            if not answer:
                raise  # else it was done in the last moment, and that counts
        return answer[0]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_val, exc_tb)
        except BaseException:
            if not getattr(self, "_pool", None):
                self._closed = True
                self.abandon()
            raise

    @asynccontextmanager
    async def pipeline(self) -> AsyncGenerator[psycopg.AsyncPipeline]:
        """See `psycopg.AsyncConnection.pipeline`; never left behind by a cancellation."""
        with self.block_of_pipeline():
            async with super().pipeline() as made:
                yield made

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[AsyncTransaction]:
        """See `psycopg.AsyncConnection.transaction`; its commit is one as by `commit`."""
        made = AsyncTransaction(self, savepoint_name, force_rollback)
        if self._pipeline is not None:
            async with self.pipeline(), made, self.pipeline():
                yield made
        else:
            async with made:
                yield made


def _patience(left: Duration, grace: Duration) -> float | None:
    """Seconds that a rollback waits for its answer; None for as long as it takes."""
    task = asyncio.current_task()
    if left < grace or (task is not None and task.cancelling()):
        return grace
    return None if left == NEVER else left
