"""One reader of a request's messages, so that a disconnect is seen and no byte of the body is lost.

A server tells that its client has gone only to whoever calls `receive`. Handlers call it while they
read the body and then never again. So after a short while the inbox reads ahead: what it reads it
keeps, in order, for the handler; when the client has gone it says so at once.

While the handler itself waits in `receive`, the inbox does not: there is one reader at any time.
Reading ahead stops at a bound, so that a body which nobody reads stays with the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from holdfast.adapters.asgi.types import Message, Receive
from holdfast.runtime.tasks import aside

__all__ = ["Inbox"]

_READ_AHEAD: Final = 65_536


class Inbox:
    """The messages of one request or connection.

    Args:
        receive: of the server.
        gone: called once, when the client has gone; with whether the handler has read that itself.
        farewell: type of the message that says so.

    Attributes:
        parting: that message, when it has come.
    """

    __slots__ = (
        "_ahead",
        "_farewell",
        "_gone",
        "_messages",
        "_reader",
        "_readers",
        "_receive",
        "_room",
        "_size",
        "_waiters",
        "_wanted",
        "parting",
    )

    def __init__(self, receive: Receive, gone: Callable[[bool], None], farewell: str) -> None:
        self._receive = receive
        self._gone = gone
        self._farewell = farewell
        self.parting: Message | None = None
        self._messages: deque[Message] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._ahead: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._readers = 0
        self._size = 0
        self._wanted = False

    async def receive(self) -> Message:
        """The next message, for the handler."""
        while True:
            if self._messages:
                return self._take()
            if self._ahead is None:
                return await self._read()
            waiter = self._ahead.get_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def read_ahead(self) -> None:
        """From now on, watch for the client to go."""
        self._wanted = True
        if self._ahead is None and self._readers == 0:
            self._ahead = aside(self._run(), name="holdfast disconnect watch")

    def stop(self) -> None:
        """The request is over; nobody is told any more."""
        self._wanted = False
        self._gone = _nothing
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None

    def _take(self) -> Message:
        message = self._messages[0]
        if message["type"] != self._farewell:  # the farewell stays: it is the answer from now on
            self._messages.popleft()
            self._size -= _size(message)
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
        return message

    async def _read(self) -> Message:
        self._readers += 1
        try:
            message = await self._receive()
        finally:
            self._readers -= 1
            if self._wanted and self._ahead is None and self._readers == 0:
                self.read_ahead()
        if message["type"] == self._farewell:
            self._say_farewell(message, True)
        return message

    async def _run(self) -> None:
        try:
            while True:
                if self._size >= _READ_AHEAD:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                    continue
                message = await self._receive()
                if message["type"] == self._farewell:
                    self._say_farewell(message, bool(self._waiters))
                    return
                self._messages.append(message)
                self._size += _size(message)
                self._wake()
        finally:
            # Whatever ends the reading (a server may raise), the handler reads for itself again.
            self._ahead = None
            self._wanted = False
            self._wake()

    def _say_farewell(self, message: Message, told: bool) -> None:
        self.parting = message
        if not self._messages or self._messages[-1]["type"] != self._farewell:
            self._messages.append(message)
        self._wake()
        gone, self._gone = self._gone, _nothing
        gone(told)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _nothing(_: bool) -> None:
    """Nobody wants to know any more."""


def _size(message: Message) -> int:
    content: Any = message.get("body") or message.get("bytes") or message.get("text") or b""
    return len(content) + 64
