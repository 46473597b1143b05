"""The blocks of transactions of both kinds of connection.

What belongs here: how a block begins and ends. How a commit and a rollback are waited for is a
matter of the connections, `settle` and `undo`.

Traps. A block must not replace the error that is on its way by one about the rollback. A commit
that is refused, because nothing is left, is rolled back.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import errors

from holdfast.adapters.psycopg.errors import Statement
from holdfast.domain.errors import InsufficientBudget

if TYPE_CHECKING:
    from psycopg.abc import PQGen

__all__ = ["AsyncTransaction", "Transaction"]


class AsyncTransaction(psycopg.AsyncTransaction):
    """A transaction of an `AsyncConnection` of ours."""

    _conn: Any  # of `aio`

    def _enter_gen(self) -> PQGen[None]:
        yield from self._conn.ready_to_begin()
        yield from super()._enter_gen()

    async def __aenter__(self) -> Self:
        Statement("BEGIN").admit(self._conn.refuse_below)
        return await super().__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        conn = self._conn
        if not conn.usable():
            self.status = self.Status.FAILED
            return False
        async with conn.lock:
            if exc_val is not None or self.force_rollback:
                return await self._undone(exc_type, exc_val, exc_tb)
            if not self._outer_transaction:
                done: bool = await conn.wait(self._exit_gen(None, None, None))
                return done
            try:
                done = await conn.settle(self._exit_gen(None, None, None))
                return done
            except InsufficientBudget as exc:
                await self._undone(type(exc), exc, None)
                raise

    async def _undone(self, *failed: Any) -> bool:
        try:
            done: bool = await self._conn.undo(self._exit_gen(*failed))
            return done
        except errors.OperationalError:
            if not self._conn.lost():
                raise
            return False  # it is rolled back by the server; what was wrong before counts


class Transaction(psycopg.Transaction):
    """A transaction of a `Connection` of ours."""

    _conn: Any  # of `blocking`

    def _enter_gen(self) -> PQGen[None]:
        yield from self._conn.ready_to_begin()
        yield from super()._enter_gen()

    def __enter__(self) -> Self:
        Statement("BEGIN").admit(self._conn.refuse_below)
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        conn = self._conn
        if not conn.usable():
            self.status = self.Status.FAILED
            return False
        with conn.lock:
            if exc_val is not None or self.force_rollback:
                return self._undone(exc_type, exc_val, exc_tb)
            if not self._outer_transaction:
                done: bool = conn.wait(self._exit_gen(None, None, None))
                return done
            try:
                done = conn.settle(self._exit_gen(None, None, None))
                return done
            except InsufficientBudget as exc:
                self._undone(type(exc), exc, None)
                raise

    def _undone(self, *failed: Any) -> bool:
        try:
            done: bool = self._conn.undo(self._exit_gen(*failed))
            return done
        except errors.OperationalError:
            if not self._conn.lost():
                raise
            return False  # it is rolled back by the server; what was wrong before counts
