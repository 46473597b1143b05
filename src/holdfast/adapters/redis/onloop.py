"""Connections of `redis.asyncio` that are cancelled without harm.

A deadline ends a scope by cancelling what runs in it, so nothing here waits on its own account.
What is seen to is what a cancellation leaves behind: a connection that is owed an answer is
aborted there and then. redis-py closes it, and a close waits for bytes that a frozen server does
not take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from holdfast.adapters.redis.counting import Counting

__all__ = ["OnLoop"]

# Ours have the base of theirs, or an object could not change from one to the other.
_Base = object if TYPE_CHECKING else AbstractConnection


class OnLoop(_Base, Counting):
    """To be mixed into a connection of `redis.asyncio`.

    Attributes:
        draining: whether its last command was cut, and its answer may be waited for.
    """

    draining: bool = False
    _reader: Any
    _writer: Any
    socket_timeout: Any
    health_check_interval: Any

    def should_reconnect(self) -> bool:
        """Whether it is to be closed before somebody else gets it; see redis-py."""
        inner: Any = super()
        return self.owed > 0 or inner.should_reconnect()

    def pack_command(self, *args: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return self.counted(inner.pack_command(*self.within(args)), 1)

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """See redis-py."""
        inner: Any = super()
        listed = self.within_all(commands)
        lifted = self.lifted
        packed = inner.pack_commands(listed)  # which packs each of them by `pack_command`
        self._name, self.waited, self.lifted = "pipeline", None, lifted
        return self.counted(packed, len(listed))

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """See redis-py. Written again: there, a task is made for each command, to bound it."""
        this: Any = self
        self.admit()
        lifted, waited, packed = self.lifted, self.waited, self._packed
        if not this.is_connected:
            await this.connect_check_health(check_health=False)
        if check_health and self.health_check_interval:
            await this.check_health()
        self.lifted, self.waited, self._packed = lifted, waited, packed
        self.handed_over(command)
        try:
            if isinstance(command, str):
                command = command.encode()
            writer = self._writer
            if isinstance(command, bytes):
                writer.write(command)
            else:
                writer.writelines(command)
            transport = writer.transport
            if transport.is_closing() or transport.get_write_buffer_size():
                async with asyncio.timeout(self.socket_timeout):
                    await writer.drain()
        except TimeoutError:
            await this.disconnect(nowait=True)
            raise RedisTimeout("Timeout writing to socket") from None
        except OSError as exc:
            await this.disconnect(nowait=True)
            raise RedisConnectionError(f"Error while writing to socket. {exc}.") from exc
        except BaseException:
            await this.disconnect(nowait=True)
            raise

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: Any = None,
        *,
        disconnect_on_error: bool = True,
        push_request: Any = False,
    ) -> Any:
        """See redis-py."""
        inner: Any = super()
        if not self.lifted:
            reading = inner.read_response(
                disable_decoding,
                timeout,
                disconnect_on_error=disconnect_on_error,
                push_request=push_request,
            )
        else:
            reading = self._read_lifted(disable_decoding, timeout, disconnect_on_error, push_request)
        try:
            response = await reading
        except ResponseError:
            self.waited = None
            if not push_request:
                self.answered()
            raise
        if not push_request:
            self.answered()
        return response if self.waited is None else self.not_nothing(response)

    async def _read_lifted(
        self, disable_decoding: bool, timeout: Any, disconnect_on_error: bool, push_request: Any
    ) -> Any:
        """Read without the time-out of the socket: the server was told how long to wait."""
        inner: Any = super()
        before, self.socket_timeout = self.socket_timeout, None
        try:
            return await inner.read_response(
                disable_decoding,
                timeout,
                disconnect_on_error=disconnect_on_error,
                push_request=push_request,
            )
        finally:
            self.socket_timeout = before

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        """See redis-py; one that is owed an answer is not closed with courtesy."""
        inner: Any = super()
        writer = self._writer
        unsent = 0
        if writer is not None:
            transport = writer.transport
            try:
                unsent = transport.get_write_buffer_size()
            except AttributeError:
                unsent = 0  # of TLS, and closed so far that it holds nothing any more
            if nowait or unsent or self.owed:
                nowait = True
                transport.abort()
        if writer is not None or self.owed:
            self.closed(unsent)
        self.draining = False
        await inner.disconnect(nowait, *args, **kwargs)
