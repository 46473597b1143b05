"""Clients and pipelines of ours: what they make is ours too, and an `EXEC` has a known end or none.

A transaction goes out in one piece, with `EXEC` at its end. When all of it had left and no answer
came, it may have been done: that is `OutcomeUnknown`, and nobody tries it again. A cancellation
that is not of a scope of ours stays what it is, with a note: whoever sent it counts on that.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.client import Redis as AsyncRedis
from redis.client import Pipeline, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from holdfast.adapters.redis.errors import Command
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import behind, kind_of, opaque, plain, variant
from holdfast.domain.errors import HoldfastError, OutcomeUnknown
from holdfast.runtime.bounded import cut_by_scope
from holdfast.runtime.scope import ambient

__all__ = ["bounded_client"]


_NO_ANSWER: Final = "EXEC was sent, and its answer has not come"

_AsyncRedis = opaque(AsyncRedis)
_Redis = opaque(Redis)
_AsyncPipeline = opaque(AsyncPipeline)
_Pipeline = opaque(Pipeline)


class _OnLoopClient(_AsyncRedis):  # type: ignore[misc,valid-type]
    """To be mixed into a client of `redis.asyncio`."""

    holdfast: Settings

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return _bounded(inner.pipeline(*args, **kwargs), _PipelineOnLoop, self.holdfast)


class _InThreadClient(_Redis):  # type: ignore[misc,valid-type]
    """To be mixed into a client of `redis`."""

    holdfast: Settings

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return _bounded(inner.pipeline(*args, **kwargs), _PipelineInThread, self.holdfast)


class _PipelineOnLoop(_AsyncPipeline):  # type: ignore[misc,valid-type]
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
        if (
            self.watching
            and connection is not None
            and (not behind(connection).is_open or _ended())
        ):
            await self._unwatched()
        if not self.watching and self.connection is not None:
            # Here and not there, where a task is made for it to hold against a cancellation.
            connection, self.connection = self.connection, None
            try:
                await self.connection_pool.release(connection)
            finally:
                await inner.reset()  # nothing is waited for in it any more
            return
        await inner.reset()

    async def _unwatched(self) -> None:
        await self.connection.disconnect(nowait=True)
        self.watching = False


class _PipelineInThread(_Pipeline):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.client.Pipeline`."""

    watching: bool
    connection: Any

    def _execute_transaction(self, connection: Any, *args: Any, **kwargs: Any) -> Any:
        inner: Any = super()
        command = Command("EXEC")
        holder = behind(connection)
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
        if (
            self.watching
            and connection is not None
            and (not behind(connection).is_open or _ended())
        ):
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
    if isinstance(exc, asyncio.CancelledError) and cut_by_scope(exc) is None:
        exc.add_note(f"{_NO_ANSWER}: it may have been done")
        return  # somebody else's, which has to arrive as it is
    if isinstance(exc, HoldfastError | asyncio.CancelledError):
        detail = _NO_ANSWER
    else:
        detail = f"EXEC was sent, and then: {exc}"
    raise command.unknown(detail) from exc


def _ended() -> bool:
    """Whether the scope around is over, so that nothing new is to be waited for."""
    here = ambient()
    return here is not None and (here.reached() is not None or here.remaining() <= 0)


def bounded_client(kind: Any, settings: Settings) -> Any:
    """The class of clients that is `kind` and ours."""
    theirs = plain(kind)
    ours: Any = _OnLoopClient if issubclass(theirs, AsyncRedis) else _InThreadClient
    return variant(ours, theirs, settings)


def _bounded(pipeline: Any, ours: Any, settings: Settings) -> Any:
    kind = kind_of(pipeline)
    pipeline.__class__ = variant(ours, kind, settings)
    return pipeline
