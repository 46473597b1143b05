"""The network under httpcore's pools: connections that are dialled, read and closed by us.

Between httpcore and the socket there is `Stream` instead of anyio. The dial is ours as well, so a
name look-up, a connection and a TLS handshake are phases of the call that asked for them, each
within its share. The time-outs of the library stay what they are, and so do its errors.

What one call has left bounds no read here: a connection of HTTP/2 is read by one call for all of
them. The task of the call is cancelled instead, see `exchange`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from holdfast.adapters.httpx.library import Library
from holdfast.adapters.httpx.progress import CURRENT
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout, StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.phases import DIALLING, Ended, Phase, Trail
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.phased import within
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.tasks import aside

__all__ = ["Connection", "Guard", "Network"]

_Options = Iterable[tuple[Any, ...]]
_LOST: Final = (OSError, UsageError)


class Network:
    """A network backend of httpcore.

    Args:
        inner: the backend that it stands for; `uninstrument` puts that back.
        library: whose errors are raised.
        dialer: looks names up and connects.
    """

    def __init__(self, inner: Any, library: Library, dialer: Dialer) -> None:
        self.inner = inner
        self.library = library
        self.dialer = dialer

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Duration | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> Connection:
        """A connection to `host`; `timeout` is the library's own, in seconds."""
        dialer = self.dialer
        if local_address is not None:
            dialer = Dialer(
                resolver=dialer.resolver,
                shares=dialer.shares,
                options=replace(dialer.options, local=local_address),
            )
        trail = self._trail(f"{host}:{port}")
        async with _dialling(self.library, trail, timeout):
            sock = await dialer.connect_socket(host, port, trail=trail)
            return await self._over(sock, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: Duration | None = None, socket_options: _Options | None = None
    ) -> Connection:
        """A connection to a Unix socket."""
        trail = self._trail(path)
        async with _dialling(self.library, trail, timeout), within(trail, Phase.CONNECT, path):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, path)
            except BaseException:
                sock.close()
                raise
            return await self._over(sock, socket_options)

    async def sleep(self, seconds: Duration) -> None:
        """Wait before another attempt."""
        await asyncio.sleep(seconds)

    def _trail(self, target: str) -> Trail:
        progress = CURRENT.get()
        if progress is not None:
            return progress.trail
        # Nobody's call: the transport is in use below ours, or no longer instrumented.
        now = driver_of(asyncio.get_running_loop()).now()
        return Trail(target, now, NEVER, self.dialer.shares, route=DIALLING)

    async def _over(self, sock: socket.socket, options: _Options | None) -> Connection:
        try:
            for option in options or ():
                sock.setsockopt(*option)
        except BaseException:
            sock.close()
            raise
        stream = await _wired(sock)
        progress = CURRENT.get()
        if progress is not None:
            progress.dialled = stream.abort
        return Connection(stream, self.library)


@asynccontextmanager
async def _dialling(
    library: Library, trail: Trail, timeout: Duration | None
) -> AsyncGenerator[None]:
    """What goes wrong inside is raised as the pool expects it: it may try again."""
    # The pool drops the cause of an error (`raise exc from None`), so it is an argument as well.
    core = library.core
    own = asyncio.timeout(timeout)
    try:
        async with own:
            yield
    except PhaseTimeout as exc:
        raise library.dial_timeout(exc.trail) from exc
    except DeadlineExceeded:
        raise
    except TimeoutError as exc:
        if own.expired() and trail.steps:
            # To the dial it looked as if somebody else had cancelled it, or as if it were done when
            # the connection was there and nothing had been made of it.
            trail.steps[-1] = trail.steps[-1]._replace(ended=Ended.TIMEOUT)
        raise core.ConnectTimeout(exc if str(exc) else trail.brief()) from exc
    except (*_LOST, UnicodeError) as exc:
        raise core.ConnectError(exc) from exc


async def _wired(sock: socket.socket) -> Stream:
    """A stream over `sock`, made in a task that nobody cancels; it takes two turns of the loop.

    uvloop 0.23 ends the process with a segmentation fault when `create_connection` is cancelled in
    the turn in which it began: it tells a transport that it is connected whose handle is gone. And
    what the loop calls for the connection later does not see the call that it was dialled for.
    """
    making = aside(_made(sock), name="connection")
    try:
        made = await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_unwanted)
        raise
    if isinstance(made, Exception):
        raise made
    return made


async def _made(sock: socket.socket) -> Stream | Exception:
    try:
        return await Stream.over(sock)
    except Exception as exc:
        return exc  # it is raised to the one who waits, and is nobody else's business


def _unwanted(making: asyncio.Task[Stream | Exception]) -> None:
    if not making.cancelled() and isinstance(made := making.result(), Stream):
        made.abort()


class Connection:
    """A network stream of httpcore.

    Args:
        stream: connected.
        library: whose errors are raised.
    """

    __slots__ = ("_library", "_now", "stream")

    def __init__(self, stream: Stream, library: Library) -> None:
        self.stream = stream
        self._library = library
        self._now = stream.driver.now

    async def read(self, max_bytes: int, timeout: Duration | None = None) -> bytes:
        """Bytes; none at the end. `timeout` is the library's own, in seconds."""
        stream = self.stream
        stream.set_read_deadline(NEVER if timeout is None else self._now() + timeout)
        try:
            data = await stream.read(max_bytes)
        except StreamTimeout as exc:
            raise self._library.core.ReadTimeout(exc) from exc
        except _LOST as exc:
            raise self._library.core.ReadError(exc) from exc
        progress = CURRENT.get()
        if progress is not None:
            progress.got(data)
        return data

    async def write(self, buffer: bytes, timeout: Duration | None = None) -> None:
        """Send bytes. `timeout` is the library's own, in seconds, for all of them."""
        if not buffer:
            return
        stream = self.stream
        before, progress = stream.sent, CURRENT.get()
        stream.set_write_deadline(NEVER if timeout is None else self._now() + timeout)
        try:
            await stream.write(buffer)
        except StreamTimeout as exc:
            raise self._library.core.WriteTimeout(exc) from exc
        except _LOST as exc:
            raise self._library.core.WriteError(exc) from exc
        finally:
            if progress is not None:
                progress.sent += max(0, stream.sent - before)

    async def aclose(self) -> None:
        """Close at once, as the library does: it closes what is done with, or has failed.

        It never waits: not for a peer that reads nothing, nor for its close_notify.
        """
        self.stream.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: Duration | None = None,
    ) -> Connection:
        """The same connection, with TLS from here on. It is closed when that fails."""
        progress = CURRENT.get()
        if progress is not None:
            trail = progress.trail
        else:
            trail = Trail(self.stream.peer, self._now(), NEVER, route=DIALLING)
        self.stream.set_deadline(NEVER)  # those of the reads and writes before
        async with _dialling(self._library, trail, timeout), within(trail, Phase.TLS):
            await self.stream.start_tls(ssl_context, server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and its users ask for."""
        stream = self.stream
        if info == "is_readable":
            # Of an idle connection: has the peer closed it, or said something unasked?
            return stream.readable or stream.has_arrived()
        if info == "client_addr":
            return stream.get_extra_info("sockname")
        if info == "server_addr":
            return stream.get_extra_info("peername")
        return stream.get_extra_info(info)


class Guard:
    """A backend that somebody else has written: what it dials in vain is closed, and is a phase.

    Its look-up of the name is a part of connecting, as nobody can tell them apart.
    """

    def __init__(self, inner: Any, library: Library) -> None:
        self.inner = inner
        self.library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
        return await self._guarded(self.inner.connect_tcp(*args, **kwargs))

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Any:
        return await self._guarded(self.inner.connect_unix_socket(*args, **kwargs))

    async def _guarded(self, dial: Awaitable[Any]) -> Any:
        progress = CURRENT.get()
        if progress is None:
            return _closing(await dial)
        trail = progress.trail
        async with _dialling(self.library, trail, None), within(trail, Phase.CONNECT):
            return _closing(await dial)


def _closing(stream: Any) -> Any:
    """The same stream, which is closed when its TLS handshake fails: the library leaves that to
    the garbage collector."""
    start_tls = stream.start_tls

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        progress = CURRENT.get()
        try:
            if progress is None:
                return await start_tls(*args, **kwargs)
            async with within(progress.trail, Phase.TLS):
                return await start_tls(*args, **kwargs)
        except BaseException:
            await stream.aclose()
            raise

    stream.start_tls = guarded
    return stream
