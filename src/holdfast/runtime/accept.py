"""The accept queue of a listening socket that somebody else accepts from.

The kernel completes connections on its own and keeps them in the accept queue. To the clients they
are connected, and they send; when the listener is closed, all that waits there is reset. So before
a server is told to close its listener the way in is barred, and the server is given the moment it
needs to take in what is queued.

    TCP   a socket filter that drops what asks the listener for a connection (Linux); what answers
          in a handshake that is under way passes, with the request that it may carry
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
_NO_NEW: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of the flags in the header of TCP (RFC 9293, 3.1)
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # then drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # else let it pass whole
    )
)
_INSTRUCTIONS: Final = len(_NO_NEW) // 8
_TCP_INFO: Final = 11
_UNACKED: Final = 24
"""Offset of `tcpi_unacked` in `struct tcp_info`; of a listener, the length of its accept queue."""
_TURN: Final[Duration] = 0.01
_TURNS: Final = 3
"""Looks at an empty queue before it is believed: what was accepted is made a connection later, and
the last packet of a handshake may be on its way."""


def bar(sock: socket.socket) -> bool:
    """Let no new connection into the accept queue; whether that was done."""
    with suppress(OSError):  # a kernel, or a sandbox, that has no filters
        if sock.family == socket.AF_UNIX:
            sock.shutdown(socket.SHUT_RD)
            return True
        if sys.platform.startswith("linux"):
            program = ctypes.create_string_buffer(_NO_NEW, len(_NO_NEW))
            filter_ = struct.pack("HL", _INSTRUCTIONS, ctypes.addressof(program))
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
    # Where another process listens on the same port, the kernel still sends clients this way, and
    # a client whose packet is dropped tries again only after a second. There it has to be quick.
    enough = 1 if _has_sisters(sock) else _TURNS
    while empty < enough and turns > 0:
        await asyncio.sleep(_TURN)
        left = queued(sock)
        empty = 0 if left else empty + 1
        turns -= 1
    return first - left


def _has_sisters(sock: socket.socket) -> bool:
    """Whether the port may have other listeners as well."""
    if sock.family == socket.AF_UNIX or not hasattr(socket, "SO_REUSEPORT"):
        return False
    with suppress(OSError):
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    return False
