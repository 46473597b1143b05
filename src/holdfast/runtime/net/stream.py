"""A connection that is read and written by absolute deadlines.

    stream = await dial("orders.local", 443, tls=ssl.create_default_context())
    stream.set_deadline(now() + 2.0)
    await stream.write(request)
    head = await stream.readuntil(b"\\r\\n\\r\\n", 16_384)

A deadline is an instant, for reads, for writes, or for both. It may be set while another task waits
in `read`, from any thread, and wakes that task at once when it is past. It may be moved later after
it has passed: a call that ended in `StreamTimeout` has lost no byte. What has arrived always wins
over a deadline, also when the loop was held up until after it.

No timer knows a descriptor. It knows the stream, and a stream that is closed is asked nothing, so
a number that the kernel gives out again is never touched.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from holdfast.domain.errors import LimitExceeded, StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.hosted import seconds_of
from holdfast.runtime.net.side import Side
from holdfast.runtime.net.wired import SLICE, Wired

__all__ = ["Stream"]

_LOW: Final = 65_536


class Stream(Wired):
    """A connection, plain or TLS. Made by a dial or by `Stream.over`.

    Attributes:
        peer: the other side, for people.
        received: bytes that came, after decryption.
        closed: whether the connection is gone, or given up.
    """

    # -- deadlines -------------------------------------------------------------------------------

    def set_deadline(self, at: Instant) -> None:
        """Reads and writes must be done by the monotonic instant `at`; `NEVER` for no deadline.

        Calls that wait follow at once. From any thread.
        """
        self._move(at, self._reads, self._writes)

    def set_read_deadline(self, at: Instant) -> None:
        """The same for reads alone."""
        self._move(at, self._reads)

    def set_write_deadline(self, at: Instant) -> None:
        """The same for writes alone."""
        self._move(at, self._writes)

    def _move(self, at: Instant, *sides: Side) -> None:
        at = seconds_of(at, "set_deadline()")
        if at != at:
            raise ValueError("a deadline must be a number, got nan")
        if threading.get_ident() == self._thread:
            self._moved(at, *sides)
            return
        try:
            self.loop.call_soon_threadsafe(self._moved, at, *sides)
        except RuntimeError:
            if not self.loop.is_closed():  # else there is nothing left that could wait
                raise

    def _moved(self, at: Instant, *sides: Side) -> None:
        for side in sides:
            side.move(at)
        if self._shaking:
            self._bound_handshake()

    # -- reading ---------------------------------------------------------------------------------

    async def read(self, most: int = SLICE) -> bytes:
        """Bytes, at least one and at most `most`; none at the end.

        Raises:
            StreamTimeout: the deadline has passed, and nothing has arrived.
            UsageError: another task reads.
            OSError: the connection is lost.
        """
        if most <= 0:
            return _nothing(most)
        self._reads.enter()
        try:
            while not self._buffer:
                if not await self._more():
                    return b""
            return self._take(most)
        finally:
            self._reads.busy = False

    async def readexactly(self, size: int) -> bytes:
        """`size` bytes. Until they are there, all stay for the next read.

        Raises:
            asyncio.IncompleteReadError: the end came before; what there was is in `partial`.
            StreamTimeout, UsageError, OSError: see `read`.
        """
        if size <= 0:
            return _nothing(size)
        self._reads.enter()
        self._want(size)
        try:
            while len(self._buffer) < size:
                if not await self._more():
                    raise asyncio.IncompleteReadError(self._take(size), size)
            return self._take(size)
        finally:
            self._wanted = 0
            self._reads.busy = False

    async def readuntil(self, separator: bytes = b"\n", limit: int = SLICE) -> bytes:
        """Bytes up to and with `separator`. Until it is there, all stay for the next read.

        Raises:
            LimitExceeded: there is no separator within `limit` bytes.
            asyncio.IncompleteReadError: the end came before; what there was is in `partial`.
            StreamTimeout, UsageError, OSError: see `read`.
        """
        if not separator:
            raise ValueError("the separator must not be empty")
        self._reads.enter()
        self._want(limit)
        start = 0
        try:
            while (found := self._buffer.find(separator, start, limit)) < 0:
                if len(self._buffer) >= limit:
                    raise LimitExceeded(limit)
                start = max(0, len(self._buffer) - len(separator) + 1)
                if not await self._more():
                    raise asyncio.IncompleteReadError(self._take(limit), None)
            return self._take(found + len(separator))
        finally:
            self._reads.busy = False

    def unread(self, data: bytes) -> None:
        """Push bytes back: they come first with the next read.

        Raises:
            UsageError: another task reads, and would get them in the wrong place.
        """
        self._reads.enter()
        self._reads.busy = False
        self._buffer[:0] = data

    def at_eof(self) -> bool:
        """Whether the end has come and all before it was read."""
        return self._eof and not self._buffer

    @property
    def readable(self) -> bool:
        """Whether `read` would return at once. On an idle connection that is how its end shows."""
        return bool(self._buffer) or self._eof or self.closed

    async def _more(self) -> bool:
        """Wait for more; false at the end."""
        if self._eof:
            return False
        if self.closed:
            raise self._failure()
        self._resume()
        await self._reads.wait(len(self._buffer))
        return True

    def _resume(self) -> None:
        if self._held and not self.closed:
            self._held = False
            self._transport.resume_reading()

    def _want(self, size: int) -> None:
        """So much is asked for in one piece: it must fit in, whatever is held back else."""
        self._wanted = size
        if self._held and len(self._buffer) <= size and not self.closed:
            self._held = False
            self._transport.resume_reading()

    def _take(self, most: int) -> bytes:
        buffer = self._buffer
        if len(buffer) <= most:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:most])
            del buffer[:most]
        if self._held and len(buffer) <= _LOW:
            self._resume()
        return data

    # -- writing ---------------------------------------------------------------------------------

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; returns when they are with the kernel, of TLS but for the last few.

        Raises:
            StreamTimeout: the deadline has passed. Its `moved` bytes are on their way: with a later
                deadline `write(data[error.moved:])` goes on. Otherwise the connection makes no
                sense any more, and is reset when it is closed.
            UsageError: another task writes, or there was a `write_eof`.
            OSError: the connection is lost.
        """
        side = self._writes
        side.enter()
        try:
            with memoryview(data).cast("B") as view:
                for start in range(0, len(view), SLICE):
                    await self._room(start)
                    self.write_soon(data if len(view) <= SLICE else view[start : start + SLICE])
                await self._room(len(view))
            self._stalled = False
        finally:
            side.busy = False

    def write_soon(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes over without waiting, however many wait to be sent already; see `drain`.

        Raises:
            UsageError: there was a `write_eof`.
            OSError: the connection is lost.
        """
        if self.closed:
            raise self._failure()
        if self._half:
            raise UsageError(f"written to {self.peer} after write_eof()")
        # What does not fit into the kernel is kept, and whoever wrote it may change it meanwhile.
        fixed = data if type(data) is bytes else bytes(data)
        self._written += len(fixed)
        self._transport.write(fixed)

    async def drain(self) -> None:
        """Wait until what was written is with the kernel.

        Raises:
            StreamTimeout, UsageError, OSError: see `write`.
        """
        self._writes.enter()
        try:
            await self._room(0)
            self._stalled = False
        finally:
            self._writes.busy = False

    async def write_eof(self, linger: Duration = NEVER) -> None:
        """Say that nothing more is sent; the peer may go on.

        Args:
            linger: seconds after which the connection is aborted: while its descriptor is open, the
                kernel waits for the other side without a limit.

        Raises:
            UsageError: TLS cannot do that. Or another task writes.
            StreamTimeout, OSError: see `write`.
        """
        await self.drain()
        self.end_writing(linger)

    def end_writing(self, linger: Duration = NEVER) -> None:
        """The same without waiting: it is said when all is sent that was written before."""
        if self._tls:
            raise UsageError("a TLS connection cannot be closed in one direction only")
        if self.closed:
            raise self._failure()
        self._half = True
        self._transport.write_eof()
        if linger != NEVER:
            self._ring(self.driver.now() + linger, self._lingered)

    def _lingered(self) -> None:
        self._error = StreamTimeout("lingering read", self.peer)
        self.abort()


def _nothing(size: int) -> bytes:
    if size < 0:
        raise ValueError(f"cannot read {size} bytes")
    return b""
