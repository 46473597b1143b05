"""What the environment of a request says: its path, its headers, and since when it has waited.

A synchronous server takes a request up when a worker is free, so that the longest wait is often the
one before the application is called. It is known where

    the kernel tells     gunicorn hands over the socket, and Linux knows when the last bytes of the
                         request came: the accept queue and the queue for a thread are in it
    a proxy tells        a header with the time at which it took the request; by the wall clock, so
                         only of a proxy that sets it itself, on this machine or one in step with it
    somebody else tells  `environ["holdfast.arrival"]`, an instant of the monotonic clock

Elsewhere a request arrives when the application is called.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
from typing import Any, Final

from holdfast.adapters.wsgi.types import Environ
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.wire.inbound import InboundCodec
from holdfast.domain.wire.settings import WireSettings
from holdfast.runtime.clock import wall

__all__ = ["WireKeys", "arrival_of", "environ_key", "path_of", "waited_since"]

_SOCKET: Final = "gunicorn.socket"
_ARRIVAL: Final = "holdfast.arrival"

# `struct tcp_info` of Linux: eight bytes, then numbers of 32 bits, of which the twelfth is the
# milliseconds since data last came.
_LAST_DATA: Final = struct.Struct("=52xI")
_TICK: Final[Duration] = 0.01
"""Seconds by which the kernel may be wrong: a tick of its clock, at most."""

_STARTED: Final = re.compile(r"(?:t=)?([0-9]{1,17}(?:\.[0-9]{1,9})?)")
# Seconds, milliseconds and microseconds since the epoch are told apart by their size.
_MILLIS: Final = 1e11
_MICROS: Final = 1e14
_LONGEST_WAIT: Final[Duration] = 3600.0


def environ_key(name: str) -> str:
    """The key under which a server puts the header `name`."""
    return "HTTP_" + name.upper().replace("-", "_")


class WireKeys:
    """The headers that say something to us, as keys of an environment. Made once for a policy."""

    __slots__ = ("_keys",)

    def __init__(self, wire: WireSettings, codec: InboundCodec) -> None:
        budgets = {name for name, _ in wire.headers.inbound}
        self._keys = {
            environ_key(name.decode("latin-1")): (name, name in budgets) for name in codec.names
        }

    def read(self, environ: Environ) -> list[tuple[bytes, bytes]]:
        """Those that a request has, names in lower case."""
        found: list[tuple[bytes, bytes]] = []
        for key in self._keys.keys() & environ.keys():
            name, budget = self._keys[key]
            value: bytes = environ[key].encode("latin-1", "replace")
            if budget and b"," in value:
                # It came several times; a server makes one line of them.
                found += [(name, part.strip()) for part in value.split(b",")]
            else:
                found.append((name, value))
        return found


def path_of(environ: Environ) -> str:
    """The whole path, decoded."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "") or "/"
    if path.isascii():
        return path
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def arrival_of(environ: Environ, now: Instant, header: str) -> tuple[Instant, bool]:
    """Since when the request has waited, and whether what a proxy says of that is malformed.

    Args:
        environ: of the request.
        now: of the monotonic clock.
        header: key of the header in which a proxy says it; empty for none.
    """
    told = environ.get(_ARRIVAL)
    if told is not None:
        return min(now, told), False
    waited, malformed = 0.0, False
    if header and (said := environ.get(header)) is not None:
        by_proxy = waited_since(said, wall())
        malformed = by_proxy is None
        waited = by_proxy or 0.0
    sock = environ.get(_SOCKET)
    if sock is not None:
        waited = max(waited, _waited_in_kernel(sock))
    return now - waited, malformed


def waited_since(said: str, now: float) -> Duration | None:
    """Seconds since the time that `X-Request-Start` says; `None` when that is none.

    Understood are seconds, milliseconds and microseconds since the epoch, with `t=` before them or
    not, as nginx, Heroku and Apache write them. A clock that is ahead counts as no wait.

    Args:
        said: the value.
        now: seconds since the epoch.
    """
    match = _STARTED.fullmatch(said.strip())
    if match is None:
        return None
    at = float(match[1])
    if at >= _MICROS:
        at /= 1e6
    elif at >= _MILLIS:
        at /= 1e3
    waited = max(0.0, now - at)
    return waited if waited <= _LONGEST_WAIT else None


def _waited_in_kernel(sock: Any) -> Duration:
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA.size)
        millis: int = _LAST_DATA.unpack(info)[0]
    except (OSError, struct.error):
        return 0.0  # closed meanwhile, or no TCP: nothing is known
    waited = millis / 1e3 - _TICK
    return waited if 0.0 < waited <= _LONGEST_WAIT else 0.0
