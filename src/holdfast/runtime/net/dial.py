"""From a name to a stream, in one place: look-up, connections, proxy, TLS, in one budget.

    stream = await dial("orders.local", 443, tls=ssl.create_default_context(), timeout=2.0)

Each phase has a share of what is left and all of them together end with the scope around them, see
`holdfast.domain.phases`. Whatever fails, or is cancelled, leaves no socket open.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from typing import Final

from holdfast.domain.errors import DeadlineExceeded, HoldfastError, LimitExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Phase, Shares, Trail
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.ambient import deadline_at, shield
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.attempt import DEFAULT_OPTIONS, SocketOptions
from holdfast.runtime.net.phased import blamed, within
from holdfast.runtime.net.proxying import MOST_HEAD, ProxyAddress, connect_request, refusal
from holdfast.runtime.net.race import connected
from holdfast.runtime.net.resolver import Address, Resolver, default_resolver
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.scope import ambient

__all__ = ["Dialer", "dial"]

_MOST_INTERIM: Final = 16
_MOST_PORT: Final = 65_535
_FULL: Final[Duration] = 0.02
"""Seconds between two questions whether a Unix socket has room for one more connection."""

_SET_UP: Final[Duration] = 1.0
"""Seconds that the loop may take to make a transport; it takes two turns."""


class Dialer:
    """Dials with settings that stay.

    Args:
        resolver: who looks names up; the one of the process when none is given.
        shares: how one budget is divided over the phases.
        options: of the sockets, and the pace of the attempts.
        observer: is told of every dial that is no part of a longer call.
    """

    def __init__(
        self,
        *,
        resolver: Resolver | None = None,
        shares: Shares = DEFAULT_SHARES,
        options: SocketOptions = DEFAULT_OPTIONS,
        observer: TrailObserver | None = None,
    ) -> None:
        self.resolver = default_resolver() if resolver is None else resolver
        self.shares = shares
        self.options = options
        self.observer = observer

    async def connect(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        proxy: ProxyAddress | None = None,
        timeout: Duration = NEVER,
        forced_break: bool = False,
        trail: Trail | None = None,
        client: str = "",
    ) -> Stream:
        """A stream to `host`.

        Args:
            host: a name, or an address.
            port: a TCP port.
            tls: speak TLS to the host; its certificate must be for `server_hostname`.
            server_hostname: `host` when none is given.
            proxy: ask it to connect to the host.
            timeout: seconds for all of it; never longer than what the scope around it has left.
            forced_break: whether the connection is aborted at that limit, also while it is in use
                later: for networks that are not trusted.
            trail: the record of a longer call that this dial is a part of.
            client: who dials, in the record of its own.

        Raises:
            PhaseTimeout: a phase has used up its share.
            DeadlineExceeded: there is no time left; the error says in which phase it ran out.
            OSError: `gaierror`, a refused connection, a proxy that says no, `ssl.SSLError`.
        """
        path = (host, port, tls, server_hostname, proxy, forced_break)
        if trail is not None:
            return await self._connect(trail, *path)
        own = self._trail(f"{host}:{port}", timeout, client)
        stream = None
        try:
            async with deadline_at(own.limit, name="dial"):
                stream = await self._connect(own, *path)
        except BaseException as exc:
            if stream is not None:
                stream.abort()  # it was there a moment too late
            raise_with(own, exc)
            self._tell(own, exc)
            raise
        self._tell(own, None)
        return stream

    async def connect_socket(
        self, host: str, port: int, *, trail: Trail, family: int = socket.AF_UNSPEC
    ) -> socket.socket:
        """A connected, non-blocking socket: the first two phases alone, for somebody else's client.

        Raises:
            PhaseTimeout, DeadlineExceeded, OSError: see `connect`.
            ValueError: there is no such port.
        """
        if not 0 < port <= _MOST_PORT:
            raise ValueError(f"a port is a number from 1 to {_MOST_PORT}, got {port!r}")
        try:
            async with within(trail, Phase.DNS, f"asked: {self.resolver.asks}") as phase:
                addresses = await self._resolved(host, port, family, phase.until)
            return await connected(addresses, trail=trail, options=self.options)
        except OSError as exc:
            raise_with(trail, exc)
            raise

    async def connect_unix(
        self, path: str, *, timeout: Duration = NEVER, client: str = ""
    ) -> Stream:
        """A stream to a Unix socket.

        Raises:
            DeadlineExceeded, OSError: see `connect`.
        """
        own = self._trail(path, timeout, client)
        own.route = (Phase.CONNECT,)
        stream = None
        try:
            async with deadline_at(own.limit, name="dial"), within(own, Phase.CONNECT, path):
                stream = await _over(await self.connect_unix_socket(path))
        except BaseException as exc:
            if stream is not None:
                stream.abort()
            raise_with(own, exc)
            self._tell(own, exc)
            raise
        self._tell(own, None)
        return stream

    async def connect_unix_socket(self, path: str) -> socket.socket:
        """A connected, non-blocking Unix socket, for somebody else's client; waits while the queue
        of the server is full.

        Raises:
            OSError: it cannot be connected.
        """
        # Not `loop.sock_connect`: where the queue is full there is nothing to wait for but time,
        # and asyncio takes the socket, which is writable, for connected.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            while (number := sock.connect_ex(path)) == errno.EAGAIN:  # noqa: ASYNC110
                await asyncio.sleep(_FULL)
            if number:
                raise OSError(number, f"cannot connect to {path}: {os.strerror(number)}")
        except BaseException:
            sock.close()
            raise
        return sock

    async def _resolved(
        self, host: str, port: int, family: int, until: Instant
    ) -> tuple[Address, ...]:
        loop = asyncio.get_running_loop()
        try:
            return await self.resolver.resolve(host, port, family=family, limit=until)
        except TimeoutError:
            if until > driver_of(loop).now():
                raise
            # The scope is due in this very moment as well, and knows whose limit it is.
            await loop.create_future()
            raise

    def _trail(self, target: str, timeout: Duration, client: str) -> Trail:
        now = driver_of(asyncio.get_running_loop()).now()
        here = ambient()
        limit: Instant = now + timeout if here is None else min(here.limit, now + timeout)
        return Trail(target, now, limit, self.shares, client=client, route=DIALLING)

    async def _connect(
        self,
        trail: Trail,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        server_hostname: str | None,
        proxy: ProxyAddress | None,
        forced_break: bool,
    ) -> Stream:
        _set_route(trail, tls=tls is not None, proxy=proxy is not None)
        first = (host, port) if proxy is None else (proxy.host, proxy.port)
        sock = await self.connect_socket(*first, trail=trail)
        stream = None
        try:
            stream = await _over(sock)
            if proxy is not None:
                async with within(trail, Phase.PROXY, f"proxy {proxy}"):
                    await _tunnel(stream, host, port, proxy)
                    if tls is not None and stream.readable:
                        raise _unasked(stream, proxy)
            if tls is not None:
                async with within(trail, Phase.TLS):
                    await _secured(stream, tls, server_hostname or host)
        except BaseException as exc:
            if stream is not None:
                stream.abort()
            if isinstance(exc, asyncio.CancelledError):
                blamed(trail, driver_of(asyncio.get_running_loop()).now())
            raise_with(trail, exc)
            raise
        if forced_break and trail.limit != NEVER:
            stream.break_at(trail.limit)
        return stream

    def _tell(self, trail: Trail, error: BaseException | None) -> None:
        if self.observer is not None:
            self.observer.call_ended(trail, error)


def _set_route(trail: Trail, *, tls: bool, proxy: bool) -> None:
    """The phases of this dial, and of the rest what the call has said."""
    goes = {Phase.DNS: True, Phase.CONNECT: True, Phase.PROXY: proxy, Phase.TLS: tls}
    trail.route = tuple(phase for phase in Phase if goes.get(phase, phase in trail.route))


class _Dialled(Stream):
    """A stream that may be told later that it is to be broken."""

    def break_at(self, at: Instant) -> None:
        # Not from the beginning: during the dial the same instant ends the phase under way, whose
        # name is to be in the error.
        self._alarms.append(self.driver.alarm(at, self._break))


async def _over(sock: socket.socket) -> _Dialled:
    """The stream of a connected socket.

    A scope that ends runs its task in the same turn of the loop. uvloop cannot bear that while it
    makes a transport: it frees the handle, and reads from it in the next turn, which is the end of
    the process. So ours wait for these two turns; a `task.cancel()` comes late enough by itself.
    """
    stream = None
    try:
        async with shield(_SET_UP, name="transport"):
            stream = await _Dialled.over(sock)
    except BaseException:
        if stream is not None:
            stream.abort()
        raise
    return stream


async def _secured(stream: Stream, context: ssl.SSLContext, name: str) -> None:
    try:
        await stream.start_tls(context, name)
    except TypeError as exc:
        # In TLS within TLS, asyncio fails to abort before 3.11.8 and 3.12.2 (gh-113214), and that
        # hides why it wanted to.
        if isinstance(exc.__context__, OSError):
            raise exc.__context__ from None
        raise


async def _tunnel(stream: Stream, host: str, port: int, proxy: ProxyAddress) -> None:
    if proxy.tls is not None:
        await _secured(stream, proxy.tls, proxy.host)
    await stream.write(connect_request(host, port, proxy.headers))
    target = f"{host}:{port}"
    for _ in range(_MOST_INTERIM):
        try:
            head = await _head(stream)
        except LimitExceeded:
            raise OSError(
                errno.EPROTO, f"proxy {proxy} answered with a head of more than {MOST_HEAD} bytes"
            ) from None
        except asyncio.IncompleteReadError:
            raise ConnectionResetError(
                errno.ECONNRESET, f"proxy {proxy} closed before it had answered CONNECT {target}"
            ) from None
        said = refusal(head, proxy, target)
        if said is None:
            return
        if isinstance(said, OSError):
            raise said
    raise OSError(errno.EPROTO, f"proxy {proxy} sends interim responses without an end")


async def _head(stream: Stream) -> bytes:
    """The head of an answer; of what is no HTTP, its beginning, as more may never come."""
    head = await stream.readexactly(5)
    if head != b"HTTP/":
        return head + (await stream.read(60) if stream.readable else b"")
    while True:
        line = await stream.readuntil(b"\n", MOST_HEAD - len(head))
        head += line
        if line in (b"\r\n", b"\n"):
            return head


def _unasked(stream: Stream, proxy: ProxyAddress) -> OSError:
    """The host speaks first, or is gone. In TLS the client begins, so that is not from the host."""
    if stream.at_eof():
        return ConnectionResetError(errno.ECONNRESET, f"proxy {proxy} closed the tunnel at once")
    return OSError(errno.EPROTO, f"proxy {proxy} sent plain bytes into the tunnel before TLS")


def raise_with(trail: Trail, exc: BaseException) -> None:
    """Note on an error of the network what the call had done until then, once."""
    if isinstance(exc, OSError) and not isinstance(exc, HoldfastError):
        line = trail.line()
        if line not in getattr(exc, "__notes__", ()):
            exc.add_note(line)
    elif isinstance(exc, DeadlineExceeded) and exc.trail is None:
        exc.trail = trail


async def dial(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy: ProxyAddress | None = None,
    timeout: Duration = NEVER,
    forced_break: bool = False,
) -> Stream:
    """A stream to `host`, with the settings that are right for most; see `Dialer.connect`."""
    return await Dialer().connect(
        host,
        port,
        tls=tls,
        server_hostname=server_hostname,
        proxy=proxy,
        timeout=timeout,
        forced_break=forced_break,
    )
