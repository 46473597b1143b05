"""The carrier of a `ClientSession`.

A call is a scope below the ambient one and ends with it. Its limit holds for its body as well,
wherever that is read: aiohttp's own timer for the total is set to what is left, without rounding.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Callable
from typing import Any, Final, TypeVar

import aiohttp

from holdfast.adapters.aiohttp.calling import Request, Response, SessionCall
from holdfast.adapters.aiohttp.connecting import CURRENT, Dialled
from holdfast.adapters.aiohttp.connector import HoldfastConnector
from holdfast.adapters.aiohttp.errors import ERRORS
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.phases import DEFAULT_SHARES, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.outbound import PEEK, Call, Options, Outbound
from holdfast.runtime.scope import Scope

__all__ = ["instrument", "uninstrument"]

S = TypeVar("S", bound=aiohttp.ClientSession)

_MARK: Final = "_holdfast_undo"
_DIALLED: Final = "_holdfast_dialled"
_ABSENT: Final = object()
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
        TypeError: `session` is something else, or closed.
        ValueError: a number of seconds is negative.
    """
    uninstrument(session)
    options = Options(service, wire, refuse_below, reserve, raise_for_deadline, shares, observer)
    outbound = Outbound(options, ERRORS)
    subject: Any = session
    connector: Any = session.connector
    if connector is None:
        raise TypeError(f"{session!r} is closed; instrument a session before it is closed")
    if not isinstance(connector, HoldfastConnector):
        _dialling(connector).owners.add(session)
    _set(subject, "_request_class", _variant(Request, subject._request_class))
    _set(subject, "_response_class", _variant(Response, subject._response_class))
    _set(subject, "_request", _requesting(subject, subject._request, outbound, resolver))
    return session


def uninstrument(session: S) -> S:
    """Undo `instrument`; the same session. One that is not instrumented stays as it is.

    Others that share its connector stay as they are, too.

    Raises:
        TypeError: `session` is not a session of aiohttp.
    """
    subject: Any = session
    if not isinstance(subject, aiohttp.ClientSession):
        raise TypeError(f"{session!r} is not an aiohttp.ClientSession")
    _undo(subject)
    connector: Any = subject.connector
    if connector is not None:
        dialled: Dialled | None = _fields(connector).get(_DIALLED)
        if dialled is not None:
            dialled.owners.discard(subject)
            if all(owner.closed for owner in dialled.owners):
                _undo(connector)
    return session


def _dialling(connector: Any) -> Dialled:
    """What dials for a connector, which several sessions may share."""
    fields = _fields(connector)
    dialled: Dialled | None = fields.get(_DIALLED)
    if dialled is None:
        dialled = Dialled(connector, default_resolver())
        _set(connector, _DIALLED, dialled)
        for name, value in dialled.fields().items():
            _set(connector, name, value)
    return dialled


def _undo(subject: Any) -> None:
    fields = _fields(subject)
    undo: dict[str, Any] = fields.pop(_MARK, {})
    for name, value in undo.items():
        if value is _ABSENT:
            fields.pop(name, None)
        else:
            fields[name] = value


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


def _requesting(
    session: Any, inner: Callable[..., Any], outbound: Outbound, resolver: Resolver | None
) -> Callable[..., Any]:
    async def request(method: str, str_or_url: Any, **kwargs: Any) -> Any:
        try:
            url = session._build_url(str_or_url)
        except ValueError:
            return await inner(method, str_or_url, **kwargs)  # which says what is wrong with it
        call = SessionCall(outbound, session, method.upper(), url, resolver)
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
                await _look(call, response)
                response.watch(call)
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


def _explained(call: SessionCall, exc: Exception) -> Exception:
    if isinstance(exc, HoldfastError) or call.told:
        return exc
    if isinstance(exc, aiohttp.ClientResponseError) and exc.status >= 400 and exc.headers:
        # `raise_for_status` of the session was faster than we.
        try:
            call.observe(exc.status, exc.headers)
        except HoldfastError as error:
            return error
    return call.explained(exc, late=isinstance(exc, TimeoutError) and exc.errno is None)


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
        body = await _peeked(response)
    try:
        call.observe(response.status, headers, body)
    except BaseException:
        response.close()
        raise


async def _peeked(response: Any) -> bytes:
    """The whole body, which is there to be read again."""
    try:
        body: bytes = await response.content.read()
    except BaseException:
        response.close()
        raise
    if body:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # nothing takes its place yet
            response.content.unread_data(body)
    return body
