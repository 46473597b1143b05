"""Streams in the form that asyncio's have: the same calls, and every one ends with its scope.

    reader, writer = await open_connection("orders.local", 6379)
    writer.write(b"PING\\r\\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()              # within a second, also when a TLS peer is silent

What differs: deadlines can be set, a read or a `drain` that is given up loses nothing, a connection
whose peer takes nothing any more is gone some seconds after `close` and not never, and a line that
is too long is a `LimitExceeded`, a `ValueError`, from `readuntil` as well.
"""

from __future__ import annotations

import asyncio
import ssl as tls_module
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from holdfast.domain.errors import LimitExceeded
from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.net.wired import UNBOUNDED
from holdfast.runtime.tasks import aside

__all__ = ["Reader", "Writer", "open_connection", "start_server"]

_LIMIT: Final = 65_536
_PATIENCE: Final[Duration] = 5.0
_HANDSHAKE: Final[Duration] = 10.0


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
        try:
            while part := await self.stream.read():
                whole += part
        except BaseException:
            self.stream.unread(bytes(whole))
            raise
        return bytes(whole)

    async def readline(self) -> bytes:
        """One line with its end; what there is when the end comes first.

        Raises:
            LimitExceeded: the line is longer than the limit of the reader, and so much of it is
                dropped: whoever goes on comes to its end. Also a `ValueError`.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            return exc.partial
        except LimitExceeded:
            await self.stream.read(self._limit)  # it is there, so nothing is waited for
            raise

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

    def __init__(self, stream: Stream, *, server_side: bool = False) -> None:
        self.stream = stream
        self._server_side = server_side
        self._draining = asyncio.Lock()

    def set_deadline(self, at: Instant) -> None:
        """See `Stream.set_write_deadline`."""
        self.stream.set_write_deadline(at)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. What the kernel does not take at once is kept; `drain` waits for it.

        After the connection is lost nothing happens; `drain` says so.
        """
        if not self.stream.closed:
            self.stream.write_soon(data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """The same for several."""
        self.write(b"".join(data))

    async def drain(self) -> None:
        """Wait until what was written is with the kernel. Several tasks may.

        Raises:
            StreamTimeout, OSError: see `Stream.drain`.
        """
        async with self._draining:
            await self.stream.drain()

    def can_write_eof(self) -> bool:
        """Whether `write_eof` works: not with TLS."""
        return self.stream.get_extra_info("ssl_object") is None

    def write_eof(self) -> None:
        """Say that nothing more is sent, when all is sent that was written before."""
        self.stream.end_writing()

    def close(self) -> None:
        """Begin to close; `wait_closed` waits for it.

        What is still to be sent is sent, unless the peer takes nothing of it for some seconds.
        """
        self.stream.close(_PATIENCE)

    def is_closing(self) -> bool:
        """Whether it is closed, or being closed."""
        return self.stream.closed

    async def wait_closed(self) -> None:
        """Wait until it is closed, see `close`; ends with the scope around it, and drops the rest
        then."""
        self.close()
        await self.stream.aclose()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `Stream.get_extra_info`."""
        return self.stream.get_extra_info(name, default)

    async def start_tls(
        self, sslcontext: tls_module.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        """Speak TLS from here on; see `Stream.start_tls`."""
        await self.drain()
        await self.stream.start_tls(sslcontext, server_hostname, server_side=self._server_side)


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
    host: str | None = None,
    port: Any = None,
    *,
    ssl: tls_module.SSLContext | None = None,
    limit: int = _LIMIT,
    **options: Any,
) -> asyncio.Server:
    """Listen, and await `serve` for each connection in a task of its own.

    The connection is closed when `serve` returns, and aborted when it fails.

    Args:
        serve: gets a reader and a writer.
        host: where to listen; none for all addresses, or with `sock` among the options.
        port: a TCP port; zero for one that is free.
        ssl: speak TLS. A peer has ten seconds for its handshake.
        limit: bytes that a line may have.
        options: of `loop.create_server`: `backlog`, `reuse_port`, `sock`, ...

    Raises:
        OSError: the address cannot be listened on.
    """

    async def one(stream: Stream) -> None:
        async with stream:
            writer = Writer(stream, server_side=True)
            await serve(Reader(stream, limit), writer)
            writer.close()

    def accepted() -> asyncio.Protocol:
        return Stream.accepting(lambda stream: aside(one(stream), name="holdfast connection"))

    if ssl is not None:
        # Not `Stream.start_tls`: a client speaks first, and libuv would have read it by then.
        options |= {"ssl": ssl, "ssl_shutdown_timeout": UNBOUNDED}
        options.setdefault("ssl_handshake_timeout", _HANDSHAKE)
    return await asyncio.get_running_loop().create_server(accepted, host, port, **options)
