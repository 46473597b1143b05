"""Pools of urllib3 whose places, attempts and pauses end with the call."""

from __future__ import annotations

import threading
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import EmptyPoolError
from urllib3.util.retry import Retry

from holdfast.adapters.requests.connections import BoundConnection
from holdfast.adapters.requests.working import WORKING, PooledCall
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.phases import Phase, Shares
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver

__all__ = ["bounded_pool", "is_bounded"]

_DIAL: Final = (Phase.POOL, Phase.DNS, Phase.CONNECT)
_HTTP: Final = (Phase.REQUEST, Phase.HEADER, Phase.BODY)
_ROUTES: Final = {
    (False, False): (*_DIAL, *_HTTP),
    (True, False): (*_DIAL, Phase.TLS, *_HTTP),
    (False, True): (*_DIAL, Phase.PROXY, *_HTTP),
    (True, True): (*_DIAL, Phase.PROXY, Phase.TLS, *_HTTP),
}
"""By whether there is TLS, and whether a proxy is asked to connect."""

_DIALS: Final = "_new_conn"
_ASLEEP: Final = threading.Event()


class _BoundPool(HTTPConnectionPool):
    """To be mixed into a class of pools."""

    _retries: tuple[Retry | None, Retry | None] = (None, None)

    def urlopen(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        redirect: bool = True,
        *args: Any,
        **options: Any,
    ) -> Any:
        if WORKING.call is not None:
            source = Retry.from_int(retries, redirect=redirect, default=self.retries)
            known = self._retries
            if known[0] is not source:
                known = self._retries = (source, _bounded_retries(source))
            retries = known[1]
        before, WORKING.sending = WORKING.sending, True
        try:
            return super().urlopen(method, url, body, headers, retries, redirect, *args, **options)
        finally:
            WORKING.sending = before

    def _get_conn(self, timeout: Duration | None = None) -> Any:
        call = WORKING.call
        if call is None:
            return super()._get_conn(timeout)
        left = call.left
        if left <= 0:
            # An attempt of the library's own. The record is to say where the time went, and not
            # that there was none for this; and no other attempt comes after this error.
            raise EmptyPoolError(self, "there is no time left for another attempt")
        record, secure = call.record, self.scheme == "https"
        record.route = _ROUTES[secure, secure and self.proxy is not None]
        if self.proxy is not None and " via " not in record.target:
            record.target += f" via {self.proxy.host}:{self.proxy.port}"
        until = call.begin(Phase.POOL)
        if self.block:
            least = max(until - monotonic(), 0.0)
            timeout = least if timeout is None else min(timeout, least)
            timeout = None if timeout == float("inf") else timeout
        return super()._get_conn(timeout)


class _BoundRetry(Retry):
    """To be mixed into a class of retries: no pause is longer than the call, nor any attempt."""

    def increment(  # type: ignore[override]
        self,
        method: Any = None,
        url: Any = None,
        response: Any = None,
        error: Any = None,
        **more: Any,
    ) -> Any:
        call = WORKING.call
        if call is not None and error is not None and call.left <= 0:
            raise call.over() from error
        return super().increment(method, url, response, error, **more)

    def sleep_for_retry(self, response: Any) -> bool:
        seconds = self.get_retry_after(response)
        if seconds:
            _pause(WORKING.call, seconds)
        return bool(seconds)

    def _sleep_backoff(self) -> None:
        seconds = self.get_backoff_time()
        if seconds > 0:
            _pause(WORKING.call, seconds)


def _pause(call: PooledCall | None, seconds: Duration) -> None:
    if call is not None and call.left <= seconds:
        left = format_duration(max(0.0, call.left))
        raise call.too_little(
            f"another attempt would begin in {format_duration(seconds)}, {left} left"
        )
    if call is not None:
        call.paused(f"then a pause of {format_duration(seconds)} before another attempt")
    _ASLEEP.wait(seconds)


_RETRIES: Final[dict[type, Any]] = {}


def _bounded_retries(retries: Retry) -> Retry:
    kind = type(retries)
    if issubclass(kind, _BoundRetry):
        return retries
    if kind not in _RETRIES:
        _RETRIES[kind] = type(kind.__name__, (_BoundRetry, kind), {"__module__": kind.__module__})
    twin: Retry = object.__new__(_RETRIES[kind])
    twin.__dict__.update(retries.__dict__)
    return twin


def bounded_pool(kind: Any, resolver: Resolver, shares: Shares) -> Any:
    """The same class of pools, bounded; the class itself where its connections are no sockets."""
    theirs: Any = kind.ConnectionCls
    if not (isinstance(theirs, type) and issubclass(theirs, HTTPConnection)):
        return kind
    body = {
        "__module__": theirs.__module__,
        "holdfast_resolver": resolver,
        "holdfast_shares": shares,
        "holdfast_secure": issubclass(theirs, HTTPSConnection),
        "holdfast_dials": getattr(theirs, _DIALS) is not getattr(HTTPConnection, _DIALS),
    }
    connection = type(theirs.__name__, (BoundConnection, theirs), body)
    return type(
        kind.__name__,
        (_BoundPool, kind),
        {"ConnectionCls": connection, "__module__": kind.__module__},
    )


def is_bounded(retries: object) -> bool:
    """Whether these come from a pool of ours, so that this is one more attempt of its call."""
    return isinstance(retries, _BoundRetry)
