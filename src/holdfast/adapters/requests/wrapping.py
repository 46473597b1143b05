"""Where a call begins and ends: `urlopen` of urllib3, `send` of an adapter of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from holdfast.adapters.requests.classes import ClientClasses
from holdfast.adapters.requests.connections import peeked
from holdfast.adapters.requests.pools import is_bounded
from holdfast.adapters.requests.working import WORKING, PooledCall, working_for
from holdfast.domain.errors import HoldfastError
from holdfast.runtime.outbound import PEEK

__all__ = ["unwrap", "wrap_manager", "wrap_pool", "wrap_session"]

_MARK: Final = "_holdfast_undo"
_CLASS: Final = "__class__"


class _Hops(threading.local):
    """How often the call of this thread was sent elsewhere."""

    inside = False
    count = 0


def wrap_manager(manager: Any, made: ClientClasses) -> None:
    """Instrument a `PoolManager`."""
    unwrap(manager)
    _bounded_pools(manager, made)
    # A call of the manager inside of one is a redirect, unless a body is being sent.
    _replace(manager, "urlopen", lambda inner: _urlopen(inner, made, "", lambda _: True))


def wrap_pool(pool: Any, made: ClientClasses) -> None:
    """Instrument one pool of urllib3."""
    unwrap(pool)
    undo: dict[str, Any] = pool.__dict__.setdefault(_MARK, {})
    kind: Any = pool.__class__
    undo[_CLASS] = kind
    pool.__class__ = made.pool(kind)
    _drop_connections(pool)
    base = f"{pool.scheme}://{pool.host}" + (f":{pool.port}" if pool.port else "")
    _replace(pool, "urlopen", lambda inner: _urlopen(inner, made, base, is_bounded))


def _drop_connections(pool: Any) -> None:
    for _ in range(pool.pool.qsize()):
        connection = pool.pool.get(block=False)
        if connection is not None:
            connection.close()
        pool.pool.put(None, block=False)


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
    pools = {scheme: made.pool(kind) for scheme, kind in theirs.items()}
    _set(manager, "pool_classes_by_scheme", pools)
    manager.clear()


# -- calls -----------------------------------------------------------------------------------------


def _urlopen(
    inner: Callable[..., Any], made: ClientClasses, base: str, goes_on: Callable[[object], bool]
) -> Callable[..., Any]:
    def urlopen(method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if WORKING.call is not None:
            retries = args[2] if len(args) > 2 else kwargs.get("retries")
            if goes_on(retries) and (base or not WORKING.sending):
                return inner(method, url, *args, **kwargs)
        call = _call(made, method, base + url)
        response = _made(call, made, lambda: inner(method, url, *args, **kwargs))
        if response.status >= 400 or call.ledger is not None:
            preloaded = kwargs.get("preload_content", True)
            _observe(call, response, response.status, lambda: response.data if preloaded else b"")
        return _handed_over(call, response, response)

    return urlopen


def _send(inner: Callable[..., Any], made: ClientClasses, hops: _Hops) -> Callable[..., Any]:
    def send(request: Any, stream: bool = False, **kwargs: Any) -> Any:
        call = _call(made, request.method or "GET", request.url or "")
        call.record.redirects = hops.count
        response = _made(call, made, lambda: inner(request, stream=stream, **kwargs))
        raw = response.raw
        if response.status_code >= 400 or call.ledger is not None:
            size = response.headers.get("content-length", "")
            short = size.isdigit() and 0 < int(size) <= PEEK
            _observe(call, response, response.status_code, lambda: peeked(raw) if short else b"")
        return _handed_over(call, response, raw)

    return send


def _call(made: ClientClasses, method: str, url: str) -> PooledCall:
    return PooledCall(made.outbound, method, *_parts(url))


@lru_cache(128)
def _parts(url: str) -> tuple[str, str, str]:
    """Host, path, and all of it that may be told: without user, password and query."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return parts.hostname or "", parts.path, f"{parts.scheme}://{netloc}{parts.path}"


def _made(call: PooledCall, made: ClientClasses, work: Callable[[], Any]) -> Any:
    """The response to a call, up to its head; also its body where the library reads that itself."""
    try:
        call.admit()
        with working_for(call):
            response = work()
        if call.left <= 0:
            response.close()
            raise call.over()
        return response
    except made.known.any as exc:
        late = isinstance(exc, made.known.late) or call.left <= 0
        error = _ours(exc) or call.explained(exc, late=late)
        call.done(error)
        if error is exc:
            raise
        raise error from exc
    except BaseException as exc:
        # Of the body that is sent, of a hook, or Ctrl-C: no error of the network, but an end.
        call.done(exc)
        raise


def _handed_over(call: PooledCall, response: Any, raw: Any) -> Any:
    """The response, for the caller: its body ends the call, or has done so."""
    original = getattr(raw, "_original_response", None)
    if original is None or original.isclosed() or getattr(raw, "holdfast_call", None) is not call:
        call.done()
    return response


def _ours(exc: Exception) -> Exception | None:
    """Our own error, which requests takes for one of the network, as it is a `TimeoutError`."""
    for one in (exc, *exc.args[:1]):
        if isinstance(one, HoldfastError):
            return one
    return None


def _observe(call: PooledCall, response: Any, status: int, body: Callable[[], bytes]) -> None:
    headers = {name.lower(): value for name, value in response.headers.items()}
    try:
        look = call.worth_a_look(status, headers)
        call.observe(status, headers, body()[:PEEK] if look else b"")
    except BaseException as exc:
        call.done(exc)
        response.close()
        raise


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
        if name == _CLASS:
            subject.__class__ = value
            _drop_connections(subject)
        elif value is _MARK:
            delattr(subject, name)
        else:
            setattr(subject, name, value)
    if "pool_classes_by_scheme" in undo:
        subject.clear()
