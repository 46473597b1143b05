"""The network under httpcore's synchronous pools: every single wait of a call is bounded.

A time-out of httpcore bounds one read, so a peer that sends a byte now and then is never late. Here
each wait may take what is left *then*. The dial is ours as well: its phases have their shares, and
a name server that is dead holds nobody up for longer than that.

Which call is being worked for is known by the thread, and not by the connection: one of HTTP/2 is
read by one thread for all of them.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from holdfast.adapters.httpx.blockcall import WORKING, Step
from holdfast.adapters.httpx.library import Library, library_of
from holdfast.adapters.httpx.pools import pools_below
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Phase, Shares, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.attempt import DEFAULT_OPTIONS
from holdfast.runtime.net.blockdial import connect_blocking, tls_blocking
from holdfast.runtime.net.blocking import BoundSocket, bound_of, within_limit
from holdfast.runtime.net.resolver import Resolver

__all__ = ["join_blocking", "leave_blocking", "telling"]

_Options = Iterable[tuple[Any, ...]]
_SLICE: Final = 65_536
_LEAST: Final[Duration] = 0.001
_ASLEEP: Final = threading.Event()


def _record(target: str, shares: Shares) -> Trail:
    call = WORKING.call
    if call is not None:
        return call.dial()
    # Nobody's call: the transport is in use below ours, or no longer instrumented.
    return Trail(target, monotonic(), NEVER, shares, route=DIALLING)


@contextmanager
def _dialling(library: Library) -> Generator[None]:
    """What goes wrong inside is raised as the pool expects it: it may try again.

    The pool raises it once more, without its cause, so that is the argument as well.
    """
    try:
        yield
    except PhaseTimeout as exc:
        raise library.dial_timeout(exc.trail) from exc
    except DeadlineExceeded:
        raise
    except TimeoutError as exc:
        raise library.core.ConnectTimeout(exc) from exc
    except (OSError, UnicodeError) as exc:
        raise library.core.ConnectError(exc) from exc


class Network:
    """A network backend of httpcore.

    Args:
        inner: the backend that it stands for; `uninstrument` puts that back.
        library: whose errors are raised.
        resolver: who looks names up.
        shares: how a budget is divided, for connections that no call of ours asks for.
    """

    def __init__(
        self, inner: Any, library: Library, resolver: Resolver, shares: Shares = DEFAULT_SHARES
    ) -> None:
        self.inner = inner
        self.library = library
        self._resolver = resolver
        self._shares = shares

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Duration | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> Connection:
        """A connection to `host`; `timeout` is the library's own, in seconds."""
        options = DEFAULT_OPTIONS
        if local_address is not None:
            options = replace(options, local=local_address)
        with _dialling(self.library):
            sock = connect_blocking(
                host,
                port,
                trail=_record(f"{host}:{port}", self._shares),
                resolver=self._resolver,
                options=options,
                most=NEVER if timeout is None else timeout,
            )
            return self._over(sock, socket_options)

    def connect_unix_socket(
        self, path: str, timeout: Duration | None = None, socket_options: _Options | None = None
    ) -> Connection:
        """A connection to a Unix socket."""
        until = _record(path, self._shares).begin(Phase.CONNECT, monotonic())
        with _dialling(self.library):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(_least(timeout, until))
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            return self._over(sock, socket_options)

    def _over(self, sock: socket.socket, options: _Options | None) -> Connection:
        try:
            for option in options or ():
                sock.setsockopt(*option)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, self.library)

    def sleep(self, seconds: Duration) -> None:
        """Wait before another attempt, no longer than the call may."""
        _ASLEEP.wait(_least(seconds, bound_of().at))


class Connection:
    """A network stream of httpcore.

    Args:
        sock: connected.
        library: whose errors are raised.
    """

    __slots__ = ("_library", "_sock")

    def __init__(self, sock: socket.socket, library: Library) -> None:
        self._sock = BoundSocket(sock)
        self._library = library

    def read(self, max_bytes: int, timeout: Duration | None = None) -> bytes:
        """Bytes; none at the end. `timeout` is the library's own, in seconds."""
        call = WORKING.call
        if call is not None and call.step is Step.SENDS and not call.watched:
            call.reads()
        self._sock.settimeout(timeout)
        try:
            data = self._sock.recv(max_bytes)
        except TimeoutError as exc:
            raise self._library.core.ReadTimeout(exc) from exc
        except OSError as exc:
            raise self._library.core.ReadError(exc) from exc
        if call is not None:
            call.progress.got(data)
        return data

    def write(self, buffer: bytes, timeout: Duration | None = None) -> None:
        """Send bytes. `timeout` is the library's own, in seconds, for each part of them."""
        if not buffer:
            return
        sock, call, at = self._sock, WORKING.call, 0
        if call is not None and call.step is Step.NONE and not call.watched:
            buffer = call.writes(buffer)
        view = memoryview(buffer)
        sock.settimeout(timeout)
        try:
            while at < len(view):
                size = sock.send(view[at : at + _SLICE])
                at += size
                if call is not None:
                    call.progress.sent += size
        except TimeoutError as exc:
            raise self._library.core.WriteTimeout(exc) from exc
        except OSError as exc:
            raise self._library.core.WriteError(exc) from exc

    def close(self) -> None:
        """Close; what a peer did not take in time is dropped."""
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """The same connection, with TLS from here on. It is closed when that fails."""
        trail = _record(str(server_hostname), DEFAULT_SHARES)
        with _dialling(self._library):
            if self._sock.is_tls:
                return self._tls_in_tls(ssl_context, server_hostname, timeout, trail)
            sock: socket.socket = self._sock.inner
            most = NEVER if timeout is None else timeout
            return Connection(
                tls_blocking(sock, ssl_context, server_hostname, trail, most=most), self._library
            )

    def _tls_in_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str | None,
        timeout: Duration | None,
        trail: Trail,
    ) -> Any:
        # To a proxy that is spoken to by TLS too. The library has that, for one wait at a time.
        kind = import_module(f"{self._library.core.__name__}._backends.sync").TLSinTLSStream
        until = trail.begin(Phase.TLS, monotonic())
        try:
            with within_limit(until):
                made = kind(self._sock, context, server_hostname, timeout)
        except BaseException as exc:
            self._sock.close()
            if isinstance(exc, TimeoutError) and until <= monotonic() < trail.limit:
                raise PhaseTimeout(trail) from exc
            raise
        trail.end(monotonic())
        return made

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and its users ask for."""
        sock: Any = self._sock
        if info == "ssl_object" and sock.is_tls:
            return sock.inner._sslobj
        if info == "client_addr":
            return sock.getsockname()
        if info == "server_addr":
            return sock.getpeername()
        if info == "socket":
            return sock
        if info == "is_readable":
            return _readable(self._library, sock)
        return None


def _readable(library: Library, sock: Any) -> bool:
    """Of an idle connection: has the peer closed it, or said something unasked?"""
    asked: bool = import_module(f"{library.core.__name__}._utils").is_socket_readable(sock)
    return asked


# -- networks of others ----------------------------------------------------------------------------


def _least(timeout: Duration | None, until: Instant) -> Duration | None:
    if until == NEVER:
        return timeout
    # Zero would make a socket non-blocking.
    left = max(until - monotonic(), _LEAST)
    return left if timeout is None or left < timeout else timeout


def _shrunk(timeout: Duration | None) -> Duration | None:
    return _least(timeout, bound_of().at)


class Guard:
    """A backend that somebody else has written, or a connection of one: each wait is bounded.

    Its look-up of the name is a part of connecting, and is bounded if the backend can do that.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def connect_tcp(self, host: str, port: int, timeout: Any = None, **rest: Any) -> Any:
        _enter(Phase.CONNECT)
        return Guard(self.inner.connect_tcp(host, port, timeout=_shrunk(timeout), **rest))

    def connect_unix_socket(self, path: str, timeout: Any = None, **rest: Any) -> Any:
        _enter(Phase.CONNECT)
        return Guard(self.inner.connect_unix_socket(path, timeout=_shrunk(timeout), **rest))

    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None) -> Any:
        _enter(Phase.TLS)
        return Guard(self.inner.start_tls(ssl_context, server_hostname, _shrunk(timeout)))

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        data: bytes = self.inner.read(max_bytes, timeout=_shrunk(timeout))
        if WORKING.call is not None:
            WORKING.call.progress.got(data)
        return data

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        # httpcore gives the whole time-out to every part that the socket takes.
        view = memoryview(buffer)
        for start in range(0, len(view), _SLICE):
            part = bytes(view[start : start + _SLICE])
            self.inner.write(part, timeout=_shrunk(timeout))
            if WORKING.call is not None:
                WORKING.call.progress.sent += len(part)


def _enter(phase: Phase) -> None:
    if WORKING.call is not None:
        WORKING.call.enter(phase)


def join_blocking(transport: Any, resolver: Resolver, shares: Shares) -> None:
    """Have the synchronous pools of a transport dial through us; one that has none stays as it is.

    A backend that somebody has written stays in use, and is bounded.
    """
    for pool in pools_below(transport):
        backend, library = pool._network_backend, library_of(pool)
        if not isinstance(backend, Network | Guard):
            own = import_module(f"{library.core.__name__}._backends.sync").SyncBackend
            pool._network_backend = (
                Network(backend, library, resolver, shares)
                if type(backend) is own
                else Guard(backend)
            )
        for connection in pool._connections:
            inner: Any = getattr(connection, "_connection", None)
            stream = getattr(inner, "_network_stream", None)
            if stream is not None and not isinstance(stream, Connection | Guard):
                inner._network_stream = Guard(stream)


def telling(transport: Any) -> bool:
    """Whether the pools of a transport have to tell how far a call is.

    Not where the network sees it: over connections of its own, without a proxy, by HTTP/1.1. That
    costs less.
    """
    return any(
        not isinstance(pool._network_backend, Network)
        or getattr(pool, "_http2", False)
        or any(isinstance(_stream_of(one), Guard) for one in pool._connections)
        or hasattr(pool, "_proxy_url")
        or getattr(pool, "_proxy", None) is not None
        for pool in pools_below(transport)
    )


def _stream_of(connection: Any) -> Any:
    return getattr(getattr(connection, "_connection", None), "_network_stream", None)


def leave_blocking(transport: Any) -> None:
    """Undo `join_blocking`. Connections that are open go on, bounded by nothing."""
    for pool in pools_below(transport):
        if isinstance(pool._network_backend, Network | Guard):
            pool._network_backend = pool._network_backend.inner
