"""The synchronous transport: nothing can be cancelled in a thread, only bounded.

A time-out of httpcore bounds one read, so a peer that sends a byte now and then is never late. Here
the network under httpcore's pool is wrapped: every single read and write of a call may take what is
left then, and no more. So headers and bodies that trickle in end at the deadline as well.

Not covered: the system's name lookup (`getaddrinfo` knows no time-out), the time between two chunks
that the caller itself spends (noticed at the next chunk), and, with a transport that is not the
library's own, whatever that does between its reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from holdfast.adapters.httpx.call import (
    PEEK,
    Call,
    Compiled,
    Options,
    content_of,
    observe,
)
from holdfast.adapters.httpx.events import watched
from holdfast.adapters.httpx.library import SyncBase, adopt, variant
from holdfast.adapters.httpx.pools import pools_below
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.runtime.clock import monotonic

__all__ = ["HoldfastTransport", "bound_network", "unbound_network"]

_LEAST: Final[Duration] = 0.001
_SLICE: Final = 65_536


class _Bound(threading.local):
    """The instant by which the call that this thread works for must be done."""

    at: Instant = NEVER


_BOUND: Final = _Bound()


@contextmanager
def _within(limit: Instant) -> Generator[None]:
    before = _BOUND.at
    _BOUND.at = min(before, limit)
    try:
        yield
    finally:
        _BOUND.at = before


def _shrunk(timeout: Duration | None) -> Duration | None:
    at = _BOUND.at
    if at == NEVER:
        return timeout
    # Zero would make a socket non-blocking.
    left = max(at - monotonic(), _LEAST)
    return left if timeout is None or left < timeout else timeout


class _Network:
    """A network backend of httpcore, or a connection of one, whose every wait is bounded."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def connect_tcp(self, host: str, port: int, timeout: Any = None, **rest: Any) -> Any:
        return _Network(self.inner.connect_tcp(host, port, timeout=_shrunk(timeout), **rest))

    def connect_unix_socket(self, path: str, timeout: Any = None, **rest: Any) -> Any:
        return _Network(self.inner.connect_unix_socket(path, timeout=_shrunk(timeout), **rest))

    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None) -> Any:
        return _Network(self.inner.start_tls(ssl_context, server_hostname, _shrunk(timeout)))

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        data: bytes = self.inner.read(max_bytes, timeout=_shrunk(timeout))
        return data

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        # httpcore gives the whole time-out to every part that the socket takes.
        view = memoryview(buffer)
        for start in range(0, len(view), _SLICE):
            self.inner.write(bytes(view[start : start + _SLICE]), timeout=_shrunk(timeout))


def bound_network(transport: Any) -> None:
    """Bound the network under the pools of a transport; what has none is left as it is."""
    for pool in pools_below(transport):
        if not isinstance(pool._network_backend, _Network):
            pool._network_backend = _Network(pool._network_backend)
        for connection in pool._connections:
            inner: Any = getattr(connection, "_connection", None)
            stream = getattr(inner, "_network_stream", None)
            if stream is not None and not isinstance(stream, _Network):
                inner._network_stream = _Network(stream)


def unbound_network(transport: Any) -> None:
    """Undo `bound_network`; connections that are open stay wrapped, but unbounded."""
    for pool in pools_below(transport):
        if isinstance(pool._network_backend, _Network):
            pool._network_backend = pool._network_backend.inner


class HoldfastTransport(SyncBase):
    """Sends what is left with every request, and never waits longer than what is left.

    Wraps any synchronous transport of httpx or httpx2. For arguments and errors see
    `AsyncHoldfastTransport`; for what a bound cannot cover here, see the module.
    """

    def __init__(
        self,
        inner: Any,
        *,
        service: str = "",
        wire: WireSettings = DEFAULT_WIRE,
        refuse_below: Duration = 0.0,
        reserve: Duration = 0.0,
        raise_for_deadline: bool = True,
    ) -> None:
        adopt(self, "BaseTransport", inner)
        self.inner = inner
        self._compiled = Compiled(Options(service, wire, refuse_below, reserve, raise_for_deadline))
        bound_network(inner)

    def handle_request(self, request: Any) -> Any:
        """Send `request`; see the class."""
        call = Call(self._compiled, request)
        call.admit()
        outgoing = call.outgoing(clamp=True)
        if outgoing is not request and call.limit != NEVER:
            watched(call, outgoing.extensions, is_async=False)
        response = _in_time(call, lambda: self.inner.handle_request(outgoing))
        call.received = 0
        kind = variant(_Body, "SyncByteStream", call.library)
        response.stream = stream = kind(call, response.stream)
        try:
            if call.left <= 0:
                raise call.over()
            if response.status_code >= 400 or call.ledger is not None:
                observe(call, response, stream.peek(PEEK) if content_of(response) else b"")
        except BaseException:
            stream.close()
            raise
        return response

    def close(self) -> None:
        """Close the inner transport."""
        self.inner.close()

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.inner.__exit__(exc_type, exc_value, traceback)

    def __repr__(self) -> str:
        return f"HoldfastTransport({self.inner!r})"


def _in_time(call: Call, work: Callable[[], Any]) -> Any:
    try:
        with _within(call.limit):
            return work()
    except Exception as exc:
        error = call.explained(exc)
        if error is exc:
            raise
        raise error from exc


class _Body:
    """A body that is read within the limit that held when the call began."""

    def __init__(self, call: Call, source: Any) -> None:
        self._call = call
        self._source = source
        self._parts: Any = None
        self._ahead: list[bytes] = []

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        return self._ahead.pop(0) if self._ahead else self._next()

    def _next(self) -> bytes:
        call = self._call
        if call.left <= 0:
            raise call.over()
        if self._parts is None:
            self._parts = iter(self._source)
        chunk = _in_time(call, lambda: next(self._parts, None))
        if chunk is None:
            raise StopIteration
        call.received += len(chunk)
        part: bytes = chunk
        return part

    def peek(self, most: int) -> bytes:
        """The beginning of the body, which stays unread."""
        size = 0
        while size < most:
            try:
                chunk = self._next()
            except StopIteration:
                break
            self._ahead.append(chunk)
            size += len(chunk)
        return b"".join(self._ahead)

    def close(self) -> None:
        with _within(self._call.limit):
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
            self._source.close()
