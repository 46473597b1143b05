"""The dial for threads: the same phases and shares, without a loop.

sock = dial_blocking("orders.local", 443, tls=ssl.create_default_context())
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from contextlib import suppress
from typing import Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Ended, Phase, Shares, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.attempt import (
    DEFAULT_OPTIONS,
    SocketOptions,
    begun,
    failed,
    paced,
    verdict,
)
from holdfast.runtime.net.blocking import BoundSocket, within_limit
from holdfast.runtime.net.proxying import (
    MOST_HEAD,
    ProxyAddress,
    connect_request,
    over,
    refusal,
)
from holdfast.runtime.net.race import interleaved
from holdfast.runtime.net.resolver import Address, Resolver, default_resolver
from holdfast.runtime.scope import ambient

__all__ = ["connect_blocking", "dial_blocking", "late", "tls_blocking", "tunnel_blocking"]

_MOST_INTERIM: Final = 16


def dial_blocking(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy: ProxyAddress | None = None,
    timeout: Duration = NEVER,
    resolver: Resolver | None = None,
    shares: Shares = DEFAULT_SHARES,
    options: SocketOptions = DEFAULT_OPTIONS,
) -> BoundSocket:
    """A socket to `host`, whose every wait ends with the scope that it is in.

    For the arguments see `Dialer.connect`. The socket outlives the scope that it was dialled in.
    Not both `tls` and a `proxy` with TLS of its own: a socket does not speak TLS within TLS. The
    asynchronous `dial` does.

    Raises:
        UsageError: TLS to the host through a proxy that is spoken to in TLS.
        PhaseTimeout: a phase has used up its share.
        DeadlineExceeded: there is no time left; the error says in which phase it ran out.
        OSError: `gaierror`, a refused connection, a proxy that says no, `ssl.SSLError`.
    """
    if tls is not None and proxy is not None and proxy.tls is not None:
        raise UsageError(
            f"dial_blocking cannot speak TLS to {host}:{port} through proxy {proxy}, which is "
            "spoken to in TLS itself; use the asynchronous dial, or a ProxyAddress without tls"
        )
    here = ambient()
    now = monotonic()
    limit = min(now + timeout, NEVER if here is None else here.limit)
    skipped = {Phase.TLS: tls is None, Phase.PROXY: proxy is None}
    route = tuple(phase for phase in DIALLING if not skipped.get(phase))
    trail = Trail(f"{host}:{port}", now, limit, shares, route=route)
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    try:
        sock = connect_blocking(
            *first, trail=trail, resolver=resolver or default_resolver(), options=options
        )
        if proxy is not None:
            sock = tunnel_blocking(sock, host, port, proxy, trail)
        if tls is not None:
            sock = tls_blocking(sock, tls, server_hostname or host, trail)
    except OSError as exc:
        if not isinstance(exc, DeadlineExceeded | PhaseTimeout):
            exc.add_note(trail.line())
        raise
    sock.settimeout(None)
    return BoundSocket(sock, scoped=True)


def late(trail: Trail, detail: str = "") -> DeadlineExceeded | PhaseTimeout:
    """The error for a phase that was not over in time: its share is spent, or the whole is."""
    now = monotonic()
    trail.end(now, Ended.TIMEOUT, detail)
    if not trail.spent(now):
        return PhaseTimeout(trail)
    here = ambient()
    if here is None:
        whole = trail.limit - trail.begun
        cause = Cause(CauseKind.DEADLINE, trail.target, "", now, whole, now - trail.begun)
    else:
        cause = here.cause_of(CauseKind.DEADLINE, now, trail.brief())
    error = DeadlineExceeded(cause)
    error.trail = trail
    error.add_note(trail.line())
    return error


def connect_blocking(
    host: str,
    port: int,
    *,
    trail: Trail,
    resolver: Resolver,
    options: SocketOptions = DEFAULT_OPTIONS,
    most: Duration = NEVER,
) -> socket.socket:
    """A connected socket: the first two phases alone, for somebody else's client.

    Args:
        host: a name, or an address.
        port: a TCP port.
        trail: the record of the call.
        resolver: who looks the name up.
        options: of the sockets.
        most: seconds that the client itself allows for these phases.

    Raises:
        PhaseTimeout, DeadlineExceeded, OSError: see `dial_blocking`. `TimeoutError` alone: what the
            client allows is over.
    """
    own = monotonic() + most
    until = trail.begin(Phase.DNS, monotonic())
    asked = f"asked: {resolver.asks}"
    _check(trail, min(until, own), own, asked)
    try:
        addresses = resolver.resolve_blocking(host, port, limit=min(until, own))
    except TimeoutError:
        raise _ended(trail, own, asked) from None
    except OSError as exc:
        trail.end(monotonic(), Ended.FAILED, str(exc))
        raise
    until = trail.begin(Phase.CONNECT, monotonic())
    _check(trail, min(until, own), own, "")
    sock = _race(interleaved(addresses), trail, min(until, own), options)
    if sock is None:
        raise _ended(trail, own, f"{len(addresses)} addresses")
    trail.end(monotonic())
    return sock


def _check(trail: Trail, until: Instant, own: Instant, detail: str) -> None:
    if until <= monotonic():
        raise _ended(trail, own, detail)


def _ended(trail: Trail, own: Instant, detail: str) -> OSError:
    now = monotonic()
    if own <= now and not trail.spent(now):
        trail.end(now, Ended.TIMEOUT, detail)
        return TimeoutError(trail.line())
    return late(trail, detail)


def _race(
    addresses: list[Address], trail: Trail, until: Instant, options: SocketOptions
) -> socket.socket | None:
    """The first socket that is connected; none when the time is over.

    Raises:
        OSError: no address could be connected.
    """
    delay = paced(options.attempt_delay, len(addresses), until - monotonic())
    poll = select.poll()
    running: dict[int, tuple[socket.socket, Address, Instant]] = {}
    errors: list[tuple[Address, int]] = []
    next_at: Instant = 0.0
    try:
        while addresses or running:
            now = monotonic()
            if now >= until:
                return None
            if addresses and (now >= next_at or not running):
                address = addresses.pop(0)
                sock, number = begun(address, options)
                if sock is not None and number == errno.EINPROGRESS:
                    running[sock.fileno()] = (sock, address, now)
                    poll.register(sock.fileno(), select.POLLOUT)
                    next_at = now + delay
                else:
                    _tell(trail, address, now, number)
                    if sock is not None:
                        return sock
                    errors.append((address, number))
                    next_at = now
                continue
            wake = min(until, next_at) if addresses else until
            wait = None if wake == NEVER else max(0.0, wake - now) * 1e3
            for descriptor, _ in poll.poll(wait):
                poll.unregister(descriptor)
                sock, address, began = running.pop(descriptor)
                number = verdict(sock)
                _tell(trail, address, began, number)
                if number == 0:
                    return sock
                sock.close()
                errors.append((address, number))
                next_at = monotonic()
        trail.end(monotonic(), Ended.FAILED, f"{len(errors)} addresses")
        raise failed(trail.target, errors)
    finally:
        why = "timeout" if monotonic() >= until else "cancelled"
        for sock, address, began in running.values():
            sock.close()
            trail.tried(str(address), began, monotonic(), why)


def _tell(trail: Trail, address: Address, began: Instant, number: int) -> None:
    told = os.strerror(number).lower() if number else "connected"
    trail.tried(str(address), began, monotonic(), told)


def tls_blocking(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_hostname: str | None,
    trail: Trail,
    *,
    most: Duration = NEVER,
) -> socket.socket:
    """Speak TLS over a connected socket, which is closed when that fails.

    Args:
        sock: connected.
        context: of a client.
        server_hostname: for whom the certificate must be.
        trail: the record of the call.
        most: seconds that the client itself allows for this phase.

    Raises:
        PhaseTimeout, DeadlineExceeded, OSError: see `connect_blocking`.
    """
    own = monotonic() + most
    until = min(trail.begin(Phase.TLS, monotonic()), own)
    wrapped: socket.socket = sock
    try:
        _check(trail, until, own, "")
        sock.settimeout(None if until == NEVER else max(until - monotonic(), 0.001))
        wrapped = context.wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        wrapped.settimeout(None if until == NEVER else max(until - monotonic(), 0.001))
        wrapped.do_handshake()
    except TimeoutError as exc:
        wrapped.close()
        if trail.current is None:
            raise  # there was no time to begin with
        raise _ended(trail, own, "") from exc
    except BaseException as exc:
        wrapped.close()
        trail.end(monotonic(), Ended.FAILED, type(exc).__name__)
        raise
    trail.end(monotonic())
    return wrapped


def tunnel_blocking(
    sock: socket.socket, host: str, port: int, proxy: ProxyAddress, trail: Trail
) -> socket.socket:
    """Have a proxy, to which `sock` is connected, connect to `host`; closed when that fails.

    Raises:
        PhaseTimeout, DeadlineExceeded, OSError: see `dial_blocking`.
    """
    until = trail.begin(Phase.PROXY, monotonic())
    try:
        if proxy.tls is not None:
            sock.settimeout(None if until == NEVER else max(until - monotonic(), 0.001))
            sock = proxy.tls.wrap_socket(sock, server_hostname=proxy.host)
        with within_limit(until, trail):
            _ask(BoundSocket(sock), host, port, proxy)
    except TimeoutError as exc:
        sock.close()
        raise late(trail, f"proxy {proxy}") from exc
    except BaseException as exc:
        sock.close()
        trail.end(monotonic(), Ended.FAILED, type(exc).__name__)
        raise
    trail.end(monotonic())
    sock.settimeout(None)
    return sock


def _ask(sock: BoundSocket, host: str, port: int, proxy: ProxyAddress) -> None:
    sock.settimeout(None)
    sock.sendall(connect_request(host, port, proxy.headers))
    for _ in range(_MOST_INTERIM):
        said = refusal(_head(sock, proxy), proxy, f"{host}:{port}")
        if said is None:
            return
        if isinstance(said, OSError):
            raise said
    raise OSError(errno.EPROTO, f"proxy {proxy} sends interim responses without an end")


def _head(sock: BoundSocket, proxy: ProxyAddress) -> bytes:
    # Byte by byte: what comes after the head belongs to whoever speaks through the tunnel.
    head = bytearray()
    while not over(head):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionResetError(
                errno.ECONNRESET, f"proxy {proxy} closed before it had answered"
            )
        head += byte
        if len(head) > MOST_HEAD:
            raise OSError(
                errno.EPROTO, f"proxy {proxy} answered with a head of more than {MOST_HEAD} bytes"
            )
    if not head.endswith(b"\n"):
        sock.settimeout(0.0)
        with suppress(OSError):  # it is only for people to see: what is there, without waiting
            head += sock.recv(60)
    return bytes(head)
