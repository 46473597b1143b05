"""From a name to a stream, in one place: look-up, connections, proxy, TLS, in one budget.

    stream = await dial("orders.local", 443, tls=ssl.create_default_context(), timeout=2.0)

Each phase has a share of what is left and all of them together end with the scope around them, see
`holdfast.domain.phases`. Whatever fails, or is cancelled, leaves no socket open.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from holdfast.domain.errors import DeadlineExceeded, HoldfastError, LimitExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Phase, Shares, Trail
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.ambient import deadline_at
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.attempt import DEFAULT_OPTIONS, SocketOptions
from holdfast.runtime.net.phased import within
from holdfast.runtime.net.proxying import MOST_HEAD, ProxyAddress, connect_request, refusal
from holdfast.runtime.net.race import race
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.scope import ambient

__all__ = ["Dialer", "dial"]

_MOST_INTERIM = 16


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
        own = self._trail(host, port, timeout, client) if trail is None else None
        record = own if own is not None else trail
        assert record is not None
        skipped = {Phase.TLS: tls is None, Phase.PROXY: proxy is None}
        record.route = tuple(phase for phase in record.route if not skipped.get(phase))
        if own is None:
            return await self._connect(
                record, host, port, tls, server_hostname, proxy, forced_break
            )
        try:
            async with deadline_at(own.limit, name=f"dial {own.target}"):
                stream = await self._connect(
                    own, host, port, tls, server_hostname, proxy, forced_break
                )
        except BaseException as exc:
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
        """
        try:
            async with within(trail, Phase.DNS, f"asked: {self.resolver.asks}"):
                addresses = await self.resolver.resolve(host, port, family=family)
            async with within(trail, Phase.CONNECT, f"{len(addresses)} addresses") as phase:
                return await race(addresses, trail=trail, until=phase.until, options=self.options)
        except OSError as exc:
            raise_with(trail, exc)
            raise

    async def connect_unix(self, path: str, *, timeout: Duration = NEVER) -> Stream:
        """A stream to a Unix socket.

        Raises:
            DeadlineExceeded, OSError: see `connect`.
        """
        own = self._trail(path, None, timeout, "")
        own.route = (Phase.CONNECT,)
        loop = asyncio.get_running_loop()
        async with within(own, Phase.CONNECT):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, path)
            except BaseException:
                sock.close()
                raise
            return await Stream.over(sock)

    def _trail(self, host: str, port: int | None, timeout: Duration, client: str) -> Trail:
        now = driver_of(asyncio.get_running_loop()).now()
        here = ambient()
        limit: Instant = now + timeout if here is None else min(here.limit, now + timeout)
        target = host if port is None else f"{host}:{port}"
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
        first = (host, port) if proxy is None else (proxy.host, proxy.port)
        sock = await self.connect_socket(*first, trail=trail)
        stream = await Stream.over(sock, forced_break=trail.limit if forced_break else NEVER)
        try:
            if proxy is not None:
                async with within(trail, Phase.PROXY, f"proxy {proxy}"):
                    await _tunnel(stream, host, port, proxy)
            if tls is not None:
                async with within(trail, Phase.TLS):
                    await stream.start_tls(tls, server_hostname or host)
        except BaseException as exc:
            stream.abort()
            raise_with(trail, exc)
            raise
        return stream

    def _tell(self, trail: Trail, error: BaseException | None) -> None:
        if self.observer is not None:
            self.observer.call_ended(trail, error)


async def _tunnel(stream: Stream, host: str, port: int, proxy: ProxyAddress) -> None:
    if proxy.tls is not None:
        await stream.start_tls(proxy.tls, proxy.host)
    await stream.write(connect_request(host, port, proxy.headers))
    target = f"{host}:{port}"
    for _ in range(_MOST_INTERIM):
        try:
            head = await stream.readuntil(b"\r\n\r\n", MOST_HEAD)
        except LimitExceeded:
            raise OSError(
                f"proxy {proxy} answered with a head of more than {MOST_HEAD} bytes"
            ) from None
        except asyncio.IncompleteReadError:
            raise ConnectionResetError(f"proxy {proxy} closed before it answered") from None
        said = refusal(head, proxy, target)
        if said is None:
            return
        if isinstance(said, OSError):
            raise said
    raise OSError(f"proxy {proxy} sends interim responses without an end")


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
