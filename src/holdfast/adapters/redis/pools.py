"""Pools that make connections of ours, and lose none.

What is added to redis-py's: whoever has too little left gets no connection; a connection that is
owed an answer is closed before it is taken back; a cancellation that comes while a connection is
given back does not lose its place; and one that comes to a waiter hands on what it was woken for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import copy_context
from queue import Empty
from typing import Any, Final

import redis.asyncio.connection as aio
import redis.connection as sync
from redis.exceptions import RedisError

from holdfast.adapters.redis.errors import Command, admitted
from holdfast.adapters.redis.inthread import InThread
from holdfast.adapters.redis.onloop import OnLoop
from holdfast.adapters.redis.retrying import UNTIL
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import behind, opaque, plain, variant
from holdfast.domain.errors import HoldfastError, InsufficientBudget
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.ambient import remaining
from holdfast.runtime.scope import AMBIENT, ambient
from holdfast.runtime.tasks import aside

__all__ = ["bounded_class", "bounded_pool"]

_AsyncPool = opaque(aio.ConnectionPool)
_SyncPool = opaque(sync.ConnectionPool)
_BlockingPool = opaque(sync.BlockingConnectionPool)

_POOL: Final = "a connection of the pool"
_CONNECTING: Final = "connecting"


class _Pool:
    """What both kinds have."""

    holdfast: Settings
    holdfast_idle: Duration = NEVER
    """Seconds that a connection may be idle; infinite until the process stops."""

    @property
    def connection_class(self) -> Any:
        """Of the connections that it makes, which are ours."""
        return bounded_class(self.__dict__["connection_class"], self.holdfast)

    @connection_class.setter
    def connection_class(self, kind: Any) -> None:
        self.__dict__["connection_class"] = plain(kind)


class _PoolOnLoop(_AsyncPool, _Pool):  # type: ignore[misc,valid-type]
    """To be mixed into a pool of `redis.asyncio`."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        this: Any = self
        admitted(_POOL, self.holdfast.refuse_below)
        while self._unfinished and not self._waits and not this.can_get_connection():
            # Whoever had the place has gone, so there is one in a moment.
            await asyncio.wait(self._unfinished.values(), return_when=asyncio.FIRST_COMPLETED)
        try:
            return await inner.get_connection(*args, **kwargs)
        except BaseException:
            if self._waits:
                # It may have been woken for a place that it does not take.
                aside(self._wake(), name="redis pool, next waiter")
            raise

    async def release(self, connection: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        if connection.draining or connection.connecting is not None:
            self._finish(connection)
            return
        if connection.owed or connection.subscribed:
            await connection.disconnect(nowait=True)
        try:
            await inner.release(connection)
        except asyncio.CancelledError:
            aside(self._give_back(connection), name="redis pool, give back")
            raise
        if self.holdfast_idle != NEVER and connection.idling is None and connection.is_open:
            connection.idling = aside(self._idling(connection), name="redis pool, idle")

    # -- what goes on behind the back of whoever was cut -----------------------------------------

    @property
    def _unfinished(self) -> dict[Any, Any]:
        """Connections that nobody uses and that cannot be used yet, with the task of each."""
        found: dict[Any, Any] = self.__dict__.setdefault("_holdfast_unfinished", {})
        return found

    @property
    def _waits(self) -> bool:
        """Whether it has callers wait for a place, instead of saying that there is none."""
        return getattr(self, "_condition", None) is not None

    async def ensure_connection(self, connection: Any) -> None:
        """See redis-py. What connects goes on when whoever waits for it has gone.

        Else a server that is far away, or slow for a while, would see nothing but half-made
        connections: each caller begins one, and none is given the time for all of its steps.
        """
        inner: Any = super()
        if connection.is_open or not self.holdfast.keep:
            await inner.ensure_connection(connection)
            return
        context = copy_context()
        here = ambient()
        context.run(UNTIL.set, NEVER if here is None else here.limit)
        context.run(AMBIENT.set, None)
        connecting = _tried(inner.ensure_connection(connection))
        connection.connecting = aside(connecting, name="redis connect", context=context)
        error = await asyncio.shield(connection.connecting)
        connection.connecting = None
        if isinstance(error, InsufficientBudget):
            command = Command(_CONNECTING)
            raise command.insufficient(command.cause(error.cause.detail)) from error.__cause__
        if error is not None:
            raise error

    def _finish(self, connection: Any) -> None:
        finishing = aside(self._finished(connection), name="redis pool, finish")
        self._unfinished[connection] = finishing

    async def _finished(self, connection: Any) -> None:
        work = connection.drained() if connection.connecting is None else connection.connecting
        done = False
        try:
            async with asyncio.timeout(self.holdfast.keep):
                done = not isinstance(await work, Exception)
        except (TimeoutError, RedisError, OSError):
            done = False
        finally:
            connection.connecting = None
            if not done:
                await connection.disconnect(nowait=True)
            self._unfinished.pop(connection, None)
            await self._give_back(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """See redis-py."""
        inner: Any = super()
        if inuse_connections and self._unfinished:
            finishing = tuple(self._unfinished.values())
            for task in finishing:
                task.cancel()
            await asyncio.wait(finishing)
            for connection in [*self._unfinished]:  # of tasks that had not begun
                del self._unfinished[connection]
                connecting, connection.connecting = connection.connecting, None
                if connecting is not None:
                    connecting.cancel()
                    await asyncio.wait([connecting])
                await self._give_back(connection)
        await inner.disconnect(inuse_connections)

    async def _give_back(self, connection: Any) -> None:
        """What is left to be done of a `release` that was cancelled."""
        this: Any = self
        inner: Any = super()
        if connection in this._in_use_connections:
            await inner.release(connection)
        elif connection not in this._available_connections:
            await connection.disconnect(nowait=True)
        await self._wake()

    async def _wake(self) -> None:
        """Have the next waiter look whether there is a place."""
        condition: Any = getattr(self, "_condition", None)
        if condition is not None:
            async with condition:
                condition.notify()

    # -- the stop of the process -----------------------------------------------------------------

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.lifecycle.Pool`."""
        this: Any = self
        self.holdfast_idle = idle
        open_ones = [one for one in this._available_connections if one.is_open]
        for connection in open_ones:
            await connection.disconnect(nowait=True)
        return len(open_ones)

    async def _idling(self, connection: Any) -> None:
        """Close the connection when it has been idle for long enough."""
        this: Any = self
        try:
            while connection.is_open and connection in this._available_connections:
                used = connection.uses
                await asyncio.sleep(self.holdfast_idle)
                if connection.uses == used and connection in this._available_connections:
                    await connection.disconnect(nowait=True)
        finally:
            connection.idling = None


class _PoolInThread(_SyncPool, _Pool):  # type: ignore[misc,valid-type]
    """To be mixed into a pool of `redis`."""

    async def preclean(self, idle: Duration) -> int:
        """See `holdfast.lifecycle.Pool`. From now on, one that is given back is closed at once: no
        thread is there that could wait."""
        this: Any = self
        this.release = self._release_closed
        closed = 0
        with this._lock:  # so that nobody takes one meanwhile
            for connection in this._available_connections:
                closed += behind(connection).is_open
                connection.disconnect()
        return closed

    def _release_closed(self, connection: Any) -> None:
        inner: Any = super()
        connection.disconnect()
        inner.release(connection)

    if not hasattr(sync.AbstractConnection, "should_reconnect"):  # redis-py before 7

        def release(self, connection: Any) -> None:
            """See redis-py; there, nothing is asked before it is taken back."""
            inner: Any = super()
            if connection.owed:
                connection.disconnect()
            inner.release(connection)


class _BlockingPoolInThread(_PoolInThread, _BlockingPool):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.BlockingConnectionPool`, which has a time-out."""

    @property
    def timeout(self) -> Duration | None:
        """Seconds to wait for a place, no more than what is left; none for ever."""
        own: Duration | None = self.__dict__["timeout"]
        left = remaining()
        if left == NEVER:
            return own
        return left if own is None else min(own, left)

    @timeout.setter
    def timeout(self, seconds: Duration | None) -> None:
        self.__dict__["timeout"] = seconds

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        try:
            return inner.get_connection(*args, **kwargs)
        except RedisError as exc:
            if isinstance(exc, HoldfastError):
                raise
            command = Command(_POOL)
            if command.spent:
                raise command.over("waiting for a place in the pool") from exc
            raise

    async def preclean(self, idle: Duration) -> int:
        """See `_PoolInThread`."""
        this: Any = self
        this.release = self._release_closed
        taken: list[Any] = []
        with suppress(Empty):
            while True:
                taken.append(this.pool.get_nowait())
        closed = 0
        for connection in reversed(taken):  # the last one that is put back is the first to be got
            if connection is not None:
                closed += behind(connection).is_open
                connection.disconnect()
            this.pool.put_nowait(connection)
        return closed


async def _tried(work: Awaitable[Any]) -> Exception | None:
    """What `work` raises: nobody may be there to be told."""
    try:
        await work
    except Exception as exc:
        return exc
    return None


def bounded_class(kind: Any, settings: Settings) -> Any:
    """The class of connections that is `kind` and ours."""
    theirs = plain(kind)
    ours: Any = OnLoop if issubclass(theirs, aio.AbstractConnection) else InThread
    return variant(ours, theirs, settings)


def bounded_pool(kind: Any, settings: Settings) -> Any:
    """The class of pools that is `kind` and ours.

    Raises:
        TypeError: it is no class of pools of redis-py.
    """
    theirs = plain(kind)
    for base, ours in _KINDS.items():
        if issubclass(theirs, base):
            return variant(ours, theirs, settings)
    raise TypeError(f"{kind!r} is no pool of redis-py")


_KINDS: Final[dict[Any, Any]] = {
    aio.ConnectionPool: _PoolOnLoop,
    sync.BlockingConnectionPool: _BlockingPoolInThread,
    sync.ConnectionPool: _PoolInThread,
}
