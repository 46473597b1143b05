"""Readers to build with: each has `read`, and takes what has it. In any order, over one another.

    body = Limit(Chain(PushBack(head), stream), 10 * 2**20)
    async for part in parts(Bounded(body, least_rate=1024)): ...

None of them loses a byte when it is cancelled: what it had taken comes with the next read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol, runtime_checkable

from holdfast.domain.errors import DeadlineExceeded, LimitExceeded, StreamTimeout
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.ambient import deadline_at, timeout
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import ambient

__all__ = ["Bounded", "ByteReader", "Chain", "Limit", "PushBack", "parts", "read_all"]

_PART: Final = 65_536


@runtime_checkable
class ByteReader(Protocol):
    """What can be read: a stream, or one of the readers here."""

    async def read(self, most: int = _PART) -> bytes:
        """Bytes, at least one and at most `most`; none at the end."""
        ...


class PushBack:
    """A reader to whose front bytes can be returned.

    Args:
        first: bytes that come before all others.
        reader: what is read when there are none; nothing without one.
    """

    def __init__(self, first: bytes = b"", reader: ByteReader | None = None) -> None:
        self._first = deque([first] if first else [])
        self._reader = reader

    def unread(self, data: bytes) -> None:
        """Push bytes back: they come first with the next read."""
        if data:
            self._first.appendleft(data)

    async def read(self, most: int = _PART) -> bytes:
        """See `ByteReader`."""
        if most <= 0:
            return b""
        if not self._first:
            return b"" if self._reader is None else await self._reader.read(most)
        data = self._first.popleft()
        self.unread(data[most:])
        return data[:most]


class Chain:
    """Several readers, one after the other.

    Args:
        readers: in order; one that is at its end is let go of.
    """

    def __init__(self, *readers: ByteReader) -> None:
        self._readers = deque(readers)

    def unread(self, data: bytes) -> None:
        """See `PushBack.unread`."""
        self._readers.appendleft(PushBack(data))

    async def read(self, most: int = _PART) -> bytes:
        """See `ByteReader`."""
        while self._readers and most > 0:
            # While it waits, somebody may have pushed bytes back, before this one.
            reader = self._readers[0]
            if data := await reader.read(most):
                return data
            if self._readers and self._readers[0] is reader:
                self._readers.popleft()
        return b""


class Limit:
    """A reader that delivers so many bytes, and no more.

    What counts is what it has delivered, so a read that is cancelled costs nothing.

    Args:
        reader: what is read.
        most: bytes that may come in all.

    Attributes:
        left: bytes that may still come.

    Raises, on reading:
        LimitExceeded: there is more. What was over is not lost where `reader` can take it back.
    """

    def __init__(self, reader: ByteReader, most: int) -> None:
        if most < 0:
            raise ValueError(f"a limit must not be negative, got {most}")
        self._reader = reader
        self._back = PushBack()
        self._most = most
        self._over = False
        self.left = most

    def unread(self, data: bytes) -> None:
        """See `PushBack.unread`. They have not been delivered after all."""
        self._back.unread(data)
        self.left += len(data)

    async def read(self, most: int = _PART) -> bytes:
        """See `ByteReader`."""
        if most <= 0:
            return b""
        data = await self._back.read(most)
        if not data:
            if self._over:
                raise LimitExceeded(self._most)
            # At the limit one byte more is asked for: whether there is one decides.
            data = await self._reader.read(max(1, min(most, self.left)))
        if len(data) > self.left:
            unread = getattr(self._reader, "unread", None)
            if unread is None:
                self._over = True
            else:
                unread(data)
            raise LimitExceeded(self._most)
        self.left -= len(data)
        return data


class Bounded:
    """A reader that ends with the scope in which it was made, wherever it is read.

    A body is often read by somebody else than who asked for it. Here the limit that held when the
    reader was made holds on, and that of the scope around each read as well.

    Args:
        reader: what is read.
        least_rate: bytes per second that must come on average: a peer that trickles is given up
            long before a generous deadline. Only the time counts that is spent in reads.
        patience: seconds of it that are granted before.

    Raises, on reading:
        DeadlineExceeded: the limit is spent.
        StreamTimeout: it comes too slowly.
    """

    def __init__(
        self, reader: ByteReader, *, least_rate: float = 0.0, patience: Duration = 5.0
    ) -> None:
        if not least_rate >= 0 or not patience >= 0:
            raise ValueError("least_rate and patience must not be negative")
        here = ambient()
        self._reader = reader
        self._back = PushBack()
        self._limit = NEVER if here is None else here.limit
        self._rate = least_rate
        self._patience = patience
        self._waited = 0.0
        self._received = 0

    def unread(self, data: bytes) -> None:
        """See `PushBack.unread`."""
        self._back.unread(data)

    async def read(self, most: int = _PART) -> bytes:
        """See `ByteReader`."""
        if data := await self._back.read(most):
            return data
        if most <= 0:
            return b""
        data = b""
        try:
            async with deadline_at(self._limit, name="read"):
                data = await (self._paced(most) if self._rate else self._reader.read(most))
        except BaseException:
            self.unread(data)  # the time was up when it was here already
            raise
        self._received += len(data)
        return data

    async def _paced(self, most: int) -> bytes:
        allowed = self._patience + self._received / self._rate - self._waited
        now = driver_of(asyncio.get_running_loop()).now
        began, data, pace = now(), b"", timeout(max(0.0, allowed), name="pace")
        try:
            async with pace:
                data = await self._reader.read(most)
            return data
        except DeadlineExceeded as exc:
            self.unread(data)
            if allowed > 0 and exc.cause is not pace.cause:
                raise
            what = f"read of at least {self._rate:g} bytes/s"
            peer = getattr(self._reader, "peer", "unknown")
            raise StreamTimeout(what, peer, self._received) from exc
        finally:
            self._waited += now() - began


async def parts(reader: ByteReader, size: int = _PART) -> AsyncIterator[bytes]:
    """Everything that a reader gives, part by part."""
    while data := await reader.read(size):
        yield data


async def read_all(reader: ByteReader, most: int) -> bytes:
    """Everything that a reader gives, in one piece.

    Raises:
        LimitExceeded: that is more than `most` bytes.
    """
    limited = Limit(reader, most)
    whole = bytearray()
    while data := await limited.read(_PART):
        whole += data
    return bytes(whole)
