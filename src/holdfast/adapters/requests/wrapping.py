"""Where a call begins and ends: `urlopen` of urllib3, `send` of an adapter of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

from holdfast.adapters.requests.classes import ClientClasses
from holdfast.adapters.requests.connections import peeked
from holdfast.adapters.requests.pools import is_bounded
from holdfast.adapters.requests.working import WORKING, PooledCall, working_for
from holdfast.domain.errors import HoldfastError
from holdfast.runtime.outbound import PEEK

__all__ = ["unwrap", "wrap_manager", "wrap_pool", "wrap_session"]

_MARK: Final = "_holdfast_undo"
_USERS: Final = "_holdfast_users"
_CLASS: Final = "__class__"
_CLASSES: Final = "pool_classes_by_scheme"


class _Sending(threading.local):
    """Which session sends in this thread, and how often the call was sent elsewhere.

    Attributes:
        session: the instrumented one; an adapter may belong to several.
        made: what that one is made of.
        within: the call whose body is being sent meanwhile; a `send` in it is no redirect.
        redirects: so far.
    """

    session: Any = None
    made: ClientClasses | None = None
    within: PooledCall | None = None
    redirects: int = 0


_SENDING: Final = _Sending()


def wrap_manager(manager: Any, made: ClientClasses) -> None:
    """Instrument a `PoolManager`."""
    unwrap(manager)
    _bounded_pools(manager, made, manager)
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
    """Instrument a `requests.Session`, with the adapters that it has and will have."""
    unwrap(session)

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        def send(request: Any, **kwargs: Any) -> Any:
            now, call = _SENDING, WORKING.call
            if now.session is session and now.within is call:
                # Every redirect is a `send` inside the first one.
                now.redirects += 1
                return inner(request, **kwargs)
            before = (now.session, now.made, now.within, now.redirects)
            now.session, now.made, now.within, now.redirects = session, made, call, 0
            try:
                return inner(request, **kwargs)
            except made.known.any as exc:
                _keep_notes(exc)
                raise
            finally:
                now.session, now.made, now.within, now.redirects = before

        return send

    def mounting(inner: Callable[..., Any]) -> Callable[..., Any]:
        def mount(prefix: Any, adapter: Any) -> None:
            inner(prefix, adapter)
            _wrap_adapter(adapter, made, session)

        return mount

    _replace(session, "send", counted)
    _replace(session, "mount", mounting)
    for adapter in {id(one): one for one in session.adapters.values()}.values():
        _wrap_adapter(adapter, made, session)


def _keep_notes(exc: Exception) -> None:
    # requests makes its own error of that of a body, which has the notes.
    inner = exc.args[0] if exc.args else None
    for note in getattr(inner, "__notes__", ()):
        if note not in getattr(exc, "__notes__", ()):
            exc.add_note(note)


def _wrap_adapter(adapter: Any, made: ClientClasses, session: Any) -> None:
    if not _first_user(adapter, session):
        return
    manager = getattr(adapter, "poolmanager", None)
    if manager is not None:
        _bounded_pools(manager, made, adapter)

    def proxied(inner: Callable[..., Any]) -> Callable[..., Any]:
        def proxy_manager_for(proxy: str, **kwargs: Any) -> Any:
            found = inner(proxy, **kwargs)
            _bounded_pools(found, made, adapter)
            return found

        return proxy_manager_for

    if hasattr(adapter, "proxy_manager_for"):
        for found in getattr(adapter, "proxy_manager", {}).values():
            _bounded_pools(found, made, adapter)
        _replace(adapter, "proxy_manager_for", proxied)
    _replace(adapter, "send", _send)


def _bounded_pools(manager: Any, made: ClientClasses, user: Any) -> None:
    if not _first_user(manager, user):
        return
    theirs = manager.pool_classes_by_scheme
    _set(manager, _CLASSES, {scheme: made.pool(kind) for scheme, kind in theirs.items()})
    manager.clear()


def _first_user(subject: Any, user: Any) -> bool:
    """Note that `user` needs `subject` instrumented; whether nobody did so far."""
    users: WeakSet[Any] | None = subject.__dict__.get(_USERS)
    if users is None:
        subject.__dict__[_USERS] = WeakSet([user])
        return True
    users.add(user)
    return False


# -- calls -----------------------------------------------------------------------------------------


def _urlopen(
    inner: Callable[..., Any], made: ClientClasses, base: str, goes_on: Callable[[object], bool]
) -> Callable[..., Any]:
    def urlopen(method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if WORKING.call is not None:
            retries = args[2] if len(args) > 2 else kwargs.get("retries")
            if goes_on(retries) and (base or not WORKING.sending):
                if not base:
                    WORKING.call.moved(method, *_parts(url))
                return inner(method, url, *args, **kwargs)
        call = _call(made, method, f"{base}{url}")
        response = _made(call, made, lambda: inner(method, url, *args, **kwargs))
        if response.status >= 400 or call.ledger is not None:
            preloaded = kwargs.get("preload_content", True)
            _observe(call, response, response.status, lambda: response.data if preloaded else b"")
        return _handed_over(call, response, response)

    return urlopen


def _send(inner: Callable[..., Any]) -> Callable[..., Any]:
    def send(request: Any, stream: bool = False, **kwargs: Any) -> Any:
        made = _SENDING.made
        if made is None:  # by a session that is not instrumented
            return inner(request, stream=stream, **kwargs)
        call = _call(made, request.method or "GET", request.url or "")
        call.record.redirects = _SENDING.redirects
        response = _made(call, made, lambda: inner(request, stream=stream, **kwargs))
        raw = response.raw
        if response.status_code >= 400 or call.ledger is not None:
            size = response.headers.get("content-length", "")
            short = size.isdigit() and 0 < int(size) <= PEEK
            _observe(call, response, response.status_code, lambda: peeked(raw) if short else b"")
        return _handed_over(call, response, raw)

    return send


def _call(made: ClientClasses, method: str, url: str) -> PooledCall:
    call = PooledCall(made.outbound, method, *_parts(url))
    call.resolver = made.resolver
    return call


def _parts(url: str) -> tuple[str, str, str]:
    """Host, path, and all of it that may be told: without user, password and query.

    No URL is an error here, as the library has one for it; and none is kept, for its password.
    """
    scheme, _, rest = str(url).partition("://")
    rest = rest.partition("#")[0].partition("?")[0]
    netloc, slash, path = rest.partition("/")
    netloc = netloc.rpartition("@")[2]
    bare = netloc[1:].partition("]") if netloc.startswith("[") else netloc.partition(":")
    return bare[0].lower(), slash + path, f"{scheme}://{netloc}{slash}{path}"


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
    """Undo what was done to a client, and to what is below it unless another one needs it."""
    if hasattr(subject, "adapters"):
        for adapter in subject.adapters.values():
            _unused(adapter, subject)
    _unused(subject, subject)


def _unused(subject: Any, user: Any) -> None:
    """`user` needs `subject` no more; undo what was done to it when nobody does."""
    users: WeakSet[Any] | None = subject.__dict__.get(_USERS)
    if users is not None:
        users.discard(user)
        if users:
            if subject is user:  # a manager that is called no more, though its pools are in use
                _restore(subject, "urlopen")
            return
        del subject.__dict__[_USERS]
        proxies: dict[str, Any] = getattr(subject, "proxy_manager", {})
        for manager in (getattr(subject, "poolmanager", None), *proxies.values()):
            if manager is not None:
                _unused(manager, subject)
    _restore(subject, *subject.__dict__.get(_MARK, ()))


def _restore(subject: Any, *names: str) -> None:
    undo: dict[str, Any] = subject.__dict__.get(_MARK, {})
    for name in names:
        value = undo.pop(name, _USERS)
        if value is _USERS:
            continue
        if name == _CLASS:
            subject.__class__ = value
            _drop_connections(subject)
        elif value is _MARK:
            delattr(subject, name)
        else:
            setattr(subject, name, value)
        if name == _CLASSES:
            subject.clear()
    if not undo:
        subject.__dict__.pop(_MARK, None)
