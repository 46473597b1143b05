"""Connections for the pools of urllib3, dialled and bounded by us.

Which call a connection works for is known by its thread: urllib3 makes a call in one thread, from
the pool to the head of the response. After that the socket knows, so that a body may be read
wherever it is handed to.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.response import HTTPResponse

from holdfast.domain.instant import NEVER, Instant
from holdfast.domain.phases import Ended, Phase, Shares, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.attempt import DEFAULT_OPTIONS
from holdfast.runtime.net.blockdial import connect_blocking, late
from holdfast.runtime.net.blocking import BoundSocket, within_limit
from holdfast.runtime.net.resolver import Resolver
from holdfast.runtime.outbound import Call

__all__ = ["BoundHTTPConnection", "BoundHTTPSConnection", "working_for"]


class _Working(threading.local):
    call: Call | None = None


_WORKING: Final = _Working()


@contextmanager
def working_for(call: Call) -> Generator[bool]:
    """This thread makes `call` in the block; gives whether it was making one already."""
    if _WORKING.call is not None:
        yield True
        return
    _WORKING.call = call
    try:
        yield False
    finally:
        _WORKING.call = None


class _Head(http.client.HTTPResponse):
    """A response whose head may come after any interim ones; http.client knows 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            status: Any = super()._read_status()  # type: ignore[misc]
            if not 101 < status[1] < 200:
                return cast("tuple[str, int, str]", status)
            if _WORKING.call is not None:
                _WORKING.call.trail.interim = status[1]
            read_headers: Any = http.client._read_headers  # type: ignore[attr-defined]
            read_headers(self.fp)


class _Body(HTTPResponse):
    """A response whose body ends with its call."""

    holdfast_call: Call

    @contextmanager
    def _error_catcher(self) -> Generator[None]:
        call = self.holdfast_call
        try:
            with super()._error_catcher():
                if call.left <= 0:
                    raise TimeoutError("timed out")
                yield
        except (HTTPError, OSError) as exc:
            error = call.explained(exc, late=call.left <= 0)
            call.done(error)
            if error is exc:
                raise
            raise error from exc
        if self._original_response is None or self._original_response.isclosed():
            call.done()


class _Bounded(HTTPConnection):
    """What both kinds of connections have in common.

    Attributes:
        holdfast_resolver: who looks names up.
        holdfast_shares: how a budget is divided, for calls that are not made through a client.
    """

    holdfast_resolver: Resolver
    holdfast_shares: Shares
    response_class = _Head
    _until: Instant = NEVER

    def _new_conn(self) -> Any:
        call = _WORKING.call
        now = monotonic()
        if call is not None and call.left <= 0:
            # A retry of the library's. The record is to say where the time went, and not this.
            call.trail.end(now, Ended.TIMEOUT)
            raise ConnectTimeoutError(self, call.trail.line())
        target = f"{self._dns_host}:{self.port}"
        trail = Trail(target, now, NEVER, self.holdfast_shares) if call is None else call.trail
        options = DEFAULT_OPTIONS
        if self.source_address:
            options = replace(options, local=self.source_address[0])
        own = self.timeout
        try:
            sock = connect_blocking(
                self._dns_host,
                self.port,
                trail=trail,
                resolver=self.holdfast_resolver,
                options=options,
                most=own if isinstance(own, int | float) else NEVER,
            )
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, str(exc)) from exc
        except OSError as exc:
            raise NewConnectionError(self, f"Failed to establish a new connection: {exc}") from exc
        for option in self.socket_options or ():
            sock.setsockopt(*option)
        bound = BoundSocket(sock)
        bound.use(NEVER if call is None else call.limit, trail)
        self._next(bound, Phase.PROXY if self._tunnel_host else self._after_tunnel())
        return bound

    def _after_tunnel(self) -> Phase | None:
        return None

    def _next(self, sock: Any, phase: Phase | None) -> None:
        """The connection is there as far as it goes; what comes next may take its share."""
        call = _WORKING.call
        own = self.timeout if isinstance(self.timeout, int | float) else NEVER
        if call is not None and phase is not None:
            self._until = call.trail.begin(phase, monotonic())
            own = min(own, max(self._until - monotonic(), 0.001))
        else:
            self._until = NEVER
        sock.settimeout(None if own == NEVER else own)

    def _tunnel(self) -> None:
        with within_limit(self._until):
            super()._tunnel()
        self._next(self.sock, self._after_tunnel())

    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError as exc:
            if _WORKING.call is None or monotonic() < self._until:
                raise
            error = late(_WORKING.call.trail)
            raise ConnectTimeoutError(self, str(error)) from error.with_traceback(exc.__traceback__)
        sock: Any = self.sock
        if sock is not None and not isinstance(sock, BoundSocket):
            self.sock = sock = BoundSocket(sock)

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        call = _WORKING.call
        if self.sock is None:
            self.connect()
        sock: Any = self.sock
        if call is None:
            sock.use(NEVER)
        else:
            trail = call.trail
            sock.use(call.limit, trail)
            trail.begin(Phase.REQUEST, monotonic())
            # Connecting has taken from the budget, so what is left is worked out only now.
            headers = dict(kwargs.get("headers") or {})
            kwargs["headers"] = {**headers, **_replacing(headers, call)}
        own = self.timeout
        sock.settimeout(own if isinstance(own, int | float) else None)
        super().request(method, url, *args, **kwargs)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        call = _WORKING.call
        if call is not None:
            call.trail.begin(Phase.HEADER, monotonic())
        asked: Any = self._response_options
        if call is None or asked is None:
            return super().getresponse()
        # The body is read when the response knows its call, and not while it is being made.
        self._response_options = asked._replace(preload_content=False)
        response: Any = super().getresponse()
        call.trail.begin(Phase.BODY, monotonic())
        response.__class__ = _Body
        response.holdfast_call = call
        if asked.preload_content:
            response._body = response.read(decode_content=asked.decode_content)
        made: HTTPResponse = response
        return made


def _replacing(headers: dict[str, str], call: Call) -> dict[str, str]:
    """Our headers, under the names that the request has for them already."""
    names = {name.lower(): name for name in headers}
    plain = {name: _text(value) for name, value in headers.items()}
    return {names.get(name, name): value for name, value in call.joined(plain).items()}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class BoundHTTPConnection(_Bounded):
    """For `http` URLs."""


class BoundHTTPSConnection(_Bounded, HTTPSConnection):
    """For `https` URLs."""

    def _after_tunnel(self) -> Phase | None:
        return Phase.TLS
