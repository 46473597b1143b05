"""One connection attempt, without waiting: begun, asked for its result once, closed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.net.resolver import Address

__all__ = [
    "ADDRESS_FLOOR",
    "DEFAULT_OPTIONS",
    "SocketOptions",
    "begun",
    "failed",
    "paced",
    "verdict",
]

ADDRESS_FLOOR: Final[Duration] = 0.1
"""Seconds that even the last of several addresses gets."""

_LEAST_DELAY: Final[Duration] = 0.01  # RFC 8305, section 8
_TELLING: Final = {
    number: place
    for place, number in enumerate(
        (
            # this process or host cannot
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOBUFS,
            errno.ENOMEM,
            # the peer has answered
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            # nobody has
            errno.ETIMEDOUT,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.EADDRNOTAVAIL,
            errno.EAFNOSUPPORT,
        )
    )
}


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What is set on a socket before it is connected.

    Attributes:
        nodelay: send small packets at once.
        keepalive: seconds of silence after which the kernel asks whether the peer is there; none
            for never. Three questions in a tenth of that time each.
        attempt_delay: seconds before the next address is tried beside the last one; less when
            there would be too little time for the rest (RFC 8305, section 5, recommends 0.25).
        local: address to connect from, no name; any when empty.
        user_timeout: seconds after which the kernel gives up a connection whose peer does not
            acknowledge what was sent, with `ETIMEDOUT`; none for its own 15 minutes. Only Linux.
    """

    nodelay: bool = True
    keepalive: Duration | None = 60.0
    attempt_delay: Duration = 0.25
    local: str = ""
    user_timeout: Duration | None = None


DEFAULT_OPTIONS: Final = SocketOptions()


def begun(address: Address, options: SocketOptions) -> tuple[socket.socket | None, int]:
    """A socket that connects, and the error number of its beginning.

    The number is 0 when it is connected and `EINPROGRESS` when it will be; after any other there is
    no socket. So a host without IPv6, or without a descriptor left, costs this address alone.
    """
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as exc:
        return None, exc.errno or errno.EINVAL
    try:
        _set_up(sock, options)
        number = _bound(sock, options.local) or sock.connect_ex(address.sockaddr)
    except OSError as exc:
        # gaierror has numbers of its own, below zero
        number = max(exc.errno or 0, 0) or errno.EINVAL
    except BaseException:
        sock.close()
        raise
    if number == 0:
        number = _to_itself(sock)
    if number in (0, errno.EINPROGRESS):
        return sock, number
    sock.close()
    return None, number


def _set_up(sock: socket.socket, options: SocketOptions) -> None:
    sock.setblocking(False)
    if options.nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.keepalive is not None:
        _keep_alive(sock, options.keepalive)
    if options.user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        millis = max(1, round(options.user_timeout * 1e3))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, millis)


def _bound(sock: socket.socket, local: str) -> int:
    """The error number of binding to `local`."""
    if not local:
        return 0
    if (":" in local) != (sock.family == socket.AF_INET6):
        return errno.EAFNOSUPPORT
    sock.bind((local, 0))
    return 0


def verdict(sock: socket.socket) -> int:
    """The error number of a connection attempt that is over: 0 when it is connected.

    To be asked once: to read `SO_ERROR` clears it, and a second answer would be success.
    """
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _to_itself(sock)


def _to_itself(sock: socket.socket) -> int:
    """TCP connects a socket to itself when the port it was given happens to be the one it calls."""
    try:
        itself = sock.getsockname() == sock.getpeername()
    except OSError as exc:
        return exc.errno or errno.ENOTCONN
    return errno.ECONNREFUSED if itself else 0


def _keep_alive(sock: socket.socket, idle: Duration) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = max(1, round(idle / 10))
    for name, value in (
        ("TCP_KEEPIDLE", max(1, round(idle))),
        ("TCP_KEEPINTVL", every),
        ("TCP_KEEPCNT", 3),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def paced(delay: Duration, addresses: int, left: Duration) -> Duration:
    """Seconds between the beginnings of two attempts, so that each address gets its floor."""
    if addresses < 2 or left == NEVER:
        return delay
    return max(_LEAST_DELAY, min(delay, (left - ADDRESS_FLOOR) / (addresses - 1)))


def failed(target: str, errors: Sequence[tuple[Address, int]]) -> OSError:
    """The error when no address could be connected: the number is the most telling one.

    A peer that says no tells more than a way that is missing, as IPv6 is on many hosts; and that
    this process has run out of descriptors tells most.
    """
    number = min((number for _, number in errors), key=_telling)
    tried = ", ".join(f"{address}: {os.strerror(number)}" for address, number in errors[:8])
    more = f" and {len(errors) - 8} more" if len(errors) > 8 else ""
    return OSError(number, f"cannot connect to {target}: {tried}{more}")


def _telling(number: int) -> int:
    """Place among the numbers, the most telling one first; the first of equal ones wins."""
    return _TELLING.get(number, len(_TELLING) // 2)
