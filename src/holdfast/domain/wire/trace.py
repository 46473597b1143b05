"""Who a request is, on the wire.

Sources: W3C Trace Context (level 1 for the grammar, level 2 for which digits are random), and B3
propagation of OpenZipkin, which is read and never sent.

One identity: the trace id is the request id. A name of another form that the caller gave is kept
beside it. On the way out `x-request-id` is the caller's name where there is one, and the trace id
otherwise: so every hop down to the leaf logs, echoes and forwards the same two names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from holdfast.domain.context import Identity

__all__ = [
    "NO_TRACE",
    "REQUEST_ID_HEADER",
    "TraceInbound",
    "TraceParent",
    "format_traceparent",
    "identify",
    "is_sampled",
    "parse_b3",
    "parse_b3_multi",
    "parse_request_id",
    "parse_traceparent",
    "parse_tracestate",
    "trace_headers",
]

REQUEST_ID_HEADER: Final = "x-request-id"

_LONGEST_ID: Final = 128
_LONGEST_STATE: Final = 1024
_LONGEST_PARENT: Final = 256
_PARENT_00: Final = 55
_STATE_MEMBERS: Final = 32
_PARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]*)?")
_B3: Final = re.compile(
    rb"([0-9a-f]{32}|[0-9a-f]{16})-([0-9a-f]{16})(?:-([01d]))?(?:-([0-9a-f]{16}))?"
)
_HEX_TRACE: Final = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{16}")
_HEX_SPAN: Final = re.compile(rb"[0-9a-f]{16}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]+")
_NO_TRACE_ID: Final = "0" * 32
_NO_SPAN_ID: Final = "0" * 16
_B3_STATES: Final = {b"1": True, b"d": True, b"0": False, b"true": True, b"false": False}
_RANDOM_DIGITS: Final = 14


class TraceParent(NamedTuple):
    """The caller's place in a trace.

    Attributes:
        trace_id: 32 lower-case hex digits, not all zero; empty when only `sampled` was said.
        span_id: 16 lower-case hex digits, not all zero; empty when only `sampled` was said.
        sampled: the caller's decision; `None` when it left that to us.
    """

    trace_id: str
    span_id: str
    sampled: bool | None


class TraceInbound(NamedTuple):
    """What the headers of a request say about who it is, parsed.

    Attributes:
        parent: the caller's place in its trace; `None` without a valid one.
        tracestate: W3C tracestate, untouched; empty without a valid traceparent.
        request_id: what the caller named the request; empty when it did not.
    """

    parent: TraceParent | None = None
    tracestate: str = ""
    request_id: str = ""


NO_TRACE: Final = TraceInbound()


def parse_traceparent(raw: bytes) -> TraceParent | None:
    """A W3C `traceparent`; `None` when it is malformed. Never raises.

    Version `ff` is invalid. Versions after `00` may have more fields, which are skipped, as the
    specification asks.
    """
    if len(raw) > _LONGEST_PARENT:
        return None
    if not _PARENT.fullmatch(raw):
        raw = raw.strip(b" \t")
        if not _PARENT.fullmatch(raw):
            return None
    # The fields of every version to come stand where those of version 00 stand.
    text = raw.decode()
    if text.startswith("ff") or (len(text) > _PARENT_00 and text.startswith("00")):
        return None
    trace_id, span_id = text[3:35], text[36:52]
    if trace_id == _NO_TRACE_ID or span_id == _NO_SPAN_ID:
        return None
    return TraceParent(trace_id, span_id, int(text[53:55], 16) & 1 == 1)


def format_traceparent(trace_id: str, span_id: str, sampled: bool) -> str:
    """A version 00 `traceparent` whose parent is `span_id`."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def parse_tracestate(raw: bytes) -> str | None:
    """A W3C `tracestate`, untouched; `None` when it has forbidden bytes or is beyond the caps.

    Caps: 1024 bytes, 32 members.
    """
    if len(raw) > _LONGEST_STATE:
        return None
    text = raw.strip(b" \t")
    if not _PRINTABLE.fullmatch(text) or text.count(b",") >= _STATE_MEMBERS:
        return None
    return text.decode("ascii")


def _b3_ids(trace: bytes, span: bytes, sampled: bool | None) -> TraceParent | None:
    # B3 allows trace ids of 64 bits; the other half is zero then.
    trace_id, span_id = trace.decode().zfill(32), span.decode()
    if trace_id == _NO_TRACE_ID or span_id == _NO_SPAN_ID:
        return None
    return TraceParent(trace_id, span_id, sampled)


def parse_b3(raw: bytes) -> TraceParent | None:
    """A B3 single header, `trace-span-state-parent` or only a state; `None` when malformed."""
    if len(raw) > _LONGEST_PARENT:
        return None
    text = raw.strip(b" \t")
    if text in (b"0", b"1", b"d"):
        return TraceParent("", "", text != b"0")
    match = _B3.fullmatch(text)
    if match is None:
        return None
    trace, span, state, _parent = match.groups()
    return _b3_ids(trace, span, None if state is None else _B3_STATES[state])


def parse_b3_multi(
    trace: bytes = b"", span: bytes = b"", sampled: bytes = b"", flags: bytes = b""
) -> TraceParent | None:
    """The `x-b3-*` headers together; `None` when malformed or when they say nothing.

    The values `true` and `false` of early Zipkin clients are understood; flag `1` is debug, which
    implies sampled.
    """
    decision: bool | None = None
    if flags.strip(b" \t") == b"1":
        decision = True
    elif sampled:
        decision = _B3_STATES.get(sampled.strip(b" \t").lower())
        if decision is None:
            return None
    if not trace and not span:
        return None if decision is None else TraceParent("", "", decision)
    trace, span = trace.strip(b" \t"), span.strip(b" \t")
    if not _HEX_TRACE.fullmatch(trace) or not _HEX_SPAN.fullmatch(span):
        return None
    return _b3_ids(trace, span, decision)


def parse_request_id(raw: bytes) -> str | None:
    """An `x-request-id`: 1 to 128 printable ASCII characters; `None` for anything else.

    ASCII, because it is echoed and sent on, and HTTP clients refuse other characters.
    """
    if len(raw) > _LONGEST_ID + 2:
        return None
    text = raw.strip(b" \t")
    if len(text) > _LONGEST_ID or not _PRINTABLE.fullmatch(text):
        return None
    return text.decode("ascii")


def is_sampled(trace_id: str, ratio: float) -> bool:
    """Whether a trace is sampled at a ratio of 0 to 1; the same answer on every hop.

    The 56 low bits of the id are compared with a threshold, as in OpenTelemetry's consistent
    probability sampling; they are random in a UUID too, which its 64 low bits are not.
    """
    if ratio >= 1.0:
        return True
    if not ratio > 0.0:
        return False
    return int(trace_id[-_RANDOM_DIGITS:], 16) >= (1.0 - ratio) * 16.0**_RANDOM_DIGITS


def _id_from(given: str) -> str:
    """The trace id in a request id of 32 hex digits or in the form of a UUID; or empty."""
    if len(given) == 36 and _UUID.fullmatch(given):
        digits = given.replace("-", "").lower()
    elif len(given) == 32 and _HEX.fullmatch(given):
        digits = given
    else:
        return ""
    return "" if digits == _NO_TRACE_ID else digits


def identify(
    inbound: TraceInbound, *, span_id: str, new_trace: Callable[[], str], sample: float = 1.0
) -> Identity:
    """The identity of a request on this hop.

    A valid trace of the caller is continued. Without one, a request id of 32 hex digits or in the
    form of a UUID becomes the trace id; else a new one is asked for. Sampling is decided once: by
    the caller where it said so, by `is_sampled` otherwise.

    Args:
        inbound: what the headers said.
        span_id: 16 lower-case hex digits for this hop.
        new_trace: gives 32 lower-case hex digits, not all zero; called only when needed.
        sample: ratio of traces to sample, 0 to 1.
    """
    parent, tracestate, given = inbound
    if parent is None:
        trace_id, parent_id, sampled = "", "", None
    else:
        trace_id, parent_id, sampled = parent
    if not trace_id:
        tracestate = ""
        trace_id = (_id_from(given) if given else "") or new_trace()
    if sampled is None:
        sampled = is_sampled(trace_id, sample)
    if given == trace_id:
        given = ""
    return Identity(trace_id, span_id, parent_id, sampled, given, tracestate)


def trace_headers(identity: Identity, span_id: str = "") -> list[tuple[str, str]]:
    """Headers that tell the next hop who the request is; none for nobody.

    Args:
        identity: of this hop.
        span_id: the span that the call is part of; this hop's own when empty.
    """
    if not identity.trace_id:
        return []
    parent = format_traceparent(identity.trace_id, span_id or identity.span_id, identity.sampled)
    headers = [("traceparent", parent), (REQUEST_ID_HEADER, identity.echo_id)]
    if identity.tracestate:
        headers.append(("tracestate", identity.tracestate))
    return headers
