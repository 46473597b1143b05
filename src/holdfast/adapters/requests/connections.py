"""Connections for the pools of urllib3, dialled and bounded by us.

Which call a connection works for is known by its thread: urllib3 makes a call in one thread, from
the pool to the head of the response. After that the socket knows, so that a body may be read
wherever it is handed to.
"""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, cast

from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.response import HTTPResponse

from holdfast.adapters.requests.working import WORKING, PooledCall
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.attempt import DEFAULT_OPTIONS
from holdfast.runtime.net.blockdial import connect_blocking, late
from holdfast.runtime.net.blocking import BoundSocket, within_limit
from holdfast.runtime.net.resolver import Resolver

__all__ = ["BoundConnection", "peeked"]

_LEAST: Final[Duration] = 0.001
_read_headers: Final[Any] = http.client._read_headers  # type: ignore[attr-defined]


class _Head(http.client.HTTPResponse):
    """A response whose head may come after any interim ones; http.client knows 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            status: Any = super()._read_status()  # type: ignore[misc]
            if not 101 < status[1] < 200:
                return cast("tuple[str, int, str]", status)
            if WORKING.call is not None:
                WORKING.call.record.interim = status[1]
            _read_headers(self.fp)


class _Body(HTTPResponse):
    """A response whose body ends with its call."""

    holdfast_call: PooledCall

    def _error_catcher(self) -> Any:
        return _Reading(self, super()._error_catcher())

    def close(self) -> None:
        """As of a response; what is not read is not waited for."""
        super().close()
        self.holdfast_call.done()


class _Reading:
    """While a part of a body is read: errors of the library, and then ours."""

    __slots__ = ("_inner", "_response")

    def __init__(self, response: Any, inner: Any) -> None:
        self._response = response
        self._inner = inner

    def __enter__(self) -> None:
        self._inner.__enter__()
        if self._response.holdfast_call.left <= 0:
            error = TimeoutError("timed out")
            self.__exit__(TimeoutError, error, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        response = self._response
        call: PooledCall = response.holdfast_call
        try:
            swallowed: bool | None = self._inner.__exit__(kind, error, traceback)
        except (HTTPError, OSError) as exc:
            found = call.explained(exc, late=isinstance(error, TimeoutError))
            call.done(found)
            if found is exc:
                raise
            raise found from exc
        original = response._original_response
        if original is None or original.isclosed():
            call.done()
        return swallowed


class _Again(io.BytesIO):
    """What was read of a body, to be read once more; then the error that came, if one did."""

    def __init__(self, data: bytes, error: Exception | None) -> None:
        super().__init__(data)
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        """As of a file."""
        return self._or_error(super().read(size), whole=size is None or size < 0)

    def read1(self, size: int | None = -1, /) -> bytes:
        """As of a file."""
        return self._or_error(super().read1(-1 if size is None else size), whole=False)

    def _or_error(self, data: bytes, *, whole: bool) -> bytes:
        if self._error is not None and (whole or not data):
            raise self._error
        return data


def peeked(raw: object) -> bytes:
    """The whole body of a response, which stays there to be read; nothing of one of others.

    An error that comes meanwhile is kept for whoever reads the body.
    """
    body: Any = raw
    if not isinstance(raw, _Body) or not isinstance(body._fp, http.client.HTTPResponse):
        return b""
    data = b""
    error: Exception | None = None
    try:
        data = body._fp.read()
    except http.client.IncompleteRead as exc:
        data, error = exc.partial, exc
    except (http.client.HTTPException, OSError) as exc:
        error = exc
    body._fp = _Again(data, error)
    return b"" if error is not None else data


class BoundConnection(HTTPConnection):
    """To be mixed into a class of connections of urllib3.

    Attributes:
        holdfast_resolver: who looks names up.
        holdfast_shares: how a budget is divided, for calls that are not made through a client.
        holdfast_secure: whether it speaks TLS to where it goes.
        holdfast_dials: whether the class it is mixed into connects in a way of its own.
    """

    holdfast_resolver: Resolver
    holdfast_shares: Shares
    holdfast_secure: bool
    holdfast_dials: bool
    response_class = _Head
    _until: Instant = NEVER
    _ours: list[tuple[str, str]] | None = None
    _bound: BoundSocket | None = None

    # -- dialling --------------------------------------------------------------------------------

    def _new_conn(self) -> Any:
        call = WORKING.call
        sock = self._connected(call)
        self._bound = bound = BoundSocket(sock)
        bound.use(NEVER if call is None else call.limit, None if call is None else call.record)
        self._next(bound, Phase.PROXY if self._tunnel_host else self._after_tunnel())
        return bound

    def _connected(self, call: PooledCall | None) -> socket.socket:
        own = self.timeout if isinstance(self.timeout, int | float) else NEVER
        if self.holdfast_dials or (self.source_address and self.source_address[1]):
            # To one port of our own there is one attempt at a time, as the library makes them.
            return self._connected_by_theirs(call, own)
        try:
            self._dns_host.encode("idna")
        except UnicodeError:
            raise LocationParseError(f"{self.host!r}, label empty or too long") from None
        if call is None:
            target = f"{self._dns_host}:{self.port}"
            trail = Trail(target, monotonic(), NEVER, self.holdfast_shares)
        else:
            trail = call.dial()
        options = DEFAULT_OPTIONS
        if self.source_address:
            options = replace(options, local=self.source_address[0])
        try:
            sock = connect_blocking(
                self._dns_host.strip("[]"),
                self.port,
                trail=trail,
                resolver=self.holdfast_resolver if call is None else call.resolver,
                options=options,
                most=own,
            )
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, str(exc)) from exc
        except OSError as exc:
            raise NewConnectionError(self, f"Failed to establish a new connection: {exc}") from exc
        try:
            for option in self.socket_options or ():
                sock.setsockopt(*option)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connected_by_theirs(self, call: PooledCall | None, own: Duration) -> socket.socket:
        # For example through SOCKS. Its look-up of the name is a part of connecting, unbounded.
        before: Any = self.timeout
        if call is not None:
            self.timeout = _seconds(min(own, _left(call.begin(Phase.CONNECT))))
        try:
            return super()._new_conn()
        finally:
            self.timeout = before

    def _after_tunnel(self) -> Phase | None:
        return Phase.TLS if self.holdfast_secure else None

    def _next(self, sock: Any, phase: Phase | None) -> None:
        """The connection is there as far as it goes; what comes next may take its share."""
        call = WORKING.call
        own = self.timeout if isinstance(self.timeout, int | float) else NEVER
        self._until = NEVER
        if call is not None and phase is not None:
            self._until = call.begin(phase)
            own = min(own, _left(self._until))
        sock.settimeout(_seconds(own))

    def _tunnel(self) -> None:
        with within_limit(self._until):
            super()._tunnel()
        self._next(self.sock, self._after_tunnel())

    def _connect_tls_proxy(self, hostname: str, sock: Any) -> Any:
        above: Any = super()
        inner: Any = above._connect_tls_proxy(hostname, sock)
        if self._tunnel_host is None:
            return inner
        # TLS inside of TLS: the library goes on to read and write this one, wait by wait.
        call = WORKING.call
        self._bound = bound = BoundSocket(inner)
        bound.use(NEVER if call is None else call.limit, None if call is None else call.record)
        self._next(bound, Phase.PROXY)
        return bound

    def connect(self) -> None:
        call = WORKING.call
        try:
            with within_limit(NEVER if call is None else call.limit):
                super().connect()
        except TimeoutError as exc:
            if call is None or monotonic() < self._until:
                raise
            error = late(call.trail)
            raise ConnectTimeoutError(self, str(error)) from error.with_traceback(exc.__traceback__)
        sock: Any = self.sock
        if type(sock) is not BoundSocket and hasattr(sock, "detach"):
            self.sock = self._bound = cast(Any, BoundSocket(sock))

    def close(self) -> None:
        """Close; what a peer did not take in time is dropped."""
        self._bound = None
        super().close()

    # -- the call --------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        **options: Any,
    ) -> None:
        call = WORKING.call
        if self.sock is None:
            self.connect()
        bound = self._bound
        if call is None:
            if bound is not None:
                bound.use(NEVER)
        else:
            until = call.begin(Phase.REQUEST)
            if bound is not None:
                bound.use(until, call.record)
            # Connecting has taken from the budget, so what is left is worked out only now.
            ours = call.headers()
            if ours and _have_any(headers, ours):
                headers = _joined(headers, call)
            else:
                self._ours = ours
        try:
            super().request(method, url, body, headers, **options)
        finally:
            self._ours = None

    def endheaders(self, *args: Any, **options: Any) -> None:
        ours, self._ours = self._ours, None
        for name, value in ours or ():
            http.client.HTTPConnection.putheader(self, name, value)
        super().endheaders(*args, **options)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        call = WORKING.call
        asked: Any = self._response_options
        if call is None or asked is None:
            return super().getresponse()
        bound = self._bound
        until = call.begin(Phase.HEADER)
        if bound is not None:
            bound.use(until, call.record)
        # The body is read when the response knows its call, and not while it is being made.
        if asked.preload_content:
            self._response_options = asked._replace(preload_content=False)
        response: Any = super().getresponse()
        until = call.begin(Phase.BODY)
        if bound is not None:
            bound.use(until, call.record)
        response.__class__ = _Body
        response.holdfast_call = call
        if asked.preload_content:
            response._body = response.read(decode_content=asked.decode_content)
        made: HTTPResponse = response
        return made


def _left(until: Instant) -> Duration:
    # Zero would make a socket non-blocking.
    return max(until - monotonic(), _LEAST)


def _seconds(duration: Duration) -> Duration | None:
    return None if duration == NEVER else duration


def _have_any(theirs: Mapping[Any, Any] | None, ours: list[tuple[str, str]]) -> bool:
    if not theirs:
        return False
    if isinstance(theirs, dict):
        names = {_text(name).lower() for name in theirs}
        return any(name in names for name, _ in ours)
    return any(name in theirs for name, _ in ours)  # a mapping that knows no case


def _joined(theirs: Mapping[Any, Any] | None, call: PooledCall) -> dict[str, str]:
    """The headers of a request with ours, under the names that it has for them already."""
    headers = dict(theirs or {})
    names = {_text(name).lower(): name for name in headers}
    plain = {_text(name): _text(value) for name, value in headers.items()}
    for name, value in call.joined(plain).items():
        headers[names.get(name, name)] = value
    return headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
