"""The accept queue of a listening socket that somebody else accepts from.

The kernel completes connections on its own and keeps them in the accept queue. To the clients they
are connected, and they send; when the listener is closed, all that waits there is reset. So before
a server is told to close its listener the way in is barred, and the server is given the moment it
needs to take in what is queued.

    TCP   a socket filter that drops what arrives at the listener (Linux)
    Unix  the listener is shut down for reading: new connections are refused, the queue stays
    else  nothing; the gap stays

Not for a listener from which other processes accept as well: they would be barred with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

from holdfast.domain.instant import Duration

__all__ = ["bar", "queued", "taken_in"]

_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of <asm-generic/socket.h>
_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # one instruction: return 0 bytes
_TCP_INFO: Final = 11
_UNACKED: Final = 24
"""Offset of `tcpi_unacked` in `struct tcp_info`; of a listener, the length of its accept queue."""
_TURN: Final[Duration] = 0.01
_TURNS: Final = 3
"""Looks at an empty queue before it is believed: what was accepted is made a connection later."""


def bar(sock: socket.socket) -> bool:
    """Let no new connection into the accept queue; whether that was done."""
    with suppress(OSError):  # a kernel, or a sandbox, that has no filters
        if sock.family == socket.AF_UNIX:
            sock.shutdown(socket.SHUT_RD)
            return True
        if sys.platform.startswith("linux"):
            program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
            filter_ = struct.pack("HL", 1, ctypes.addressof(program))
            sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter_)
            return True
    return False


def queued(sock: socket.socket) -> int:
    """How many connections wait to be accepted; 0 where the system does not tell."""
    if sock.family == socket.AF_UNIX or not sys.platform.startswith("linux"):
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _UNACKED + 4)
    except OSError:
        return 0
    return int(struct.unpack_from("I", info, _UNACKED)[0]) if len(info) == _UNACKED + 4 else 0


async def taken_in(sock: socket.socket, longest: Duration = 1.0) -> int:
    """Bar the way in and wait until what is queued was accepted; how many that were, about.

    Args:
        sock: the listener. A copy of the descriptor will do: what is barred is the listener itself.
        longest: seconds after which it is given up; a server may be too busy to accept.
    """
    if not bar(sock):
        return 0
    first = left = queued(sock)
    empty, turns = 0, int(longest / _TURN)
    while empty < _TURNS and turns > 0:
        await asyncio.sleep(_TURN)
        left = queued(sock)
        empty = 0 if left else empty + 1
        turns -= 1
    return first - left
