"""Sockets for threads: nothing there can be cancelled, so every single wait is bounded.

A time-out of a socket bounds one wait, and a peer that sends a byte now and then is never late. A
`BoundSocket` lets each wait take what is left *then*, until an instant; and the instant is that of
the call which the thread works for, so a connection may be kept and used by the next one.

    with within_limit(call.limit, call.trail):
        sock.sendall(request)
"""

from __future__ import annotations

import io
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.kernel import persevere
from holdfast.runtime.scope import ambient

__all__ = ["BoundSocket", "bound_of", "move_bound", "within_limit"]

T = TypeVar("T")

_SLICE: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)


class _Bound(threading.local):
    """What the call that this thread works for may take."""

    at: Instant = NEVER
    most: Instant = NEVER
    trail: Trail | None = None


_BOUND: Final = _Bound()


class Bound(Protocol):
    """What bounds a wait: an instant, and the record of the call."""

    @property
    def at(self) -> Instant: ...
    @property
    def trail(self) -> Trail | None: ...


def bound_of() -> Bound:
    """What bounds the waits of this thread now."""
    return _BOUND


class within_limit:
    """`with within_limit(limit): ...`: bound the waits of this thread in the block.

    Args:
        limit: monotonic instant; never later than that of a block around this one.
        trail: the record of the call, whose bytes are counted.
    """

    __slots__ = ("_before", "_limit", "_trail")

    _before: tuple[Instant, Instant, Trail | None]

    def __init__(self, limit: Instant, trail: Trail | None = None) -> None:
        self._limit = limit
        self._trail = trail

    def __enter__(self) -> None:
        bound, limit = _BOUND, self._limit
        at, _, trail = self._before = (bound.at, bound.most, bound.trail)
        bound.at = bound.most = limit if limit < at else at
        bound.trail = self._trail or trail

    def __exit__(self, *_: object) -> None:
        _BOUND.at, _BOUND.most, _BOUND.trail = self._before


def move_bound(at: Instant) -> None:
    """Bound the waits of this thread by `at`, in the rest of the `within_limit` block around it.

    For what may take a share of the whole: no later than the limit of that block.
    """
    _BOUND.at = min(at, _BOUND.most)


class BoundSocket:
    """A connected socket, plain or TLS, whose every wait ends with the call; otherwise as it was.

    What it adds to `socket.socket`: sending is cut into slices, each of which may take what is left
    then; and after a wait that was too long while sending, closing drops what was not sent. There
    `TimeoutError` is raised, as a socket does, and when a time-out of its own is shorter, that
    counts.

    Args:
        inner: a `socket.socket` or an `SSLSocket`; it belongs to this from now on.
        scoped: whether each wait also ends with the scope that it is in, as `DeadlineExceeded`.
    """

    def __init__(self, inner: socket.socket, *, scoped: bool = False) -> None:
        self.inner: Any = inner
        self._scoped = scoped
        self._own: Duration = _seconds(inner.gettimeout())
        self._limit: Instant = NEVER
        self._trail: Trail | None = None
        self._readers = 0
        self._closed = self._stalled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def use(self, limit: Instant, trail: Trail | None = None) -> None:
        """From now on work for another call, whatever thread waits for it.

        Args:
            limit: monotonic instant by which its waits end; the bound of the thread counts as well.
            trail: its record, whose bytes are counted.
        """
        self._limit, self._trail = limit, trail

    @property
    def _until(self) -> Instant:
        until, of_thread = self._limit, _BOUND.at
        if of_thread < until:
            until = of_thread
        here = ambient() if self._scoped else None
        return until if here is None else min(until, here.limit)

    # -- time-outs -------------------------------------------------------------------------------

    def settimeout(self, seconds: Duration | None) -> None:
        """A time-out of its own for each wait; none for no other than that of the call."""
        self._own = _seconds(seconds)

    def setblocking(self, blocking: bool) -> None:
        """As of a socket."""
        self._own = NEVER if blocking else 0.0

    def gettimeout(self) -> Duration | None:
        """Seconds that a wait which begins now may take; none without a bound."""
        # Zero would say that it does not block, which TLS refuses to shake hands on.
        left = min(self._own, max(1e-6, self._until - monotonic()))
        return None if left == NEVER else left

    def _armed(self) -> Any:
        """The socket, whose next wait may take what is left."""
        own, until = self._own, self._until
        if until == NEVER:
            self.inner.settimeout(None if own == NEVER else own)
        elif own == 0.0:
            self.inner.settimeout(0.0)
        else:
            left = until - monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self.inner.settimeout(left if left < own else own)
        return self.inner

    def _late(self, exc: TimeoutError) -> TimeoutError:
        here = ambient() if self._scoped else None
        if here is None or here.remaining() > 0:
            return exc
        detail = "while waiting for a socket"
        error = DeadlineExceeded(here.cause_of(CauseKind.DEADLINE, monotonic(), detail))
        error.__cause__ = exc
        return error

    def _wait(self, call: Callable[[Any], T]) -> T:
        try:
            try:
                return call(self._armed())
            except InterruptedError:
                return persevere(lambda: call(self._armed()), 1)
        except TimeoutError as exc:
            raise self._late(exc)  # noqa: B904 - that has its cause, or is the same

    # -- receiving -------------------------------------------------------------------------------

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As of a socket."""
        data = cast(bytes, self._wait(lambda sock: sock.recv(size, flags)))
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As of a socket."""
        size = cast(int, self._wait(lambda sock: sock.recv_into(buffer, nbytes, flags)))
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        trail = self._trail or _BOUND.trail
        if trail is not None:
            trail.received += size

    # -- sending ---------------------------------------------------------------------------------

    def send(self, data: Any, flags: int = 0) -> int:
        """As of a socket."""
        try:
            size = cast(int, self._wait(lambda sock: sock.send(data, flags)))
        except TimeoutError:
            self._stalled = True
            raise
        trail = self._trail or _BOUND.trail
        if trail is not None:
            trail.sent += size
        return size

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As of a socket; all of it together ends with the call."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            at += self.send(view[at : at + _SLICE], flags)

    # -- TLS -------------------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """As of an `SSLSocket`; the whole handshake ends with the call."""
        self._wait(lambda sock: sock.do_handshake(block))

    def unwrap(self) -> Any:
        """As of an `SSLSocket`."""
        return self._wait(lambda sock: sock.unwrap())

    # -- the end ---------------------------------------------------------------------------------

    def makefile(self, mode: str = "r", buffering: int | None = None, **_: Any) -> Any:
        """A binary file that reads or writes it, as of a socket."""
        if "b" not in mode:
            raise ValueError(f"only binary files are made, got mode {mode!r}")
        raw_mode: Any = mode.replace("b", "")
        this: Any = self
        raw = socket.SocketIO(this, raw_mode)
        self._readers += 1
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if size == 0:
            return raw
        return io.BufferedWriter(raw, size) if raw_mode == "w" else io.BufferedReader(raw, size)

    def _decref_socketios(self) -> None:  # pyright: ignore[reportUnusedFunction] - SocketIO does
        self._readers -= 1
        if self._closed and self._readers <= 0:
            self._really_close()

    def close(self) -> None:
        """Close; when a file that was made of it is open, with that one."""
        self._closed = True
        if self._readers <= 0:
            self._really_close()

    def _really_close(self) -> None:
        if self._stalled:
            self.abort()
        else:
            self.inner.close()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped, and the peer told by a reset."""
        self._closed = True
        if self.inner.fileno() >= 0:
            try:
                self.inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            finally:
                self.inner.close()

    def detach(self) -> int:
        """As of a socket: give the descriptor away."""
        self._closed = True
        return cast(int, self.inner.detach())

    @property
    def is_tls(self) -> bool:
        """Whether it speaks TLS."""
        return isinstance(self.inner, ssl.SSLSocket)

    def __enter__(self) -> BoundSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BoundSocket({self.inner!r})"


def _seconds(timeout: Duration | None) -> Duration:
    return NEVER if timeout is None else timeout
