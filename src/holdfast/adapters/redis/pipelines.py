"""Clients and pipelines of ours: what they make is ours too, and an `EXEC` has a known end or none.

A transaction goes out in one piece, with `EXEC` at its end. When all of it had left and no answer
came, it may have been done: that is `OutcomeUnknown`, and nobody tries it again.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from holdfast.adapters.redis.errors import Command
from holdfast.domain.errors import HoldfastError, OutcomeUnknown
from holdfast.runtime.scope import ambient

__all__ = ["bounded_client", "plain_client"]


# Ours have the base of theirs, or an object could not change from one to the other.
_AsyncRedis: Any = redis.asyncio.Redis
_Redis: Any = redis.Redis
_AsyncPipeline: Any = redis.asyncio.client.Pipeline
_Pipeline: Any = redis.client.Pipeline


class _OnLoopClient(_AsyncRedis):
    """To be mixed into a client of `redis.asyncio`."""

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return _bounded(inner.pipeline(*args, **kwargs), _OnLoop)


class _InThreadClient(_Redis):
    """To be mixed into a client of `redis`."""

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return _bounded(inner.pipeline(*args, **kwargs), _InThread)


class _OnLoop(_AsyncPipeline):
    """To be mixed into a `redis.asyncio.client.Pipeline`."""

    watching: bool
    connection: Any
    connection_pool: Any

    async def _execute_transaction(self, connection: Any, *args: Any, **kwargs: Any) -> Any:
        inner: Any = super()
        command = Command("EXEC")
        connection.cut = 0
        try:
            return await inner._execute_transaction(connection, *args, **kwargs)
        except (asyncio.CancelledError, RedisConnectionError, RedisTimeout) as exc:
            _unknown(command, connection, exc)
            raise

    async def __aexit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        inner: Any = super()
        if exc_type is not None and self.watching and self.connection is not None:
            await self._unwatched()
        await inner.__aexit__(exc_type, exc, traceback)

    async def reset(self) -> None:
        """See redis-py; what is watched is forgotten with the connection when there is no time."""
        inner: Any = super()
        connection = self.connection
        if self.watching and connection is not None and (not connection.is_connected or _ended()):
            await self._unwatched()
        if not self.watching and self.connection is not None:
            # Here and not there, where a task is made for it to hold against a cancellation.
            connection, self.connection = self.connection, None
            await self.connection_pool.release(connection)
        await inner.reset()

    async def _unwatched(self) -> None:
        await self.connection.disconnect(nowait=True)
        self.watching = False


class _InThread(_Pipeline):
    """To be mixed into a `redis.client.Pipeline`."""

    watching: bool
    connection: Any

    def _execute_transaction(self, connection: Any, *args: Any, **kwargs: Any) -> Any:
        inner: Any = super()
        command = Command("EXEC")
        holder = getattr(connection, "_conn", connection)
        holder.cut = 0
        try:
            return inner._execute_transaction(connection, *args, **kwargs)
        except (RedisConnectionError, RedisTimeout) as exc:
            _unknown(command, holder, exc)
            raise

    def reset(self) -> None:
        """See redis-py; what is watched is forgotten with the connection when there is no time."""
        inner: Any = super()
        connection = self.connection
        if self.watching and connection is not None and (not connection.is_connected or _ended()):
            connection.disconnect()
            self.watching = False
        inner.reset()


def _unknown(command: Command, connection: Any, exc: BaseException) -> None:
    """See the module.

    Raises:
        OutcomeUnknown: the transaction may have been done.
    """
    if not connection.cut or isinstance(exc, OutcomeUnknown):
        return
    if isinstance(exc, HoldfastError | asyncio.CancelledError):
        detail = "EXEC was sent, and its answer has not come"
    else:
        detail = f"EXEC was sent, and then: {exc}"
    raise command.unknown(detail) from exc


def _ended() -> bool:
    """Whether the scope around is over, so that nothing new is to be waited for."""
    here = ambient()
    return here is not None and (here.reached() is not None or here.remaining() <= 0)


def bounded_client(kind: Any) -> Any:
    """The class of clients that is `kind` and ours."""
    plain = plain_client(kind)
    return _made(
        _OnLoopClient if issubclass(plain, redis.asyncio.Redis) else _InThreadClient, plain
    )


def plain_client(kind: Any) -> Any:
    """What `bounded_client` was made from."""
    return kind.__bases__[1] if kind.__bases__[0] in (_OnLoopClient, _InThreadClient) else kind


def _bounded(pipeline: Any, ours: Any) -> Any:
    kind: Any = type(pipeline)
    pipeline.__class__ = _made(ours, kind)
    return pipeline


@cache
def _made(ours: Any, plain: Any) -> Any:
    body = {"__module__": plain.__module__, "__doc__": plain.__doc__}
    return type(plain.__name__, (ours, plain), body)
