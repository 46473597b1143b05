"""Pools that make connections of ours, and lose none.

What is added to redis-py's: whoever has too little left gets no connection; a connection that is
owed an answer is closed before it is taken back; a cancellation that comes while a connection is
given back does not lose its place; and one that comes to a waiter hands on what it was woken for.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio.connection as aio
import redis.connection as sync
from redis.exceptions import RedisError

from holdfast.adapters.redis.errors import Command
from holdfast.adapters.redis.inthread import InThread
from holdfast.adapters.redis.onloop import OnLoop
from holdfast.adapters.redis.settings import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.ambient import remaining
from holdfast.runtime.scope import ambient
from holdfast.runtime.tasks import aside

__all__ = ["bounded_class", "bounded_pool", "plain_class", "plain_pool"]

# Ours have the base of theirs, or an object could not change from one to the other.
if TYPE_CHECKING:
    _AsyncPool = _SyncPool = _BlockingPool = object
else:
    _AsyncPool, _SyncPool = aio.ConnectionPool, sync.ConnectionPool
    _BlockingPool = sync.BlockingConnectionPool

_POOL: Final = "a connection of the pool"


class _Pool:
    """What both kinds have."""

    holdfast: Settings
    holdfast_idle: Duration = NEVER

    @property
    def connection_class(self) -> Any:
        """Of the connections that it makes, which are ours."""
        return bounded_class(self.__dict__["connection_class"], self.holdfast)

    @connection_class.setter
    def connection_class(self, kind: Any) -> None:
        self.__dict__["connection_class"] = plain_class(kind)

    def _admit(self) -> None:
        here = ambient()
        if here is None or here.limit == NEVER:
            return
        left, needed = here.limit - here.driver.now(), self.holdfast.refuse_below
        if left <= 0 or left < needed:
            Command(_POOL).admit(needed)


class _OnLoop(_AsyncPool, _Pool):
    """To be mixed into a pool of `redis.asyncio`."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        self._admit()
        try:
            return await inner.get_connection(*args, **kwargs)
        except BaseException:
            if getattr(self, "_condition", None) is not None:
                # It may have been woken for a place that it does not take.
                aside(self._wake(), name="redis pool, next waiter")
            raise

    async def release(self, connection: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        if connection.should_reconnect():
            await connection.disconnect(nowait=True)
        try:
            await inner.release(connection)
        except asyncio.CancelledError:
            aside(self._give_back(connection), name="redis pool, give back")
            raise
        if self.holdfast_idle != NEVER:
            await self._close_idle(connection)

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

    async def _close_idle(self, connection: Any) -> None:
        if self.holdfast_idle <= 0:
            await connection.disconnect()


class _InThread(_SyncPool, _Pool):
    """To be mixed into a pool of `redis`."""

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        self._admit()
        try:
            return inner.get_connection(*args, **kwargs)
        except RedisError as exc:
            if isinstance(exc, HoldfastError):
                raise
            command = Command(_POOL)
            if command.spent:
                raise command.over("waiting for a place in the pool") from exc
            raise

    def release(self, connection: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        if connection.should_reconnect() or self.holdfast_idle != NEVER:
            connection.disconnect()
        inner.release(connection)


class _Waiting(_InThread, _BlockingPool):
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


@cache
def bounded_class(kind: Any, settings: Settings) -> Any:
    """The class of connections that is `kind` and ours."""
    plain = plain_class(kind)
    ours: Any = OnLoop if issubclass(plain, aio.AbstractConnection) else InThread
    return _made(ours, plain, settings)


def plain_class(kind: Any) -> Any:
    """What `bounded_class` was made from."""
    return kind.__bases__[1] if "holdfast" in vars(kind) else kind


def bounded_pool(kind: Any, settings: Settings) -> Any:
    """The class of pools that is `kind` and ours.

    Raises:
        TypeError: it is no class of pools of redis-py.
    """
    plain = plain_pool(kind)
    if issubclass(plain, aio.ConnectionPool):
        return _made(_OnLoop, plain, settings)
    if issubclass(plain, sync.BlockingConnectionPool):
        return _made(_Waiting, plain, settings)
    if issubclass(plain, sync.ConnectionPool):
        return _made(_InThread, plain, settings)
    raise TypeError(f"{kind!r} is no pool of redis-py")


plain_pool: Final = plain_class


@cache
def _made(ours: Any, plain: Any, settings: Settings) -> Any:
    body = {"holdfast": settings, "__module__": plain.__module__, "__doc__": plain.__doc__}
    return type(plain.__name__, (ours, plain), body)
