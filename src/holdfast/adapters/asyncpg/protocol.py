"""Every operation of asyncpg's protocol, bounded.

`HeldProtocol` is asyncpg's protocol with the same layout, so that one of asyncpg's becomes one of
ours by its class. What it uses of asyncpg's insides is pinned by tests that name it.

What belongs here: the operations, one by one. What they have in common is in `bounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast
from weakref import WeakMethod

from asyncpg.protocol.protocol import Protocol

from holdfast.adapters.asyncpg.bounding import CLOSE, COPY, Bounding
from holdfast.adapters.asyncpg.replies import Replies
from holdfast.adapters.asyncpg.statements import MAYBE, ORDINARY, Kind, kind_of, sets_by
from holdfast.domain.instant import NEVER
from holdfast.runtime.scope import AMBIENT, running_task

__all__ = ["HeldProtocol", "adopt"]

_bind_execute: Final[Any] = Protocol.bind_execute
_TEXT: Final = "ROLLBACK"
_ROWS: Final[tuple[list[Any], bytes, bool]] = ([], b"ROLLBACK", True)


def adopt(protocol: Any, transport: Any, abandon: WeakMethod[Callable[[], None]]) -> HeldProtocol:
    """Make asyncpg's `protocol`, which reads from `transport`, one of ours.

    Args:
        protocol: of asyncpg.
        transport: that it has.
        abandon: closes the connection hard; weak, as the connection holds the protocol.
    """
    protocol.__class__ = HeldProtocol
    held = cast("HeldProtocol", protocol)
    held.replies = Replies()
    held.awaited = held.replies.awaited
    held.told = set()
    held.wire = transport
    held.abandon = abandon
    held.busy = held.unsettled = False  # what is looked at each time is found sooner here
    transport.set_protocol(held)  # uvloop keeps the method, not the object
    return held


class HeldProtocol(Bounding):
    """See the module. Each takes what asyncpg's takes, and raises what it raises, besides:

    Raises:
        InsufficientBudget: too little is left; nothing was sent.
        DeadlineExceeded: the limit is spent; also an `asyncpg.QueryCanceledError`.
        OutcomeUnknown: of a commit.
    """

    async def query(self, query: Any, timeout: Any) -> str:
        kind = kind_of(query)
        if kind.commits or kind.rolls_back:
            told: str = await self._ending(
                kind, lambda time: Protocol.query(self, query, time), timeout, _TEXT, follows=False
            )
            return told
        held = self._beginning if kind.begins else self._held
        done: str = await held(
            kind,
            lambda time: Protocol.query(self, self._joined(query), time),
            timeout,
            follows=False,
        )
        return done

    def _joined(self, query: str) -> str:
        # A text of several statements is a transaction by itself.
        ahead = self.ahead
        return f"SET LOCAL statement_timeout = {ahead}; {query}" if ahead else query

    async def prepare(self, stmt_name: Any, query: Any, timeout: Any = None, **more: Any) -> Any:
        return await self._held(
            kind_of(query),
            lambda time: Protocol.prepare(self, stmt_name, query, time, **more),
            timeout,
            follows=True,
            syncs=False,
        )

    async def bind_execute(
        self,
        state: Any,
        args: Any,
        portal_name: str,
        limit: int,
        return_extra: bool,
        timeout: Any,
    ) -> Any:
        # Nearly all statements come through here, and nearly all of them have nothing to tell: the
        # server knows their time, and nothing is amiss. So this is written out, without calls.
        query = state.query
        here = AMBIENT.get()
        if here is None:
            begun, left = 0.0, NEVER
        else:
            begun = here.driver.now()
            left = here.limit - begun
        if (
            self.busy
            or not self.least <= left <= self.most
            or query not in ORDINARY
            or (here is not None and (here.outcome is not None or here.task is not running_task()))
        ):
            kind = kind_of(query)
            if kind.sets == MAYBE:
                kind = sets_by(kind, args)
            rest = (state, args, portal_name, limit, return_extra)
            return await self._bind_execute(kind, rest, timeout)
        self.busy = True
        try:
            return await _bind_execute(self, state, args, portal_name, limit, return_extra, timeout)
        except BaseException as exc:
            error = self.failed(query, begun, exc)
            if error is exc:
                raise
            raise error from exc
        finally:
            self.busy = False

    async def _bind_execute(self, kind: Kind, rest: tuple[Any, ...], timeout: Any) -> Any:
        def run(time: Any) -> Any:
            return _bind_execute(self, *rest, time)

        if kind.commits or kind.rolls_back:
            gone: Any = _ROWS if rest[-1] else []
            return await self._ending(kind, run, timeout, gone, follows=True)
        if kind.begins:
            return await self._beginning(kind, run, timeout, follows=True)
        return await self._held(kind, run, timeout, follows=True)

    async def bind_execute_many(
        self, state: Any, args: Any, portal_name: str, timeout: Any, return_rows: bool
    ) -> Any:
        return await self._held(
            kind_of(state.query),
            lambda time: Protocol.bind_execute_many(
                self, state, args, portal_name, time, return_rows
            ),
            timeout,
            follows=True,
        )

    async def bind(self, state: Any, args: Any, portal_name: str, timeout: Any) -> Any:
        return await self._held(
            kind_of(state.query),
            lambda time: Protocol.bind(self, state, args, portal_name, time),
            timeout,
            follows=True,
        )

    async def execute(
        self, state: Any, portal_name: str, limit: int, return_extra: bool, timeout: Any
    ) -> Any:
        return await self._held(
            kind_of(state.query),
            lambda time: Protocol.execute(self, state, portal_name, limit, return_extra, time),
            timeout,
            follows=True,
        )

    async def close_portal(self, portal_name: str, timeout: Any) -> Any:
        return await self._held(
            CLOSE,
            lambda time: Protocol.close_portal(self, portal_name, time),
            timeout,
            follows=True,
        )

    async def close_statement(self, state: Any, timeout: Any) -> Any:
        return await self._held(
            CLOSE,
            lambda time: Protocol.close_statement(self, state, time),
            timeout,
            follows=True,
        )

    async def copy_out(self, copy_stmt: Any, sink: Any, timeout: Any) -> str:
        done: str = await self._held(
            COPY,
            lambda time: Protocol.copy_out(self, copy_stmt, sink, time),
            timeout,
            follows=False,
        )
        return done

    async def copy_in(
        self,
        copy_stmt: Any,
        reader: Any,
        data: Any,
        records: Any,
        record_stmt: Any,
        timeout: Any,
    ) -> str:
        done: str = await self._held(
            COPY,
            lambda time: Protocol.copy_in(
                self, copy_stmt, reader, data, records, record_stmt, time
            ),
            timeout,
            follows=False,
        )
        return done
