"""What goes before an operation on the wire, how it ends, and what becomes of its error.

What belongs here: what all operations have in common. Traps: nothing may be written while an
operation is under way (a query in the middle of a COPY ends it), nor while a cancelled one has not
ended; and a prefix without a Sync must be followed by one, whatever happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import nan
from typing import Any, Final, TypeAlias

import asyncpg
from asyncpg.protocol.protocol import Protocol

from holdfast.adapters.asyncpg.errors import Statement, outcome_unknown
from holdfast.adapters.asyncpg.messages import SYNC
from holdfast.adapters.asyncpg.statements import Kind, kind_of
from holdfast.adapters.asyncpg.telling import Telling
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import (
    InsufficientBudget,
    ScopeEnded,
)
from holdfast.domain.instant import NEVER, Instant
from holdfast.runtime.ambient import shield
from holdfast.runtime.shield import let_come

__all__ = ["CLOSE", "COPY", "Bounding"]

Operation: TypeAlias = Callable[[Any], Awaitable[Any]]

COPY: Final = Kind(name="COPY")
CLOSE: Final = Kind(name="CLOSE", brief=True)
_ROLLBACK: Final = kind_of("ROLLBACK")
_LATE: Final = (asyncpg.QueryCanceledError, TimeoutError)
_SILENT: Final = "the server did not answer"
_GONE: Final = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
"""How asyncpg says that a connection has gone. A time-out is an `OSError`."""


class Bounding(Telling):
    """See the module.

    Attributes:
        busy: an operation is under way.
        unsettled: one has failed just now, and asyncpg may not have heard of it.
    """

    busy: bool = False
    unsettled: bool = False

    # -- operations ------------------------------------------------------------------------------

    def failed(self, query: str, begun: Instant, exc: BaseException) -> BaseException:
        """What is raised for `exc` of a statement that went out as it was."""
        self._upset()
        statement = Statement(kind_of(query).name)
        statement.begun = begun or statement.begun
        if isinstance(exc, asyncio.CancelledError):
            statement.interrupted()
        elif isinstance(exc, _LATE):
            return statement.told(exc, _SILENT, ours=False)
        return exc

    def _upset(self) -> None:
        self.unsettled = True
        self.least = self.most = nan  # whatever is next takes the long way

    async def _ready(self, statement: Statement, kind: Kind, timeout: Any) -> Any:
        """What must be over before anything is written: a cancelled operation, the question.

        Returns what is left of `timeout`.
        """
        if self.unsettled:
            self.unsettled = False
            self.knows(self.known, in_block=self.in_block)
            await asyncio.sleep(0)
        if self._is_cancelling():
            try:
                async with asyncio.timeout(max(0.001, min(self.grace, statement.left))):
                    await self._wait_for_cancellation()
            except TimeoutError as exc:
                self._abandon()
                raise asyncpg.ConnectionDoesNotExistError(
                    "the statement before was cancelled and did not end: the connection is closed"
                ) from exc
        ends = kind.commits or kind.rolls_back or kind.resets
        asks = self.base is None or (self.unsure and not ends)
        if not asks or not self.is_connected():
            return timeout
        begun = statement.now()
        bound = self._get_timeout(None) if timeout is None else timeout
        bound = bound if isinstance(bound, int | float) else None  # asyncpg has a mark for "never"
        async with asyncio.timeout(bound):
            await self.learn()
        return timeout if bound is None else max(0.001, bound - (statement.now() - begun))

    async def _held(
        self, kind: Kind, operation: Operation, timeout: Any, *, follows: bool, syncs: bool = True
    ) -> Any:
        """Run `operation`, which takes a time-out in seconds, within its bounds.

        Args:
            kind: what it is.
            operation: of asyncpg.
            timeout: that the user gave.
            follows: it is of the extended protocol.
            syncs: it ends with a Sync.
        """
        if self.busy:  # asyncpg says that it is, and writes nothing
            return await operation(timeout)
        statement = Statement(kind.name)
        self.busy, ours, failed = True, False, True
        try:
            if statement.limit != NEVER:
                if not (kind.commits or kind.rolls_back):
                    statement.admit(self.refuse_below)
                timeout, ours = statement.bound(timeout)
            self.leaves()
            if self.base is None or self.unsure or self.unsettled or self._is_cancelling():
                timeout = await self._ready(statement, kind, timeout)
            self.tell(statement, kind, follows=follows)
            result = await operation(timeout)
            failed = False
        except asyncio.CancelledError:
            self._upset()
            self.ahead = 0
            statement.interrupted()
            raise
        except Exception as exc:
            self._upset()
            self._close_prefix(exc)
            error = statement.told(exc, _SILENT, ours=ours) if isinstance(exc, _LATE) else exc
            if error is exc:
                raise
            raise error from exc
        finally:
            self.busy = False
            if syncs:
                self.ahead = 0
            if kind.special and syncs:
                self._afterwards(kind, failed)
        return result

    def _afterwards(self, kind: Kind, failed: bool) -> None:
        """What is known of the time-out after a statement that may have changed it."""
        if kind.sets or (kind.resets and failed):
            self.touched()
        elif kind.resets:
            self.set_back(kind.keeps)
        elif kind.ends and self.in_block:
            self.leaves()
            if self.in_block:  # to a savepoint; or the next one has begun
                self.unsure = self.outer_base is not None
                self.knows(None, in_block=True)

    def _close_prefix(self, exc: Exception) -> None:
        """Where an operation has failed on our side the prefix has no Sync: it needs one."""
        ours = getattr(exc, "severity", None) is None
        if self.ahead and ours and self.is_connected() and not self._is_cancelling():
            self.replies.queried()
            self.wire.write(SYNC)
        self.ahead = 0

    async def _beginning(
        self, kind: Kind, operation: Operation, timeout: Any, *, follows: bool
    ) -> Any:
        """Run what begins a transaction. Where it is cut there is none afterwards."""
        if self.busy or self.is_in_transaction():
            return await self._held(kind, operation, timeout, follows=follows)
        try:
            return await self._held(kind, operation, timeout, follows=follows)
        except BaseException:
            # The server may have begun it, and whoever writes next would write into it.
            if self.is_connected() and (self._is_cancelling() or self.is_in_transaction()):
                await self._undo(_ROLLBACK, self._back, None, "")
            raise

    async def _back(self, timeout: Any) -> str:
        if not self.is_in_transaction():
            return ""
        done: str = await Protocol.query(self, "ROLLBACK", timeout)
        return done

    async def _ending(
        self, kind: Kind, operation: Operation, timeout: Any, gone: Any, *, follows: bool
    ) -> Any:
        """Run what ends a transaction, or goes back to a savepoint."""
        if kind.rolls_back:
            return await self._undo(kind, operation, timeout, gone, follows=follows)
        statement = Statement(kind.name)
        try:
            statement.admit()
        except InsufficientBudget:
            await self._undo(_ROLLBACK, self._back, None, "")
            raise
        result: Any = None
        answered = False
        try:
            async with shield(self.commit_grace, name="commit"):
                result = await self._held(kind, operation, timeout, follows=follows)
                answered = True
        except (asyncio.CancelledError, ScopeEnded, *_GONE) as exc:
            if answered:
                return result
            if isinstance(exc, asyncpg.InterfaceError):  # it was not sent
                raise
            self._abandon()
            why = CauseKind.DEADLINE if statement.left <= 0 else CauseKind.CALLER
            what = "the commit was sent, and its answer did not come"
            await let_come()
            raise outcome_unknown(statement.cause(what, kind=why)) from exc
        return result

    async def _undo(
        self, kind: Kind, operation: Operation, timeout: Any, gone: Any, *, follows: bool = False
    ) -> Any:
        # Where it cannot be told to the server the end of the connection tells it. So time never
        # makes it fail, and the error that led here is the one that is seen.
        bound = min(self.grace, timeout) if isinstance(timeout, int | float) else self.grace
        result: Any = gone
        answered = False
        try:
            async with shield(self.grace, name="rollback"):
                result = await self._held(kind, operation, bound, follows=follows)
                answered = True
        except asyncio.CancelledError:
            self._abandon()
            raise
        except (ScopeEnded, asyncpg.QueryCanceledError, *_GONE) as exc:
            if isinstance(exc, asyncpg.InterfaceError) and self.is_connected():
                raise
            if not answered:
                self._abandon()
        return result

    def _abandon(self) -> None:
        abandon = self.abandon()
        if abandon is not None:
            abandon()
