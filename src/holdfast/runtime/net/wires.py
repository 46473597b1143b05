"""What a stream is told by the loop, how long it waits at its end, and what its peer is called."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from holdfast.domain.instant import Duration, Instant

__all__ = ["Closing", "Told", "Wire", "name_of"]


class Told(Protocol):
    """A stream, as the loop sees it."""

    def take(self, transport: Any) -> None: ...
    def arrived(self, data: bytes) -> None: ...
    def ended(self) -> bool: ...
    def lost(self, exc: BaseException | None) -> None: ...
    def full(self, full: bool) -> None: ...


class Wire(asyncio.Protocol):
    """The protocol of a stream.

    Attributes:
        started: is called when a connection is there that was not dialled.
    """

    def __init__(self, stream: Told) -> None:
        self._stream = stream
        self.started: Callable[[Any], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.started is not None:
            self._stream.take(transport)
            self.started(self._stream)

    def data_received(self, data: bytes) -> None:
        self._stream.arrived(data)

    def eof_received(self) -> bool:
        return self._stream.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.lost(exc)

    def pause_writing(self) -> None:
        self._stream.full(True)

    def resume_writing(self) -> None:
        self._stream.full(False)


class Closing:
    """Whether the peer still takes what is to be sent to it.

    Args:
        patience: seconds in which it may take nothing.
        now: when closing began.
        left: bytes that were to be sent then.
    """

    __slots__ = ("_at", "_left", "_patience")

    def __init__(self, patience: Duration, now: Instant = 0.0, left: int = 0) -> None:
        self._patience = patience
        self._at = now
        self._left = left

    def goes_on(self, now: Instant, left: int) -> bool:
        """Whether to wait on, with `left` bytes still to be sent."""
        if left < self._left:
            self._left, self._at = left, now
            return True
        return left > 0 and now < self._at + self._patience


def name_of(sock: socket.socket) -> str:
    """The other side of a socket, for people."""
    try:
        name = sock.getpeername()
    except OSError:
        return "nobody"
    if isinstance(name, tuple):
        host, port = (str(part) for part in cast("tuple[object, ...]", name)[:2])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name) or "a socket without a name"
