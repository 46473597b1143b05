"""Where a call begins and ends: `urlopen` of urllib3, `send` of an adapter of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from holdfast.adapters.requests.classes import ClientClasses
from holdfast.adapters.requests.connections import working_for
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.blocking import within_limit
from holdfast.runtime.outbound import PEEK, Call

__all__ = ["unwrap", "wrap_manager", "wrap_pool", "wrap_session"]

_MARK: Final = "_holdfast_undo"
_STANDARD: Final = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


class _Hops(threading.local):
    """How often the call of this thread was sent elsewhere."""

    inside = False
    count = 0


def wrap_manager(manager: Any, made: ClientClasses) -> None:
    """Instrument a `PoolManager`."""
    unwrap(manager)
    _bounded_pools(manager, made)
    _replace(manager, "urlopen", lambda inner: _urlopen(inner, made, "", None))


def wrap_pool(pool: Any, made: ClientClasses) -> None:
    """Instrument one pool of urllib3."""
    unwrap(pool)
    _set(pool, "ConnectionCls", made.connections[pool.scheme])
    base = f"{pool.scheme}://{pool.host}" + (f":{pool.port}" if pool.port else "")
    _replace(pool, "urlopen", lambda inner: _urlopen(inner, made, base, pool))


def wrap_session(session: Any, made: ClientClasses) -> None:
    """Instrument a `requests.Session`."""
    unwrap(session)
    hops = _Hops()

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        # Every redirect is a `send` inside the first one.
        def send(request: Any, **kwargs: Any) -> Any:
            if hops.inside:
                hops.count += 1
                return inner(request, **kwargs)
            hops.inside, hops.count = True, 0
            try:
                return inner(request, **kwargs)
            finally:
                hops.inside = False

        return send

    _replace(session, "send", counted)
    for adapter in {id(one): one for one in session.adapters.values()}.values():
        _wrap_adapter(adapter, made, hops)


def _wrap_adapter(adapter: Any, made: ClientClasses, hops: _Hops) -> None:
    unwrap(adapter)
    manager = getattr(adapter, "poolmanager", None)
    if manager is not None:
        unwrap(manager)
        _bounded_pools(manager, made)

    def proxied(inner: Callable[..., Any]) -> Callable[..., Any]:
        def proxy_manager_for(proxy: str, **kwargs: Any) -> Any:
            found = inner(proxy, **kwargs)
            if not hasattr(found, _MARK):
                _bounded_pools(found, made)
            return found

        return proxy_manager_for

    if hasattr(adapter, "proxy_manager_for"):
        for found in getattr(adapter, "proxy_manager", {}).values():
            unwrap(found)
            _bounded_pools(found, made)
        _replace(adapter, "proxy_manager_for", proxied)
    _replace(adapter, "send", lambda inner: _send(inner, made, hops))


def _bounded_pools(manager: Any, made: ClientClasses) -> None:
    theirs = manager.pool_classes_by_scheme
    # Those of a SOCKS proxy connect in a way of their own.
    pools = {
        scheme: made.pools[scheme] if kind is _STANDARD.get(scheme) else kind
        for scheme, kind in theirs.items()
    }
    _set(manager, "pool_classes_by_scheme", pools)
    manager.clear()


# -- calls -----------------------------------------------------------------------------------------


def _urlopen(
    inner: Callable[..., Any], made: ClientClasses, base: str, pool: Any
) -> Callable[..., Any]:
    def urlopen(method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        call = _call(made, method, base + url)
        with working_for(call) as nested:
            if nested:
                return inner(method, url, *args, **kwargs)
            response = _made(call, made, lambda: inner(method, url, *args, **kwargs))
        headers = {name.lower(): value for name, value in response.headers.items()}
        preloaded = kwargs.get("preload_content", True)
        return _observed(
            call,
            made,
            response,
            response.status,
            headers,
            lambda: response.data if preloaded else b"",
        )

    return urlopen


def _send(inner: Callable[..., Any], made: ClientClasses, hops: _Hops) -> Callable[..., Any]:
    def send(request: Any, stream: bool = False, **kwargs: Any) -> Any:
        call = _call(made, request.method or "GET", request.url or "")
        call.trail.redirects = hops.count
        with working_for(call):
            response = _made(call, made, lambda: inner(request, stream=stream, **kwargs))
        headers = {name.lower(): value for name, value in response.headers.items()}
        short = 0 < int(headers.get("content-length", "0") or 0) <= PEEK
        return _observed(
            call,
            made,
            response,
            response.status_code,
            headers,
            lambda: response.content if short else b"",
        )

    return send


def _call(made: ClientClasses, method: str, url: str) -> Call:
    parts = urlsplit(url)
    host = parts.hostname or ""
    target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    call = Call(made.outbound, method, host, parts.path, target)
    skipped = () if parts.scheme == "https" else (Phase.TLS,)
    call.trail.route = tuple(phase for phase in call.trail.route if phase not in skipped)
    return call


def _made(call: Call, made: ClientClasses, work: Callable[[], Any]) -> Any:
    """The response to a call, up to its head; also its body where the library reads that itself."""
    try:
        call.admit()
        call.trail.begin(Phase.POOL, monotonic())
        with within_limit(call.limit if call.limit != NEVER else NEVER, call.trail):
            response = work()
            if call.left <= 0:
                raise call.over()
            return response
    except made.known.any as exc:
        late = isinstance(exc, made.known.late) or call.left <= 0
        error = exc if isinstance(exc, HoldfastError) else call.explained(exc, late=late)
        call.done(error)
        if error is exc:
            raise
        raise error from exc


def _observed(
    call: Call,
    made: ClientClasses,
    response: Any,
    status: int,
    headers: dict[str, str],
    body: Callable[[], bytes],
) -> Any:
    if status < 400 and call.ledger is None:
        return response
    try:
        look = call.worth_a_look(status, headers)
        call.observe(status, headers, body()[:PEEK] if look else b"")
    except BaseException as exc:
        response.close()
        call.done(exc)
        raise
    return response


# -- undoing ---------------------------------------------------------------------------------------


def _replace(subject: Any, name: str, change: Callable[[Any], Any]) -> None:
    _set(subject, name, change(getattr(subject, name)))


def _set(subject: Any, name: str, value: Any) -> None:
    undo: dict[str, Any] = subject.__dict__.setdefault(_MARK, {})
    undo.setdefault(name, subject.__dict__.get(name, _MARK))
    setattr(subject, name, value)


def unwrap(subject: Any) -> None:
    """Undo what was done to a client and to what is below it."""
    for below in (
        *getattr(subject, "adapters", {}).values(),
        getattr(subject, "poolmanager", None),
    ):
        if below is not None:
            unwrap(below)
    for below in (
        getattr(subject, "proxy_manager", {}).values() if hasattr(subject, "proxy_manager") else ()
    ):
        unwrap(below)
    undo: dict[str, Any] = subject.__dict__.pop(_MARK, {})
    for name, value in undo.items():
        if value is _MARK:
            delattr(subject, name)
        else:
            setattr(subject, name, value)
    if "pool_classes_by_scheme" in undo:
        subject.clear()
