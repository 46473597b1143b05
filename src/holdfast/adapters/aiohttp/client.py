"""The carrier of a `ClientSession`.

A call is a scope below the ambient one and ends with it. Its limit holds for its body as well,
wherever that is read: aiohttp's own timer for the total is set to what is left, without rounding.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp import ClientRequest, ClientResponse
from aiohttp.helpers import BaseTimerContext

from holdfast.adapters.aiohttp.connecting import CURRENT, Dialled
from holdfast.adapters.aiohttp.connector import HoldfastConnector
from holdfast.adapters.aiohttp.errors import ERRORS
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.phases import DEFAULT_SHARES, Phase, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.net.wired import RESET
from holdfast.runtime.outbound import PEEK, Call, Options, Outbound
from holdfast.runtime.scope import Scope

__all__ = ["instrument", "uninstrument"]

S = TypeVar("S", bound=aiohttp.ClientSession)

_MARK: Final = "_holdfast_undo"
_ABSENT: Final = object()
_WITHOUT_TLS: Final = tuple(
    phase
    for phase in Phase
    if phase is not Phase.TLS and phase not in (Phase.GRPC_HEADER, Phase.GRPC_MESSAGE)
)
_BEHIND: Final[Duration] = 0.01
"""Seconds that aiohttp's timer is behind the limit, so that the scope around a call is first."""


def instrument(
    session: S,
    *,
    service: str = "",
    wire: WireSettings = DEFAULT_WIRE,
    refuse_below: Duration = 0.0,
    reserve: Duration = 0.0,
    raise_for_deadline: bool = True,
    shares: Shares = DEFAULT_SHARES,
    observer: TrailObserver | None = None,
    resolver: Resolver | None = None,
) -> S:
    """Make a session carry what is left; the same session.

    Each call may raise, beside the errors of aiohttp:

    - `DeadlineExceeded`, which is a `ServerTimeoutError` too: what was left is spent, and `phase`
      says in which phase; or the hop below answered 504 because its part was spent;
    - `InsufficientBudget`, likewise: refused before anything was sent;
    - `PhaseTimeout`, likewise: a phase has used up its share.

    A deadline of a scope around the call ends that scope, as always: by cancelling the call.

    Args:
        session: of aiohttp, with a `TCPConnector`, whose `socket_factory` is not used then, or a
            `UnixConnector`.
        service: name of the service that is called; the host when empty.
        wire: which headers are sent.
        refuse_below: seconds; a call with less left is refused before it is sent.
        reserve: seconds that are kept back from what the next hop is told.
        raise_for_deadline: whether a 504 of a hop that ran out of time is raised, or returned.
        shares: how the budget is divided over the phases.
        observer: is told of every call.
        resolver: who looks names up; that of a `HoldfastConnector`, or else the one of the process,
            when none is given.

    Raises:
        TypeError: `session` is something else.
        ValueError: a number of seconds is negative.
    """
    uninstrument(session)
    options = Options(service, wire, refuse_below, reserve, raise_for_deadline, shares, observer)
    outbound = Outbound(options, ERRORS)
    subject: Any = session
    connector: Any = session.connector
    if not isinstance(connector, HoldfastConnector):
        dialled = Dialled(connector, resolver or default_resolver())
        for name, value in dialled.fields().items():
            _set(connector, name, value)
    _set(subject, "_request_class", _variant(_Request, subject._request_class))
    _set(subject, "_response_class", _variant(_Response, subject._response_class))
    _set(subject, "_request", _requesting(subject, subject._request, outbound))
    return session


def uninstrument(session: S) -> S:
    """Undo `instrument`; the same session. One that is not instrumented stays as it is.

    Raises:
        TypeError: `session` is not a session of aiohttp.
    """
    subject: Any = session
    if not isinstance(subject, aiohttp.ClientSession):
        raise TypeError(f"{session!r} is not an aiohttp.ClientSession")
    for one in (subject, subject.connector):
        if one is None:
            continue
        fields = _fields(one)
        undo: dict[str, Any] = fields.pop(_MARK, {})
        for name, value in undo.items():
            if value is _ABSENT:
                fields.pop(name, None)
            else:
                fields[name] = value
    return session


def _fields(subject: Any) -> dict[str, Any]:
    # Not by `setattr`: a session warns of attributes that it does not know.
    fields: dict[str, Any] = subject.__dict__
    return fields


def _set(subject: Any, name: str, value: Any) -> None:
    fields = _fields(subject)
    undo: dict[str, Any] = fields.setdefault(_MARK, {})
    undo.setdefault(name, fields.get(name, _ABSENT))
    fields[name] = value


def _variant(ours: type, theirs: type) -> type:
    return type(theirs.__name__, (ours, theirs), {"__module__": ours.__module__})


# -- a call ----------------------------------------------------------------------------------------


def _requesting(session: Any, inner: Callable[..., Any], outbound: Outbound) -> Callable[..., Any]:
    async def request(method: str, str_or_url: Any, **kwargs: Any) -> Any:
        try:
            url = session._build_url(str_or_url)
        except ValueError:
            return await inner(method, str_or_url, **kwargs)  # which says what is wrong with it
        call = _Call(outbound, method.upper(), url)
        token = CURRENT.set(call)
        try:
            call.admit()
            async with Scope(call.name):
                if call.limit != NEVER:
                    kwargs["timeout"] = _bounded(session, kwargs.get("timeout"), call.left)
                try:
                    response = await inner(method, str_or_url, **kwargs)
                except asyncio.CancelledError:
                    blamed(call.trail, call.now())
                    raise
                response.watch(call)
                await _look(call, response)
        except Exception as exc:
            call.drop()
            error = _explained(call, exc)
            call.done(error)
            if error is exc:
                raise
            raise error from exc
        except asyncio.CancelledError as exc:
            call.drop()
            call.done(exc)
            raise
        finally:
            CURRENT.reset(token)
        return response

    return request


def _explained(call: Call, exc: Exception) -> Exception:
    if isinstance(exc, HoldfastError):
        return exc
    if isinstance(exc, aiohttp.ClientResponseError) and exc.status >= 400 and exc.headers:
        # `raise_for_status` of the session was faster than we.
        try:
            call.observe(exc.status, exc.headers)
        except HoldfastError as error:
            return error
    return call.explained(exc, late=isinstance(exc, TimeoutError) and exc.errno is None)


class _Call(Call):
    """A call, and the transport that it was sent by last."""

    __slots__ = ("answers", "transport")

    def __init__(self, outbound: Outbound, method: str, url: Any) -> None:
        scheme, path = url.scheme, url.raw_path
        target = f"{scheme}://{url.raw_authority.rpartition('@')[2]}{path}"
        super().__init__(outbound, method, url.host or "", path, target)
        if scheme != "https":
            self.trail.route = _WITHOUT_TLS
        self.answers = 0
        self.transport: Any = None

    def drop(self) -> None:
        """It has failed: what it has not sent is dropped. aiohttp closes, and that would wait for a
        peer which does not read, with a descriptor and all that is buffered, for ever."""
        transport = self.transport
        if transport is None or not transport.is_closing():
            return
        try:
            unsent = transport.get_write_buffer_size()
        except AttributeError:
            return  # of TLS, and closed so far that it holds nothing any more
        if unsent:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()


def _bounded(session: Any, asked: Any, left: Duration) -> aiohttp.ClientTimeout:
    """The time-outs of a call, whose total is no longer than what is left, to the millisecond."""
    timeout: Any = asked
    if not isinstance(timeout, aiohttp.ClientTimeout):
        own = isinstance(timeout, int | float)
        timeout = aiohttp.ClientTimeout(total=timeout) if own else session._timeout
    total = left + _BEHIND
    if timeout.total and timeout.total < total:
        total = timeout.total
    return aiohttp.ClientTimeout(
        total, timeout.connect, timeout.sock_read, timeout.sock_connect, math.inf
    )


async def _look(call: Call, response: Any) -> None:
    headers = response.headers
    if response.status < 400 and call.ledger is None:
        return
    body = b""
    if call.worth_a_look(response.status, headers) and 0 < (response.content_length or 0) <= PEEK:
        body = await response.read()
    try:
        call.observe(response.status, headers, body)
    except BaseException:
        response.close()
        raise


class _Request(ClientRequest):
    """A request that says when it has been sent."""

    async def send(self, conn: Any) -> ClientResponse:
        call = CURRENT.get()
        if not isinstance(call, _Call):
            return await super().send(conn)
        call.transport = conn.transport
        response = await super().send(conn)
        writer: Any = self._writer
        if writer is None or writer.done():
            call.trail.begin(Phase.HEADER, call.now())
        else:
            writer.add_done_callback(partial(_sent, call))
        return response


def _sent(call: Call, _: object) -> None:
    if call.trail.current is Phase.REQUEST:
        call.trail.begin(Phase.HEADER, call.now())


class _Response(ClientResponse):
    """A response whose body ends with its call, and whose end is the end of the call."""

    _holdfast_call: Call | None = None

    async def start(self, connection: Any) -> ClientResponse:
        call = CURRENT.get()
        if not isinstance(call, _Call):
            return await super().start(connection)
        protocol = connection.protocol
        read = protocol.read

        async def noting() -> Any:
            found = await read()
            if 101 < found[0].code < 200:
                call.trail.interim = found[0].code
            return found

        protocol.read = noting
        try:
            response = await super().start(connection)
        finally:
            del protocol.read
        trail = call.trail
        trail.redirects = call.answers
        call.answers += 1
        trail.begin(Phase.BODY, call.now())
        content: Any = response.content
        if not content.is_eof():
            content._timer = _Timer(content._timer, call, content)
        return response

    def watch(self, call: Call) -> None:
        """It is the response to `call`, after all redirects: the end of it ends the call."""
        self._holdfast_call = call
        content: Any = self.content
        if self.status == 101 or self.method == "CONNECT" or content.is_eof():
            _complete(call, content)
        else:
            content.on_eof(lambda: _complete(call, content))

    def close(self) -> None:
        super().close()
        if self._holdfast_call is not None:
            self._holdfast_call.done()

    def release(self) -> Any:
        released = super().release()
        if self._holdfast_call is not None:
            self._holdfast_call.done()
        return released


def _complete(call: Call, content: Any) -> None:
    call.trail.received = content.total_bytes
    call.done()


class _Timer(BaseTimerContext):
    """aiohttp's timer around every wait for a part of the body; what it raises becomes ours."""

    def __init__(self, inner: Any, call: Call, content: Any) -> None:
        self._inner = inner
        self._call = call
        self._content = content

    def assert_timeout(self) -> None:
        try:
            self._inner.assert_timeout()
        except TimeoutError as exc:
            raise self._late(exc) from exc

    def __enter__(self) -> BaseTimerContext:
        try:
            self._inner.__enter__()
        except TimeoutError as exc:
            raise self._late(exc) from exc
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        call = self._call
        try:
            done: bool | None = self._inner.__exit__(exc_type, exc_val, exc_tb)
        except TimeoutError as exc:
            raise self._late(exc) from exc
        if exc_val is not None:
            call.trail.received = self._content.total_bytes
            if isinstance(exc_val, asyncio.CancelledError):
                blamed(call.trail, call.now())
            call.done(exc_val)
        return done

    def _late(self, exc: TimeoutError) -> Exception:
        self._call.trail.received = self._content.total_bytes
        error = self._call.explained(exc, late=True)
        self._call.done(error)
        return error
