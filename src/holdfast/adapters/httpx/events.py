"""What the pools of httpcore tell of a call while it runs, through the `trace` extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from holdfast.adapters.httpx.call import Call
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase
from holdfast.domain.wire.budget import Decode, tightest

__all__ = ["tighter", "watched"]


def _tunnels(call: Call, info: Mapping[str, Any]) -> bool:
    """Whether a request is one to a proxy, and not the caller's."""
    return bool(info["request"].method == b"CONNECT") and call.request.method != "CONNECT"


def _sends(call: Call, info: Mapping[str, Any]) -> None:
    if _tunnels(call, info):
        call.enter(Phase.PROXY)
        return
    call.enter(Phase.REQUEST)
    call.progress.dialled = None
    if call.limit == NEVER:
        return
    # Waiting for a place in the pool, connecting and the TLS handshake take from the same budget;
    # a header from before would promise the next hop more than there is.
    budgets = call.outbound.budgets
    headers = call.outbound.codec.headers(call.left, reserve=call.reserve)
    fresh = {name.encode(): value.encode() for name, value in headers}
    request = info["request"]
    request.headers[:] = [
        (name, tighter(value, fresh.get(name.lower()), budgets.get(name.lower())))
        for name, value in request.headers
    ]


def _awaits(call: Call, info: Mapping[str, Any]) -> None:
    if not _tunnels(call, info):
        call.enter(Phase.HEADER)


def _asks_socks(call: Call, info: Mapping[str, Any]) -> None:
    call.enter(Phase.PROXY)


def _begins_http2(call: Call, info: Mapping[str, Any]) -> None:
    call.enter(Phase.REQUEST)


def _pauses(call: Call, info: Mapping[str, Any]) -> None:
    # Until the pool connects again.
    call.enter(Phase.CONNECT)


_EVENTS: Final[Mapping[str, Callable[[Call, Mapping[str, Any]], None]]] = {
    "http11.send_request_headers.started": _sends,
    "http2.send_request_headers.started": _sends,
    "http11.receive_response_headers.started": _awaits,
    "http2.receive_response_headers.started": _awaits,
    "http2.send_connection_init.started": _begins_http2,
    "socks.setup_socks5_connection.started": _asks_socks,
    "connection.retry.started": _pauses,
}
"""What the pools tell of a call, as far as it is the beginning of a phase. Those of a dial are told
by our own network."""


def watched(call: Call, extensions: dict[str, Any], *, is_async: bool) -> None:
    """Have the pool tell `call` how far it is, and whoever else is told."""
    theirs: Any = extensions.get("trace")

    if is_async:

        async def atrace(event: str, info: Mapping[str, Any]) -> None:
            begin = _EVENTS.get(event)
            if begin is not None:
                begin(call, info)
            if theirs is not None:
                await theirs(event, info)

        extensions["trace"] = atrace
    else:

        def trace(event: str, info: Mapping[str, Any]) -> None:
            begin = _EVENTS.get(event)
            if begin is not None:
                begin(call, info)
            if theirs is not None:
                theirs(event, info)

        extensions["trace"] = trace


def tighter(value: bytes, fresh: bytes | None, decode: Decode | None) -> bytes:
    """The smaller one of two values of a header that says what is left."""
    if fresh is None or decode is None:
        return value
    return fresh if tightest(decode(value), decode(fresh)) != decode(value) else value
