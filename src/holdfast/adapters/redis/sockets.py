"""Sockets of a thread whose every wait ends at an instant, at the price of a socket.

`holdfast.runtime.net.blocking.BoundSocket` does more, and is an object around a socket: for a
command of Redis, which takes 50 us, that is too dear. These are sockets themselves. The system is
told a new time-out only where the old one would be off by more than `SLACK`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from holdfast.adapters.redis.variants import opaque
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.clock import monotonic

__all__ = ["SLACK", "bounded_socket"]

SLACK: Final[Duration] = 0.005
"""Seconds that a wait may go on beyond its instant."""

_TLS = opaque(ssl.SSLSocket)
_TCP = opaque(socket.socket)


class _Bounded:
    """What both kinds have.

    Attributes:
        limit: monotonic instant by which its waits end; infinite without one.
        own: seconds that redis-py gives each wait; infinite for no bound.
        armed: seconds that the system has been told.
    """

    __slots__ = ()

    limit: Instant
    own: Duration
    armed: Duration

    def settimeout(self: Any, seconds: Duration | None) -> None:
        """As of a socket; the system is told when it waits."""
        self.own = NEVER if seconds is None else seconds

    def gettimeout(self) -> Duration | None:
        """As of a socket."""
        return None if self.own == NEVER else self.own

    def arm(self: Any) -> None:
        """Let the next wait take what is left.

        Raises:
            TimeoutError: nothing is.
        """
        wanted, armed = self.own, self.armed
        if wanted == 0.0:
            if armed == 0.0:
                return
        else:
            limit = self.limit
            if limit != NEVER:
                left = limit - monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                wanted = min(wanted, left)
            if wanted <= armed <= wanted + SLACK:
                return
        inner: Any = super()
        inner.settimeout(None if wanted == NEVER else wanted)
        self.armed = wanted


class _BoundedTcp(_Bounded, _TCP):  # type: ignore[misc,valid-type]
    __slots__ = ("armed", "limit", "own")


class _BoundedTls(_Bounded, _TLS):  # type: ignore[misc,valid-type]
    pass


def _armed(theirs: Callable[..., Any]) -> Any:
    def wait(self: Any, *args: Any) -> Any:
        if self.limit != NEVER or self.armed != self.own:
            self.arm()
        return theirs(self, *args)

    return wait


for _kind, _base in ((opaque(_BoundedTcp), _TCP), (opaque(_BoundedTls), _TLS)):
    for _name in ("recv", "recv_into", "send", "sendall"):
        # Not by `super()`, which costs as much again.
        setattr(_kind, _name, _armed(getattr(_base, _name)))


def bounded_socket(sock: Any) -> Any:
    """A socket of ours in the place of `sock`, which is used up."""
    own = sock.gettimeout()
    made: Any
    if isinstance(sock, ssl.SSLSocket):
        made = sock
        made.__class__ = _BoundedTls
    elif isinstance(sock, socket.socket):
        kind = opaque(_BoundedTcp)
        made = kind(sock.family, sock.type, sock.proto, fileno=sock.detach())
    else:
        return sock  # of a test, or of a library for TLS
    made.limit = NEVER
    made.own = NEVER if own is None else own
    made.armed = -1.0  # so that the first wait tells
    return made
