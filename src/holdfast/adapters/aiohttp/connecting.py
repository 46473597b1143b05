"""Connections of a `TCPConnector`, dialled by us: names, addresses, proxy and TLS are phases.

Four methods of the connector are replaced, on the one object. They are not promised to stay, so
aiohttp is pinned and a contract test reads their signatures.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver

from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Ended, Phase
from holdfast.runtime.ambient import deadline_at, shield
from holdfast.runtime.net.attempt import SocketOptions
from holdfast.runtime.net.phased import within
from holdfast.runtime.net.race import connected
from holdfast.runtime.net.resolver import Address, Resolver
from holdfast.runtime.outbound import Call, Outbound

__all__ = ["CURRENT", "SEAMS", "Dialled", "Dialling"]

_ALL: Final = tuple(p for p in Phase if p not in (Phase.GRPC_HEADER, Phase.GRPC_MESSAGE))
_ROUTES: Final = {
    # Only a tunnel is a phase: without TLS the request itself goes to the proxy.
    (tls, proxy): tuple(
        phase
        for phase in _ALL
        if (tls or phase is not Phase.TLS) and ((tls and proxy) or phase is not Phase.PROXY)
    )
    for tls in (False, True)
    for proxy in (False, True)
}
"""The phases of a call, by whether there is TLS, and a proxy."""


class Dialling(Call):
    """A call, and whose it is.

    Args:
        outbound: of the client.
        session: that calls.
        method: of the request.
        url: of the request.
        resolver: who looks names up; the one of the connector when none is given.
    """

    __slots__ = ("resolver", "session")

    def __init__(
        self,
        outbound: Outbound,
        session: Any,
        method: str,
        url: Any,
        resolver: Resolver | None = None,
    ) -> None:
        super().__init__(outbound, method, url.host or "", url.raw_path, _shown(url))
        self.session = session
        self.resolver = resolver

    def goes_to(self, req: Any) -> None:
        """It is sent there: where it was at first, or where it was redirected to."""
        self.trail.route = _ROUTES[bool(req.is_ssl()), req.proxy is not None]
        self.trail.target = f"{req.method} {_shown(req.url)}"


def _shown(url: Any) -> str:
    """A URL without secrets."""
    return f"{url.scheme}://{url.raw_authority.rpartition('@')[2]}{url.raw_path}"


CURRENT: Final[ContextVar[Dialling | None]] = ContextVar("holdfast.aiohttp", default=None)
"""The call that the running task makes."""

SEAMS: Final = (
    "connect",
    "_create_proxy_connection",
    "_start_tls_connection",
    "_wrap_create_connection",
)
"""The methods of a `TCPConnector` that are replaced."""

_SET_UP: Final[Duration] = 1.0
"""Seconds that the loop gets to make a transport; it needs two turns."""

_OTHER_SEAMS: Final = ("connect", "_create_connection")
"""And those of a connector for Unix sockets."""


class _Names(AbstractResolver):
    """Our resolver, as aiohttp asks for one."""

    def __init__(self, resolver: Resolver, before: AbstractResolver) -> None:
        self._resolver = resolver
        self._before = before

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[Any]:
        call = CURRENT.get()
        if call is None:
            return await self._before.resolve(host, port, family)
        resolver = call.resolver or self._resolver
        async with within(call.trail, Phase.DNS, f"asked: {resolver.asks}"):
            found = await resolver.resolve(host, port, family=family)
        return [
            {
                "hostname": host,
                "host": str(address.sockaddr[0]),
                "port": port,
                "family": address.family,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in found
        ]

    async def close(self) -> None:
        await self._before.close()


class Dialled:
    """The methods that take the place of a connector's.

    Args:
        connector: whose they are.
        resolver: who looks names up where a call does not say.

    Attributes:
        owners: the sessions for which it was made.
    """

    def __init__(self, connector: Any, resolver: Resolver) -> None:
        self._connector = connector
        self.owners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inner: dict[str, Callable[..., Any]] = {
            name: getattr(connector, name)
            for name in (SEAMS if hasattr(connector, SEAMS[-1]) else _OTHER_SEAMS)
        }
        before = getattr(connector, "_resolver", None)
        self._names = None if before is None else _Names(resolver, before)

    def fields(self) -> dict[str, Any]:
        """What takes whose place, by name: the methods, and who looks names up."""
        fields = {name: getattr(self, name.lstrip("_")) for name in self._inner}
        if self._names is not None:
            fields["_resolver"] = self._names
            fields["_use_dns_cache"] = False  # ours knows how long an answer is good for
        return fields

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """A connection out of the pool, or a new one."""
        call = CURRENT.get()
        if call is None or call.session is not req._session:
            # That of a session around this one, such as one whose body this one fetches.
            token = CURRENT.set(None)
            try:
                return await self._inner["connect"](req, traces, timeout)
            finally:
                CURRENT.reset(token)
        trail = call.trail
        call.goes_to(req)
        if call.left <= 0:
            raise call.over()
        trail.begin(Phase.POOL, call.now())
        connection = await self._inner["connect"](req, traces, timeout)
        trail.begin(Phase.REQUEST, call.now())
        # Waiting and connecting took from the budget, so what is left is worked out only now.
        theirs = req.headers
        ours = call.headers()
        if any(name in theirs for name, _ in ours):
            theirs.update(call.joined(theirs))
        elif ours:
            theirs.extend(ours)
        return connection

    async def create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        """A connection over a Unix socket."""
        call = CURRENT.get()
        if call is None:
            return await self._inner["_create_connection"](req, traces, timeout)
        made = None
        try:
            async with within(call.trail, Phase.CONNECT):
                made = await self._inner["_create_connection"](req, traces, timeout)
        except BaseException:
            if made is not None:
                made.abort()
            raise
        return made

    async def create_proxy_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        """A connection through a proxy, which is to connect to the host where TLS follows."""
        call = CURRENT.get()
        if call is None or not req.is_ssl():
            return await self._inner["_create_proxy_connection"](req, traces, timeout)
        scope = deadline_at(call.limit, name=Phase.PROXY.value)
        until: list[Instant] = []

        def tunnelling() -> None:
            until.append(call.trail.begin(Phase.PROXY, call.now()))
            if until[0] < scope.deadline:
                scope.move_deadline(until[0])

        token = _TUNNEL.set(tunnelling)
        try:
            async with scope:
                made = await self._inner["_create_proxy_connection"](req, traces, timeout)
        except DeadlineExceeded:
            call.trail.end(call.now(), Ended.TIMEOUT, f"proxy {req.proxy.host}:{req.proxy.port}")
            raise
        finally:
            _TUNNEL.reset(token)
        return made

    async def start_tls_connection(self, *args: Any, **kwargs: Any) -> Any:
        """TLS with the host, through the tunnel."""
        call = CURRENT.get()
        if call is None:
            return await self._inner["_start_tls_connection"](*args, **kwargs)
        async with within(call.trail, Phase.TLS):
            return await self._inner["_start_tls_connection"](*args, **kwargs)

    async def wrap_create_connection(
        self,
        *args: Any,
        addr_infos: list[Any],
        req: Any,
        timeout: Any,
        client_error: Any = aiohttp.ClientConnectorError,
        **kwargs: Any,
    ) -> Any:
        """A connection to one of the addresses; all are tried here, so none is left to try."""
        call = CURRENT.get()
        if call is None:
            return await self._inner["_wrap_create_connection"](
                *args,
                addr_infos=addr_infos,
                req=req,
                timeout=timeout,
                client_error=client_error,
                **kwargs,
            )
        addresses = [Address(info[0], info[4]) for info in addr_infos]
        addr_infos.clear()
        own = timeout.sock_connect
        try:
            async with asyncio.timeout(own if own and own > 0 else None):
                made = await self._connected(call, addresses, args, kwargs)
        except ssl.CertificateError as exc:
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, exc) from exc
        except ssl.SSLError as exc:
            raise aiohttp.ClientConnectorSSLError(req.connection_key, exc) from exc
        except OSError as exc:
            if exc.errno is None and isinstance(exc, TimeoutError):
                raise
            raise client_error(req.connection_key, exc) from exc
        tunnelling = _TUNNEL.get()
        if tunnelling is not None:
            tunnelling()
        return made

    async def _connected(
        self, call: Dialling, addresses: list[Address], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        connector = self._connector
        local = getattr(connector, "_local_addr_infos", None)
        delay = getattr(connector, "_happy_eyeballs_delay", None)
        options = SocketOptions(
            local=str(local[0][4][0]) if local else "",
            attempt_delay=NEVER if delay is None else delay,
        )
        sock = await connected(addresses, trail=call.trail, options=options)
        if not kwargs.get("ssl"):
            return await _taken(args[0], sock)
        made = None
        try:
            async with within(call.trail, Phase.TLS):
                made = await self._secured(sock, *args, **kwargs)
        except BaseException:
            if made is not None:
                made[0].abort()  # it was there a moment too late
            raise
        return made

    async def _secured(
        self, sock: socket.socket, factory: Callable[[], Any], ssl: Any, server_hostname: str
    ) -> tuple[Any, Any]:
        # In two steps, although the loop could do both in one: when it is cancelled as soon as it
        # has begun it forgets that connection, and to close the socket would leave a transport that
        # goes on with a descriptor which is that of another connection by then.
        plain, _ = await _taken(asyncio.Protocol, sock)
        protocol = factory()
        try:
            transport = await asyncio.get_running_loop().start_tls(
                plain,
                protocol,
                ssl,
                server_hostname=server_hostname,
                ssl_shutdown_timeout=getattr(self._connector, "_ssl_shutdown_timeout", None)
                or 0.001,
            )
            if transport is None:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed before TLS began")
        except BaseException:
            plain.abort()
            raise
        protocol.connection_made(transport)
        return transport, protocol


async def _taken(factory: Callable[[], Any], sock: socket.socket) -> tuple[Any, Any]:
    """A transport over a connected socket, and its protocol.

    uvloop cannot bear it when a scope ends in the very turn in which it makes one, see the dial.
    """
    made = None
    try:
        async with shield(_SET_UP, name="transport"):
            made = await asyncio.get_running_loop().create_connection(factory, sock=sock)
    except BaseException:
        if made is not None:
            made[0].abort()
        raise
    return made


_TUNNEL: Final[ContextVar[Callable[[], None] | None]] = ContextVar("holdfast.tunnel", default=None)
