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
from collections.abc import Callable
from typing import Final

from holdfast.domain.errors import LimitExceeded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
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
        self.set_read_deadline(at)
        self.set_write_deadline(at)

    def set_read_deadline(self, at: Instant) -> None:
        """The same for reads alone."""
        self._call(lambda: self._reads.move(at))

    def set_write_deadline(self, at: Instant) -> None:
        """The same for writes alone."""
        self._call(lambda: self._writes.move(at))

    def _call(self, change: Callable[[], object]) -> None:
        if threading.get_ident() == self._thread:
            change()
        else:
            self.loop.call_soon_threadsafe(change)

    # -- reading ---------------------------------------------------------------------------------

    async def read(self, most: int = SLICE) -> bytes:
        """Bytes, at least one and at most `most`; none at the end.

        Raises:
            StreamTimeout: the deadline has passed, and nothing has arrived.
            UsageError: another task reads.
            OSError: the connection is lost.
        """
        self._reads.enter()
        try:
            while not self._buffer:
                if not self._more():
                    return b""
                await self._reads.wait()
            return self._take(most)
        finally:
            self._reads.busy = False

    async def readexactly(self, size: int) -> bytes:
        """`size` bytes. Until they are there, all stay for the next read.

        Raises:
            asyncio.IncompleteReadError: the end came before; what there was is in `partial`.
            StreamTimeout, UsageError, OSError: see `read`.
        """
        self._reads.enter()
        try:
            while len(self._buffer) < size:
                if not self._more():
                    raise asyncio.IncompleteReadError(self._take(size), size)
                await self._reads.wait(len(self._buffer))
            return self._take(size)
        finally:
            self._reads.busy = False

    async def readuntil(self, separator: bytes = b"\n", limit: int = SLICE) -> bytes:
        """Bytes up to and with `separator`. Until it is there, all stay for the next read.

        Raises:
            LimitExceeded: there is no separator within `limit` bytes.
            asyncio.IncompleteReadError: the end came before; what there was is in `partial`.
            StreamTimeout, UsageError, OSError: see `read`.
        """
        self._reads.enter()
        start = 0
        try:
            while (found := self._buffer.find(separator, start)) < 0:
                start = max(0, len(self._buffer) - len(separator) + 1)
                if len(self._buffer) >= limit:
                    raise LimitExceeded(limit)
                if not self._more():
                    raise asyncio.IncompleteReadError(self._take(limit), None)
                await self._reads.wait(len(self._buffer))
            size = found + len(separator)
            if size > limit:
                raise LimitExceeded(limit)
            return self._take(size)
        finally:
            self._reads.busy = False

    def unread(self, data: bytes) -> None:
        """Push bytes back: they come first with the next read."""
        self._buffer[:0] = data

    def at_eof(self) -> bool:
        """Whether the end has come and all before it was read."""
        return self._eof and not self._buffer

    @property
    def readable(self) -> bool:
        """Whether `read` would return at once. On an idle connection that is how its end shows."""
        return bool(self._buffer) or self._eof or self.closed

    def _more(self) -> bool:
        """Whether more may come; false at the end."""
        if self._eof:
            return False
        if self.closed:
            raise self._failure()
        return True

    def _take(self, most: int) -> bytes:
        buffer = self._buffer
        if len(buffer) <= most:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:most])
            del buffer[:most]
        if self._held and len(buffer) <= _LOW and not self.closed:
            self._held = False
            self._transport.resume_reading()
        return data

    # -- writing ---------------------------------------------------------------------------------

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; returns when nearly all of them are with the kernel.

        Raises:
            StreamTimeout: the deadline has passed. How much was sent is in `sent`; the connection
                can be written no more in a way that makes sense, and is aborted when it is closed.
            UsageError: another task writes.
            OSError: the connection is lost.
        """
        side = self._writes
        side.enter()
        try:
            view = memoryview(data).cast("B")
            for start in range(0, len(view), SLICE):
                while self._full and not self.closed:
                    await self._drained(start)
                if self.closed:
                    raise self._failure()
                part = view[start : start + SLICE]
                self._transport.write(part)
                self._written += len(part)
            while self._full and not self.closed:
                await self._drained(len(view))
        finally:
            side.busy = False

    async def _drained(self, moved: int) -> None:
        try:
            await self._writes.wait(moved)
        except BaseException:
            self._stalled = True
            raise

    async def write_eof(self, linger: Duration = NEVER) -> None:
        """Say that nothing more is sent; the peer may go on.

        Args:
            linger: seconds after which the connection is aborted: while its descriptor is open, the
                kernel waits for the other side without a limit.

        Raises:
            UsageError: TLS cannot do that.
        """
        if self._tls:
            raise UsageError("a TLS connection cannot be closed in one direction only")
        if self.closed:
            raise self._failure()
        self._transport.write_eof()
        if linger != NEVER:
            self._alarms.append(self.driver.alarm(self.driver.now() + linger, self.abort))
