"""Streams in the form that asyncio's have: the same calls, and every one ends with its scope.

reader, writer = await open_connection("orders.local", 6379)
writer.write(b"PING\\r\\n")
await writer.drain()
answer = await reader.readline()
writer.close()
await writer.wait_closed()              # within a second, also when a TLS peer is silent
"""

from __future__ import annotations

import asyncio
import ssl as tls_module
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from holdfast.domain.instant import Instant
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.tasks import aside

__all__ = ["Reader", "Writer", "open_connection", "start_server"]

_LIMIT: Final = 65_536


class Reader:
    """As `asyncio.StreamReader`, with a deadline that can be moved.

    Attributes:
        stream: what it reads.
    """

    def __init__(self, stream: Stream, limit: int = _LIMIT) -> None:
        self.stream = stream
        self._limit = limit

    def set_deadline(self, at: Instant) -> None:
        """See `Stream.set_read_deadline`."""
        self.stream.set_read_deadline(at)

    async def read(self, n: int = -1) -> bytes:
        """At most `n` bytes; everything up to the end when `n` is negative."""
        if n >= 0:
            return await self.stream.read(n) if n else b""
        whole = bytearray()
        while part := await self.stream.read():
            whole += part
        return bytes(whole)

    async def readline(self) -> bytes:
        """One line with its end; what there is when the end comes first.

        Raises:
            ValueError: the line is longer than the limit of the reader.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            return exc.partial

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes.

        Raises:
            asyncio.IncompleteReadError: the end came before.
        """
        return await self.stream.readexactly(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Up to and with `separator`.

        Raises:
            asyncio.IncompleteReadError: the end came before.
            LimitExceeded: there is none within the limit of the reader; also a `ValueError`.
        """
        return await self.stream.readuntil(separator, self._limit)

    def at_eof(self) -> bool:
        """Whether the end has come and all before it was read."""
        return self.stream.at_eof()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class Writer:
    """As `asyncio.StreamWriter`, with a deadline that can be moved.

    Attributes:
        stream: what it writes.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._waiting = bytearray()
        self._closing = False

    def set_deadline(self, at: Instant) -> None:
        """See `Stream.set_write_deadline`."""
        self.stream.set_write_deadline(at)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes with the next `drain`, or with the close."""
        self._waiting += data

    def writelines(self, data: Iterable[bytes]) -> None:
        """The same for several."""
        for part in data:
            self.write(part)

    async def drain(self) -> None:
        """Send what was written, and wait until nearly all of it is with the kernel.

        Raises:
            StreamTimeout, OSError: see `Stream.write`.
        """
        data, self._waiting = bytes(self._waiting), bytearray()
        await self.stream.write(data)

    def can_write_eof(self) -> bool:
        """Whether `write_eof` works: not with TLS."""
        return self.stream.get_extra_info("ssl_object") is None

    async def write_eof(self) -> None:
        """Say that nothing more is sent."""
        await self.drain()
        await self.stream.write_eof()

    def close(self) -> None:
        """Close soon; `wait_closed` waits for it."""
        if not self._closing:
            self._closing = True
            aside(self._close(), name="holdfast close")

    async def _close(self) -> None:
        try:
            if self._waiting and not self.stream.closed:
                await self.drain()
        except OSError:
            self.stream.abort()  # nobody is there any more who could be sent what is left
        await self.stream.aclose()

    def is_closing(self) -> bool:
        """Whether it is closed, or being closed."""
        return self._closing or self.stream.closed

    async def wait_closed(self) -> None:
        """Wait until it is closed: a second at most."""
        self.close()
        await self.stream.aclose()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `Stream.get_extra_info`."""
        return self.stream.get_extra_info(name, default)

    async def start_tls(
        self, sslcontext: tls_module.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        """Speak TLS from here on, as a client; see `Stream.start_tls`."""
        await self.drain()
        await self.stream.start_tls(sslcontext, server_hostname)


async def open_connection(
    host: str,
    port: int,
    *,
    ssl: tls_module.SSLContext | None = None,
    server_hostname: str | None = None,
    limit: int = _LIMIT,
    dialer: Dialer | None = None,
) -> tuple[Reader, Writer]:
    """Dial; a reader and a writer. Ends with the scope around it, see `Dialer.connect`.

    Args:
        host: a name, or an address.
        port: a TCP port.
        ssl: speak TLS.
        server_hostname: the name that the certificate must have; `host` when none is given.
        limit: bytes that a line may have.
        dialer: who dials; one with the usual settings when none is given.

    Raises:
        PhaseTimeout, DeadlineExceeded, OSError: see `Dialer.connect`.
    """
    stream = await (dialer or Dialer()).connect(
        host, port, tls=ssl, server_hostname=server_hostname
    )
    return Reader(stream, limit), Writer(stream)


async def start_server(
    serve: Callable[[Reader, Writer], Awaitable[None]],
    host: str,
    port: int,
    *,
    ssl: tls_module.SSLContext | None = None,
    limit: int = _LIMIT,
) -> asyncio.Server:
    """Listen, and await `serve` for each connection in a task of its own.

    The connection is closed when `serve` returns, and aborted when it fails.

    Raises:
        OSError: the address cannot be listened on.
    """

    async def one(stream: Stream) -> None:
        async with stream:
            if ssl is not None:
                await stream.start_tls(ssl, server_side=True)
            writer = Writer(stream)
            await serve(Reader(stream, limit), writer)
            if not writer.is_closing():
                await writer.drain()

    def accepted() -> asyncio.Protocol:
        return Stream.accepting(lambda stream: aside(one(stream), name="holdfast connection"))

    return await asyncio.get_running_loop().create_server(accepted, host, port)
