"""A connection of asyncpg that keeps deadlines, and how one is made.

It is a subclass of `asyncpg.Connection`, so it goes wherever asyncpg, or a toolkit on top of it,
takes a `connection_class`.

What belongs here: the life of a connection, and the request that ends a statement at the server.
Traps: a cancel request that comes when the server is between two statements is lost, so it is sent
again until the statement has ended; and none may be under way when the next statement begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast
from weakref import WeakMethod

import asyncpg
from asyncpg import connect_utils

from holdfast.adapters.asyncpg.cancelling import left_alone, request_cancel, retrieved
from holdfast.adapters.asyncpg.errors import Dial, Statement
from holdfast.adapters.asyncpg.protocol import HeldProtocol, adopt
from holdfast.adapters.asyncpg.transaction import HeldTransaction
from holdfast.domain.instant import Duration
from holdfast.runtime.tasks import aside

__all__ = ["HeldConnection", "connect", "connecting"]

if TYPE_CHECKING:  # at run time the class has no parameters
    _Base = asyncpg.Connection[Any]
else:
    _Base = asyncpg.Connection

_connect_utils: Any = connect_utils
_AGAIN: Final[Duration] = 0.05
"""Seconds after which a cancel request is sent again, then twice as many, and so on."""
_CONNECT: Final[Duration] = 60.0
"""Seconds that asyncpg gives a connect by default."""


class HeldConnection(_Base):
    """A connection whose statements end with the ambient deadline, at the server too.

    Attributes:
        bounds_statements: true, for toolkits that would do it otherwise.
        sets_session: whether a connection that leads to the server itself may have its session set;
            false for all to be told as if there were a pooler in between.
        grace: seconds after the end of its scope in which a statement is ended at the server and
            its transaction rolled back; then the connection is closed hard.
        commit_grace: seconds that the answer to a commit is waited for after the end of its scope.
        refuse_below: seconds; a statement with less left is refused before it is sent.
    """

    bounds_statements: ClassVar[bool] = True
    sets_session: ClassVar[bool] = True
    grace: Duration = 0.5
    commit_grace: Duration = 1.0
    refuse_below: Duration = 0.0
    _protocol: Any
    _cancellations: set[Any]
    _loop: asyncio.AbstractEventLoop
    _addr: Any
    _params: Any

    def __init__(self, protocol: Any, transport: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(protocol, transport, *args, **kwargs)
        held = adopt(protocol, transport, WeakMethod(self.terminate))
        held.alone = self.sets_session
        self.tell(held, self.grace, self.commit_grace, self.refuse_below)

    async def introduced(
        self, grace: Duration, commit_grace: Duration, refuse_below: Duration
    ) -> None:
        """Take over what it is told, and find out who is at the other end: a round trip."""
        self.tell(self._protocol, grace, commit_grace, refuse_below)
        await self._protocol.learn()

    def tell(
        self,
        held: HeldProtocol,
        grace: Duration,
        commit_grace: Duration,
        refuse_below: Duration,
    ) -> None:
        """Take over what it was told."""
        self.grace = held.grace = grace
        self.commit_grace = held.commit_grace = commit_grace
        self.refuse_below = held.refuse_below = refuse_below

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> HeldTransaction:
        """See asyncpg. Its commit is never reported as undone where that is not known.

        Raises, when it commits:
            OutcomeUnknown: the commit was sent, and its answer did not come in time.
        """
        checked: Any = self
        checked._check_open()
        return HeldTransaction(self, isolation, readonly, deferrable)

    def get_reset_query(self) -> str:
        """See asyncpg. The time-out that the next statement needs, as likely as not, stays set.

        Only where it is ours alone, and known: where it does not fit it is set anew.
        """
        query = super().get_reset_query()
        protocol = self._protocol
        if query.endswith("RESET ALL;") and protocol is not None and protocol.keeps:
            return f"{query}\nSET statement_timeout = {protocol.known};"
        return query

    async def close(self, *, timeout: Duration | None = None) -> None:
        """Close it gracefully, as far as that goes within `timeout` seconds, or the grace.

        Never fails because of time: then it is closed hard, without another word to the server.
        """
        bound = self.grace if timeout is None else min(timeout, self._left() + self.grace)
        bound = max(0.001, bound)
        wire = None if self._protocol is None else self._protocol.wire
        try:
            async with asyncio.timeout(bound):
                await super().close(timeout=bound)
        except TimeoutError:
            # asyncpg before 0.32 waits without a bound, and then does not close any more.
            self.terminate()
            if wire is not None:
                wire.abort()

    def _left(self) -> Duration:
        return max(0.0, Statement("close").left)

    # -- the end of a statement ------------------------------------------------------------------

    def _cancel_current_command(self, *waiters: Any) -> None:
        # asyncpg calls it. Its own way waits without a bound, and asks once.
        self._cancellations.add(aside(self._end_statement(*waiters), name="asyncpg cancel request"))

    async def _end_statement(self, sent: Any, ended: Any = None) -> None:
        """Ask the server to end the statement until it has.

        Args:
            sent: is told that no request is under way any more.
            ended: is told by the protocol that the statement has ended; asyncpg before 0.32 has
                none, and is content with one request.
        """
        try:
            async with asyncio.timeout(self.grace):
                pause = _AGAIN
                while True:
                    await self._request()
                    if ended is None or ended.done():
                        return
                    await asyncio.wait((ended,), timeout=pause)
                    if ended.done():
                        return
                    pause *= 2
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # It is not known what the server does with it. A time-out is an OSError.
            self.terminate()
        finally:
            self._cancellations.discard(asyncio.current_task())
            if not sent.done():
                sent.set_result(None)

    async def _request(self) -> None:
        protocol: Any = self._protocol
        if protocol is None:
            return
        key: tuple[int, int] = (protocol.backend_pid, protocol.backend_secret)
        request = (
            _connect_utils._cancel(
                loop=self._loop,
                addr=self._addr,
                params=self._params,
                backend_pid=key[0],
                backend_secret=key[1],
            )
            if protocol.is_ssl
            else request_cancel(self._loop, self._addr, *key)
        )
        with suppress(ConnectionResetError):
            await left_alone(request)


async def connecting(
    make: Callable[..., Awaitable[Any]],
    *args: Any,
    held: tuple[Duration, Duration, Duration],
    timeout: Duration = _CONNECT,
    **kwargs: Any,
) -> Any:
    """A connection made by `make` within the ambient deadline, which knows who it speaks to."""
    statement = Dial("PostgreSQL")
    statement.admit(held[2])
    bound, ours = statement.bound(timeout)
    try:
        async with asyncio.timeout(bound):
            connection = await make(*args, timeout=bound, **kwargs)
            if isinstance(connection._protocol, HeldProtocol):
                await _introduced(cast("HeldConnection", connection), held)
    except asyncio.CancelledError as exc:
        retrieved(exc)
        statement.interrupted()
        raise
    except TimeoutError as exc:
        retrieved(exc)
        error = statement.told(exc, "the server did not let us in", ours=ours)
        if error is exc:
            raise
        raise error from exc
    return connection


async def _introduced(
    connection: HeldConnection, held: tuple[Duration, Duration, Duration]
) -> None:
    try:
        await connection.introduced(*held)
    except BaseException:
        connection.terminate()
        raise


async def connect(
    dsn: str | None = None,
    *,
    grace: Duration = HeldConnection.grace,
    commit_grace: Duration = HeldConnection.commit_grace,
    refuse_below: Duration = HeldConnection.refuse_below,
    connection_class: type[HeldConnection] = HeldConnection,
    **kwargs: Any,
) -> HeldConnection:
    """`asyncpg.connect`, within the ambient deadline; the connection keeps deadlines.

    Args:
        dsn: see asyncpg, as for all that is not listed here.
        grace: see `HeldConnection`.
        commit_grace: see there.
        refuse_below: see there; holds for the connect too.
        connection_class: a subclass of `HeldConnection`.

    Raises:
        InsufficientBudget: too little is left; no connection was opened.
        DeadlineExceeded: the limit was spent before the server had let us in.
    """
    connection: HeldConnection = await connecting(
        asyncpg.connect,
        dsn,
        held=(grace, commit_grace, refuse_below),
        connection_class=connection_class,
        **kwargs,
    )
    return connection
