"""Connections of `redis.asyncio` that are cancelled without harm.

A deadline ends a scope by cancelling what runs in it, so nothing here waits on its own account.
What is seen to is what a cancellation leaves behind: a connection that is owed an answer is
aborted there and then. redis-py closes it, and a close waits for bytes that a frozen server does
not take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from holdfast.adapters.redis.counting import HARMLESS, Counting
from holdfast.adapters.redis.errors import unsent
from holdfast.adapters.redis.variants import opaque
from holdfast.domain.instant import Duration

__all__ = ["OnLoop"]

_LATER: Final[Duration] = 0.02
"""Seconds that a scope may be late with its cancellation."""

_Base = opaque(AbstractConnection)


class OnLoop(_Base, Counting):  # type: ignore[misc,valid-type]
    """To be mixed into a connection of `redis.asyncio`.

    Attributes:
        draining: whether its last command was cut, and it is open still, as its answer may come.
        connecting: the task that connects it, while it does.
        idling: the task that closes it when it is idle, in a stop of the process.
        uses: how many commands it has sent; of two that are equal, none was sent in between.
    """

    direct: ClassVar = ("pack_command", "read_response")
    theirs_pack_command: Callable[..., Any]
    theirs_read_response: Callable[..., Any]
    draining: bool = False
    connecting: Any = None
    idling: Any = None
    uses: int = 0
    _reader: Any
    _writer: Any
    socket_timeout: Any
    health_check_interval: Any

    def should_reconnect(self) -> bool:
        """Whether it is to be closed before somebody else gets it; see redis-py."""
        inner: Any = super()
        return (self.owed > 0 and not self.draining) or inner.should_reconnect()

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._writer is not None

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        self.preparing += 1
        try:
            await inner.connect_check_health(*args, **kwargs)
        finally:
            self.preparing -= 1

    async def check_health(self) -> None:
        """See redis-py."""
        inner: Any = super()
        self.preparing += 1
        try:
            await inner.check_health()
        finally:
            self.preparing -= 1

    def pack_command(self, *args: Any) -> Any:
        """See redis-py."""
        name = args[0]
        if self.blocks or name not in HARMLESS:
            args = self.within(args)
        else:
            self._name, self.waited = name, None
        return self.theirs_pack_command(*args)

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """See redis-py."""
        inner: Any = super()
        listed = self.within_all(commands)
        known = self.pause()
        packed = inner.pack_commands(listed)  # which packs each of them by `pack_command`
        self.resume(known)
        return self.counted(packed, len(listed))

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """See redis-py. Written again: there, a task is made for each command, to bound it."""
        this: Any = self
        self.admit()
        if self.draining:
            await this.disconnect(nowait=True)  # whoever goes on must not get the answer
        if not this.is_connected or (check_health and self.health_check_interval):
            known = self.pause()
            if not this.is_connected:
                await this.connect_check_health(check_health=False)
            if check_health:
                await this.check_health()
            self.resume(known)
        self.handed_over(command)
        self.uses += 1
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
        except OSError as exc:  # which a time-out is, too
            await this.disconnect(nowait=True)
            error = unsent(exc)
            self.failed(error)
            raise error from exc
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
        """See redis-py. One that is cancelled may stay open, for the pool to see to."""
        if self.draining:
            await self.disconnect(nowait=True)
        keeps = disconnect_on_error and not self.blocks and self.holdfast.keep > 0
        own, lifted = self.socket_timeout, self.lifted
        if lifted:
            self.socket_timeout = None  # the server was told how long to wait
        try:
            response = await self.theirs_read_response(
                disable_decoding,
                timeout,
                disconnect_on_error=disconnect_on_error and not keeps,
                push_request=push_request,
            )
        except ResponseError:
            self.waited = None
            if self.owed and not push_request:
                self.owed -= 1
            raise
        except BaseException as exc:
            self.failed(exc)
            if isinstance(exc, asyncio.CancelledError):
                self.interrupted()
            if keeps and isinstance(exc, asyncio.CancelledError):
                await self._cut_off()
            elif keeps:
                await self.disconnect(nowait=True)
            raise
        finally:
            if lifted:
                self.socket_timeout = own
        if self.owed and not push_request:
            self.owed -= 1
        if self.waited is None:
            return response
        if not response:
            # The scope is to end this, as it ends all: its own error then says so, also of a group.
            try:
                await asyncio.sleep(max(0.0, self.waited[0].left) + _LATER)
            except asyncio.CancelledError:
                self.waited[0].interrupted("the server had nothing")
                raise
        return self.not_nothing(response)

    async def _cut_off(self) -> None:
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size():
            await self.disconnect(nowait=True)
        else:
            self.draining = True
            self.cut = self.owed

    async def drained(self) -> None:
        """Read and forget the answers that are owed.

        Raises:
            RedisError, OSError: the connection is gone.
        """
        inner: Any = super()
        while self.owed:
            with suppress(ResponseError):
                await inner.read_response(disconnect_on_error=False)
            self.owed -= 1
        self.draining = False

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
        if writer is not None:
            self.closed(unsent)
        self.draining = False
        await inner.disconnect(nowait, *args, **kwargs)
