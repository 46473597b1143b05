"""A connection of the loop, from the moment it is there until it is gone.

The half of a stream that the loop talks to: it is made, it is told what came, and it is closed. How
it is read and written is in `stream`.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, Self, cast

from holdfast.domain.errors import StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.side import Side
from holdfast.runtime.timers import Alarm

__all__ = ["CLOSING", "RESET", "SLICE", "Wired"]

CLOSING: Final[Duration] = 1.0
"""Seconds that closing may wait for the peer: for what is still to be sent, and for its
close_notify."""

HIGH: Final = 262_144
SLICE: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)
"""A value of `SO_LINGER`: closing drops what was not sent, and resets the connection."""


class _Wire(asyncio.Protocol):
    """What the loop tells of a connection, handed to its stream."""

    def __init__(self, stream: Wired) -> None:
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


class Wired:
    """A connection, plain or TLS.

    Attributes:
        peer: the other side, for people.
        received: bytes that came, after decryption.
        closed: whether the connection is gone, or given up.
    """

    def __init__(self, peer: str, forced_break: Instant = NEVER) -> None:
        self.loop = asyncio.get_running_loop()
        self.driver = driver_of(self.loop)
        self.peer = peer
        self.received = 0
        self.closed = False
        self._thread = threading.get_ident()
        self._transport: Any = None
        self._wire = _Wire(self)
        self._reads = Side(self, "read")
        self._writes = Side(self, "write")
        self._buffer = bytearray()
        self._written = self._dropped = 0
        self._eof = self._full = self._held = self._stalled = self._tls = False
        self._error: BaseException | None = None
        self._gone: asyncio.Future[None] = self.loop.create_future()
        self._alarms: list[Alarm] = []
        if forced_break != NEVER:
            self._alarms.append(self.driver.alarm(forced_break, self._break))

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        forced_break: Instant = NEVER,
    ) -> Self:
        """A stream over a connected, non-blocking socket, which belongs to it from now on.

        When this fails or is cancelled, the socket is closed.

        Args:
            sock: connected.
            tls: for a TLS client; see `start_tls`.
            server_hostname: the name that the certificate must have.
            forced_break: monotonic instant at which the connection is aborted, come what may.

        Raises:
            OSError, ssl.SSLError: it does not work.
        """
        stream = cls(_name_of(sock), forced_break)
        try:
            stream._transport, _ = await stream.loop.create_connection(
                lambda: stream._wire, sock=sock
            )
        except BaseException:
            # The loop's transport closes the socket when it has got as far as one; that is no harm.
            sock.close()
            stream.lost(None)
            raise
        stream._transport.set_write_buffer_limits(high=SLICE)
        if tls is not None:
            await stream.start_tls(tls, server_hostname)
        return stream

    @classmethod
    def accepting(cls, started: Callable[[Self], object]) -> asyncio.Protocol:
        """A protocol for `loop.create_server`; `started` gets the stream of the connection."""
        stream = cls("nobody")
        stream._wire.started = started
        return stream._wire

    def take(self, transport: Any) -> None:
        """The connection is there."""
        self._transport = transport
        transport.set_write_buffer_limits(high=SLICE)
        sock = transport.get_extra_info("socket")
        self.peer = "nobody" if sock is None else _name_of(sock)

    async def start_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str | None = None,
        *,
        server_side: bool = False,
    ) -> None:
        """Speak TLS from here on. The connection is aborted when that fails or is cancelled.

        Raises:
            ssl.SSLError, OSError: the handshake failed.
            UsageError: the peer has sent plain bytes that nobody has read: somebody could have put
                them there.
        """
        if self._buffer:
            self.abort()
            raise UsageError(f"{self.peer} sent plain bytes before its TLS handshake")
        raw = self._transport
        self._tls = True
        try:
            self._transport = await self.loop.start_tls(
                raw,
                self._wire,
                context,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_shutdown_timeout=CLOSING,
            )
        except BaseException:
            self.closed = True
            raw.abort()
            self.lost(None)
            raise
        if self._transport is None:
            raise ConnectionResetError(f"{self.peer} went away during the TLS handshake")
        self._transport.set_write_buffer_limits(high=SLICE)

    def _break(self) -> None:
        if not self.closed:
            self._error = StreamTimeout("forced break", self.peer)
            self.abort()

    # -- the end ---------------------------------------------------------------------------------

    def abort(self, *, reset: bool = False) -> None:
        """Close at once; what was not sent is dropped.

        Args:
            reset: whether the peer is told so by a reset, and not by a plain end.
        """
        if self._gone.done() or self._transport is None:
            return
        self._dropped = self._unsent()
        self.closed = True
        sock = self._transport.get_extra_info("socket")
        if reset and sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()
        self._reads.wake()
        self._writes.wake()

    async def aclose(self) -> None:
        """Close in good order, within a second; at once after a write that stalled."""
        if self._gone.done():
            return
        if self._stalled or self.closed:
            self.abort(reset=self._stalled)
        else:
            self.closed = True
            self._transport.close()
            self._reads.wake()
            self._writes.wake()
            alarm = self.driver.alarm(self.driver.now() + CLOSING, self.abort)
            try:
                await asyncio.shield(self._gone)
            finally:
                self.driver.drop(alarm)
                if not self._gone.done():
                    self.abort()
            return
        await asyncio.shield(self._gone)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:
            self.abort()
        await self.aclose()

    @property
    def sent(self) -> int:
        """Bytes that the kernel has taken, before encryption."""
        return max(0, self._written - self._unsent())

    def _unsent(self) -> int:
        if self.closed or self._transport is None:  # a TLS transport that is gone cannot tell
            return self._dropped
        waiting: int = self._transport.get_write_buffer_size()
        return waiting

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the loop's transport knows: `socket`, `peername`, `ssl_object`, ..."""
        return self._transport.get_extra_info(name, default)

    def _failure(self) -> BaseException:
        if self._error is not None:
            return self._error
        return ConnectionAbortedError(f"the stream to {self.peer} is closed")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Stream to {self.peer}, {state}, {self.sent} sent, {self.received} received>"

    def has_arrived(self) -> bool:
        """Whether bytes are in the kernel that the loop has not handed over yet."""
        sock = None if self.closed else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # -- told by the loop ------------------------------------------------------------------------

    def arrived(self, data: bytes) -> None:
        """Bytes came."""
        self.received += len(data)
        self._buffer += data
        if len(self._buffer) > HIGH and not self._held:
            self._held = True
            self._transport.pause_reading()
        self._reads.wake()

    def ended(self) -> bool:
        """The peer sends no more; whether the other direction stays open."""
        self._eof = True
        self._reads.wake()
        return not self._tls

    def lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        if exc is not None and self._error is None:
            self._error = exc
        elif not self.closed:
            self._eof = True
        self.closed = True
        for alarm in self._alarms:
            self.driver.drop(alarm)
        self._alarms.clear()
        if not self._gone.done():
            self._gone.set_result(None)
        self._reads.wake()
        self._writes.wake()

    def full(self, full: bool) -> None:
        """The buffer of what is to be sent is full, or has room again."""
        self._full = full
        if not full:
            self._writes.wake()


def _name_of(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "nobody"
    if isinstance(name, tuple):
        host, port = (str(part) for part in cast("tuple[object, ...]", name)[:2])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name) or "a socket without a name"
