"""Time-outs that the kernel keeps, for sockets whose waiting happens in somebody else's code.

For drivers in C and for plain blocking sockets. What is set here bounds every single wait, and not
a call; `blocking.BoundSocket` does better where it can be used.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final, TypeVar

from holdfast.domain.instant import NEVER, Duration

__all__ = [
    "INTERRUPTIONS",
    "Whose",
    "bound_by_kernel",
    "kernel_bounds",
    "persevere",
    "whose_timeout",
]

T = TypeVar("T")

INTERRUPTIONS: Final = 3
"""How often a system call that a signal interrupted is made again."""

_ENDED_BY_SOCKET: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINPROGRESS)
_TIMEVAL: Final = struct.Struct("@ll")
_LEAST: Final = 0.001
_LONGEST: Final = 2_147_483.0  # milliseconds in 31 bits, as seconds


class Whose(StrEnum):
    """Who says that the time is over."""

    LIMIT = "limit"
    """A limit of this process: `TimeoutError` without a number."""
    SOCKET = "socket"
    """`SO_RCVTIMEO` or `SO_SNDTIMEO`: one wait was too long."""
    KERNEL = "kernel"
    """The kernel gave up on the peer: `TCP_USER_TIMEOUT`, keep-alive, or too many retries."""


def bound_by_kernel(sock: socket.socket, left: Duration) -> None:
    """Have the kernel end each wait on a blocking socket after `left` seconds.

    Sets `SO_RCVTIMEO` and `SO_SNDTIMEO`, and `TCP_USER_TIMEOUT` where it is TCP: data that is sent
    and not acknowledged for so long ends the connection. Infinite takes them all away. A wait that
    a signal interrupts begins anew: with a signal every 0.4 s, 1 s became 7 s. So set it again from
    what is left before each call.

    Args:
        sock: in blocking mode, without a time-out of Python's: that would hide these.
        left: seconds; at least a millisecond is set, as zero means no limit to the kernel.

    Raises:
        OSError: the socket is closed.
        ValueError: `left` is nan.
    """
    if math.isnan(left):
        raise ValueError("what is left must be a number of seconds, got nan")
    seconds = 0.0 if left == NEVER else min(max(left, _LEAST), _LONGEST)
    micros = round(seconds * 1e6)
    value = _TIMEVAL.pack(*divmod(micros, 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    if _is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(seconds * 1e3))


def kernel_bounds(sock: socket.socket) -> tuple[Duration, Duration, Duration]:
    """Seconds of `SO_RCVTIMEO`, `SO_SNDTIMEO` and `TCP_USER_TIMEOUT`; infinite where not set."""
    found: list[Duration] = []
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        whole, micros = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size))
        found.append(whole + micros / 1e6 or NEVER)
    user = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) if _is_tcp(sock) else 0
    return found[0], found[1], user / 1e3 or NEVER


def whose_timeout(exc: BaseException) -> Whose | None:
    """Who says that the time is over; none when `exc` says something else."""
    if isinstance(exc, TimeoutError):
        return Whose.KERNEL if exc.errno == errno.ETIMEDOUT else Whose.LIMIT
    # A non-blocking socket says the same, but there nobody would have waited. The last of them is
    # what a connect says that `SO_SNDTIMEO` ends.
    if isinstance(exc, BlockingIOError) and exc.errno in _ENDED_BY_SOCKET:
        return Whose.SOCKET
    if isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT:
        return Whose.KERNEL
    return None


def persevere(call: Callable[[], T], interrupted: int = 0) -> T:
    """The result of `call`, which is made again when a signal interrupts it, three times at most.

    `call` has to work out what is left each time. Python itself makes interrupted calls again for
    ever, but code in C reports them.

    Args:
        call: the system call.
        interrupted: how often it was interrupted before.

    Raises:
        InterruptedError: it was interrupted once more. Nothing was done; the socket is as it was.
    """
    for _ in range(INTERRUPTIONS - interrupted):
        try:
            return call()
        except InterruptedError:
            continue
    try:
        return call()
    except InterruptedError as exc:
        raise InterruptedError(
            errno.EINTR,
            f"interrupted by signals {INTERRUPTIONS + 1} times in a row; "
            "look for a timer that sends them",
        ) from exc


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
