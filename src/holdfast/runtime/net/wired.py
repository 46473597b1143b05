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
from typing import Any, Final, Self

from holdfast.domain.errors import StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.side import Direction, Side
from holdfast.runtime.net.wires import Closing, Wire, name_of
from holdfast.runtime.timers import Alarm

__all__ = ["CLOSING", "RESET", "SLICE", "UNBOUNDED", "Wired"]

CLOSING: Final[Duration] = 1.0
"""Seconds that closing may wait for the peer: for its close_notify, and while it takes nothing of
what is still to be sent."""

UNBOUNDED: Final[Duration] = 3600.0
"""Seconds after which the loop gives up on a TLS connection that is being closed: we do before. It
counts what is still to be sent as well."""

HIGH: Final = 262_144
SLICE: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)
"""A value of `SO_LINGER`: closing drops what was not sent, and resets the connection."""


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
        self._lower: list[Any] = []
        self._wire = Wire(self)
        self._reads = Side(self, "read")
        self._writes = Side(self, "write")
        self._buffer = bytearray()
        self._written = self._dropped = self._wanted = 0
        self._eof = self._full = self._held = self._stalled = self._tls = self._half = (
            self._blind
        ) = False
        self._error: BaseException | None = None
        self._gone: asyncio.Future[None] = self.loop.create_future()
        self._closing = Closing(CLOSING)
        self._handshake: Alarm | None = None
        self._shaking = False
        self._alarms: list[Alarm] = []
        if forced_break != NEVER:
            self._ring(forced_break, self._break)

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
        stream = cls(name_of(sock), forced_break)
        try:
            stream.take((await stream.loop.create_connection(lambda: stream._wire, sock=sock))[0])
        except BaseException:
            # The loop's transport closes the socket when it has got as far as one; that is no harm.
            sock.close()
            stream.lost(None)
            raise
        if stream._error is not None:
            stream.abort()  # the instant of the forced break came first
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
        self._tls = self._blind = transport.get_extra_info("ssl_object") is not None
        self._kept_small()
        if self.peer == "nobody":
            sock = transport.get_extra_info("socket")
            self.peer = "nobody" if sock is None else name_of(sock)

    async def start_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str | None = None,
        *,
        server_side: bool = False,
    ) -> None:
        """Speak TLS from here on. The connection is aborted when that fails or is cancelled.

        Raises:
            StreamTimeout: one of the deadlines has passed.
            ssl.SSLError, OSError: the handshake failed.
            UsageError: the peer has sent plain bytes that nobody has read: somebody could have put
                them there. Or another task reads or writes.
        """
        if self.closed:
            raise self._failure()
        if self._buffer:
            self.abort()
            raise UsageError(f"{self.peer} sent plain bytes before its TLS handshake")
        self._reads.enter()
        try:
            self._writes.enter()
            try:
                await self._shake(context, server_hostname, server_side)
            finally:
                self._writes.busy = False
        finally:
            self._reads.busy = False

    async def _shake(
        self, context: ssl.SSLContext, server_hostname: str | None, server_side: bool
    ) -> None:
        raw = self._transport
        self._shaking = self._tls = True
        self._bound_handshake()
        try:
            # The loop takes the protocol away, and would tell the wrong one that there is room.
            await self._room(0)
            made = await self.loop.start_tls(
                raw,
                self._wire,
                context,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_shutdown_timeout=UNBOUNDED,
            )
            # asyncio returns nothing for a connection that is lost by now, and uvloop one that is
            # closed. That is in order when the peer has said all it had to say.
            if not self._eof and (made is None or self.closed or made.is_closing()):
                raise ConnectionResetError(f"{self.peer} went away during the TLS handshake")
        except BaseException as exc:
            self.abort()
            forced, ours = self._error, isinstance(exc, OSError)
            self.lost(None)
            if ours and forced is not None and exc is not forced:
                raise forced from exc
            raise
        finally:
            self._shaking = False
            self._bound_handshake()
        if made is None:
            return
        self._lower.append(raw)
        self._transport = made
        self._kept_small()

    def _kept_small(self) -> None:
        # What is written is written when the kernel has it, and not when there is a copy of it.
        # With TLS, a limit of zero means to be full also when empty.
        self._transport.set_write_buffer_limits(high=int(self._tls), low=0)

    def _bound_handshake(self) -> None:
        alarm, self._handshake = self._handshake, None
        if alarm is not None:
            self.driver.drop(alarm)
        at = min(self._reads.at, self._writes.at)
        if self._shaking and at != NEVER:
            self._handshake = self.driver.alarm(at, self._handshake_late)

    def _handshake_late(self) -> None:
        self._error = StreamTimeout("TLS handshake", self.peer)
        self.abort()

    def _break(self) -> None:
        if not self._gone.done():
            self._error = StreamTimeout("forced break", self.peer)
            self.abort()

    def _ring(self, at: Instant, call: Callable[[], object]) -> None:
        """Call at `at`, unless the connection is gone by then."""
        self._alarms.append(self.driver.alarm(at, call))

    async def _room(self, moved: int) -> None:
        """Wait until everything that was written is with the kernel."""
        while self._full and not self.closed:
            try:
                await self._writes.wait(moved)
            except BaseException:
                self._stalled = True
                raise
        if self.closed:
            raise self._failure()

    # -- the end ---------------------------------------------------------------------------------

    def abort(self, *, reset: bool = False) -> None:
        """Close at once; what was not sent is dropped.

        Args:
            reset: whether the peer is told so by a reset, and not by a plain end.
        """
        if self._gone.done() or self._transport is None:
            return
        self._dropped = max(self._dropped, self._unsent())
        self.closed = True
        # Not the TLS transport: when that is closing already it does not hear.
        lowest = self._lower[0] if self._lower else self._transport
        sock = lowest.get_extra_info("socket") if reset else None
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        lowest.abort()
        self._reads.wake()
        self._writes.wake()

    def close(self, patience: Duration = CLOSING) -> None:
        """Begin to close in good order; at once after a write that has stalled. `aclose` waits.

        Args:
            patience: seconds in which the peer may take nothing of what is still to be sent, before
                the rest is dropped. For its close_notify it has a second.
        """
        if self.closed:
            return
        if self._stalled:
            self.abort(reset=True)
            return
        self.closed = True
        self._closing = Closing(patience, self.driver.now(), self._unsent() + self._blind)
        self._transport.close()
        self._reads.wake()
        self._writes.wake()
        self._ring(self.driver.now() + CLOSING, self._hurry)

    def _hurry(self) -> None:
        # Below TLS that was there before the stream, something may wait that nobody tells us of.
        now, left = self.driver.now(), self._unsent() + self._blind
        if self._writes.at > now and self._closing.goes_on(now, left):
            self._ring(now + CLOSING, self._hurry)
        else:
            self.abort()

    async def aclose(self) -> None:
        """Close in good order, see `close`, and wait until the connection is gone."""
        self.close()
        try:
            await asyncio.shield(self._gone)
        finally:
            self.abort()  # when it is cancelled; else there is nothing to abort

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
        if self._gone.done() or self._dropped or self._transport is None:
            return self._dropped  # a TLS transport that is gone cannot tell
        return sum(map(_waiting_in, (self._transport, *self._lower)))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the loop's transport knows: `socket`, `peername`, `ssl_object`, ..."""
        return self._transport.get_extra_info(name, default)

    def _failure(self) -> BaseException:
        if self._error is not None:
            return self._error.with_traceback(None)
        return ConnectionAbortedError(f"the stream to {self.peer} is closed")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Stream to {self.peer}, {state}, {self.sent} sent, {self.received} received>"

    def has_arrived(self) -> bool:
        """Whether bytes are in the kernel that the loop has not handed over yet."""
        return self.is_ready("read")

    def is_ready(self, direction: Direction) -> bool:
        """Whether the kernel has bytes, or room, that the loop does not know of yet."""
        sock = None if self.closed else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN if direction == "read" else select.POLLOUT)
        return bool(poll.poll(0))

    # -- told by the loop ------------------------------------------------------------------------

    def arrived(self, data: bytes) -> None:
        """Bytes came."""
        self.received += len(data)
        self._buffer += data
        # One who waits needs more than there is, however much that may be.
        if len(self._buffer) > HIGH and not self._held and not self._reads.waiting:
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


def _waiting_in(transport: Any) -> int:
    try:
        size: int = transport.get_write_buffer_size()
    except AttributeError:
        return 0  # a TLS transport of asyncio that is gone has nobody left to ask
    return size
