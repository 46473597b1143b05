"""One pass over the headers of a request, and the headers of a call.

Both codecs are compiled once from settings. `InboundCodec.read` runs for every request: one look
into a dict per header, and nothing else for headers that are not ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from holdfast.domain.context import NOBODY, Identity
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.wire.baggage import NO_BAGGAGE, format_baggage, parse_baggage
from holdfast.domain.wire.budget import DEFAULT_HEADERS, BudgetHeaders, Decode, decoder, outbound
from holdfast.domain.wire.settings import WireSettings
from holdfast.domain.wire.stage import STAGE_HEADER, parse_stage, valid_stage
from holdfast.domain.wire.trace import (
    NO_TRACE,
    TraceInbound,
    TraceParent,
    parse_b3,
    parse_b3_multi,
    parse_request_id,
    parse_traceparent,
    parse_tracestate,
    trace_headers,
)

__all__ = ["EMPTY", "Inbound", "InboundCodec", "OutboundCodec", "raw_headers"]

_OURS: Final = (
    "traceparent",
    "tracestate",
    "baggage",
    "x-request-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
)
# Headers that are one list however often they come; of the others, a second one must not differ
# from the first, and a second traceparent must not be there at all.
_LISTS: Final = frozenset({"tracestate", "baggage"})
_STAGE: Final = "(stage)"
_LONGEST_LIST: Final = 16_384


class Inbound(NamedTuple):
    """What the headers of a request say. A tuple, because one is made for every request.

    Attributes:
        left: seconds left of the caller's budget; `None` without a deadline, `0.0` when expired.
        source: name of the header that `left` is from; empty without one.
        trace: who the request is; give it to `trace.identify`.
        stage: release stage, where it is trusted; empty otherwise.
        baggage: W3C baggage.
        malformed: names of headers that were ignored because they were not in their grammar.
    """

    left: Duration | None = None
    source: str = ""
    trace: TraceInbound = NO_TRACE
    stage: str = ""
    baggage: Mapping[str, str] = NO_BAGGAGE
    malformed: tuple[str, ...] = ()

    @property
    def request_id(self) -> str:
        """What the caller named the request; empty when it did not."""
        return self.trace.request_id


EMPTY: Final = Inbound()


def raw_headers(items: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers or gRPC metadata in the form that `InboundCodec.read` takes: lower-case names, bytes.

    Characters that are not Latin-1 become `?`, which no grammar accepts in a number.
    """
    return [
        (
            name.lower().encode("latin-1", "replace"),
            value if isinstance(value, bytes) else value.encode("latin-1", "replace"),
        )
        for name, value in items
    ]


class InboundCodec:
    """Reads what a request carries. Compiled once, shared by all requests.

    Args:
        headers: headers of the time left.
        stage_header: name of the header of the release stage.
        trust_stage: whether an inbound stage is believed.
    """

    __slots__ = ("_plain", "_stage_header", "_table")

    def __init__(
        self,
        headers: BudgetHeaders = DEFAULT_HEADERS,
        stage_header: str = STAGE_HEADER,
        trust_stage: bool = False,
    ) -> None:
        table: dict[bytes, tuple[str, Decode | None]] = {
            name.encode(): (name, None) for name in _OURS
        }
        self._stage_header = stage_header.lower()
        if trust_stage:
            table[self._stage_header.encode("latin-1")] = (_STAGE, None)
        for name, grammar in headers.inbound:
            table[name] = (name.decode(), decoder(grammar))
        self._table = table
        self._plain = {name: grammar for name, (_, grammar) in table.items() if grammar}

    @classmethod
    def of(cls, settings: WireSettings) -> InboundCodec:
        """The codec that settings ask for."""
        return cls(settings.headers, settings.stage_header, settings.trust_stage)

    @property
    def names(self) -> tuple[bytes, ...]:
        """Names of the headers that it reads, for servers that have them in another form."""
        return tuple(self._table)

    def left(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Duration | None, int]:
        """Seconds left by the tightest valid header, and how many were malformed."""
        left, malformed, _ = self.glance(headers)
        return None if left == NEVER else left, malformed

    def glance(
        self, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[Duration, int, list[tuple[bytes, bytes]]]:
        """Seconds left by the tightest valid header (infinite without one), how many of these were
        malformed, and the headers that `read` or `echo` would look at: most often none.

        It is what every request needs before its work begins; the rest can wait until somebody asks
        who the request is.
        """
        table, plain = self._table, self._plain
        ours: list[tuple[bytes, bytes]] = []
        left = NEVER
        malformed = 0
        for header in headers:
            name = header[0]
            if name in table:
                ours.append(header)
                if name in plain:
                    seconds = plain[name](header[1])
                    if seconds is None:
                        malformed += 1
                    elif seconds < left:
                        left = seconds
        return left, malformed, ours

    @staticmethod
    def echo(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """What the caller named the request, as it came; none unless it did so once and validly.

        Where there is one, it is what `identify` would have the response echo.
        """
        found: bytes | None = None
        for name, value in headers:
            if name == b"x-request-id":
                if found is not None or parse_request_id(value) is None:
                    return None
                found = value
        return found

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> Inbound:
        """What the headers say. Never raises on any bytes.

        Args:
            headers: names in lower case, as ASGI gives them.
        """
        table = self._table
        hits = [(table[name], value) for name, value in headers if name in table]
        if not hits:
            return EMPTY
        return _assemble(hits, self._stage_header)

    def __repr__(self) -> str:
        return f"InboundCodec({', '.join(name.decode('latin-1') for name in self._table)})"


def _again(name: str, first: bytes, second: bytes) -> bytes:
    """The value of a header that came twice; empty, which no grammar accepts, if unclear."""
    if name in _LISTS:
        return first + b"," + second if len(first) < _LONGEST_LIST else first
    return first if first == second and name != "traceparent" else b""


def _assemble(hits: list[tuple[tuple[str, Decode | None], bytes]], stage_header: str) -> Inbound:
    left: Duration | None = None
    source = ""
    malformed: list[str] = []
    others: dict[str, bytes] = {}
    for (name, decode), value in hits:
        if decode is None:
            others[name] = _again(name, others[name], value) if name in others else value
            continue
        seconds = decode(value)
        if seconds is None:
            malformed.append(name)
        elif left is None or seconds < left:
            left, source = seconds, name
    if not others:
        return Inbound(left, source, NO_TRACE, "", NO_BAGGAGE, tuple(malformed))
    trace = _trace(others, malformed)
    stage, baggage = "", NO_BAGGAGE
    if _STAGE in others:
        stage = parse_stage(others[_STAGE]) or ""
        if not stage:
            malformed.append(stage_header)
    if "baggage" in others:
        baggage, clean = parse_baggage(others["baggage"])
        if not clean:
            malformed.append("baggage")
    return Inbound(left, source, trace, stage, baggage, tuple(malformed))


def _trace(others: dict[str, bytes], malformed: list[str]) -> TraceInbound:
    state = request_id = ""
    if "traceparent" in others:
        parent = parse_traceparent(others["traceparent"])
        if parent is None:
            malformed.append("traceparent")
        elif "tracestate" in others:
            found = parse_tracestate(others["tracestate"])
            if found is None:
                malformed.append("tracestate")
            else:
                state = found
    else:
        parent = _b3(others, malformed)
    if "x-request-id" in others:
        given = parse_request_id(others["x-request-id"])
        if given is None:
            malformed.append("x-request-id")
        else:
            request_id = given
    if parent is None and not request_id:
        return NO_TRACE
    return TraceInbound(parent, state, request_id)


def _b3(others: dict[str, bytes], malformed: list[str]) -> TraceParent | None:
    if "b3" in others:
        name, parent = "b3", parse_b3(others["b3"])
    elif any(key.startswith("x-b3-") for key in others):
        name = "x-b3-traceid"
        parent = parse_b3_multi(
            *(
                others.get(key, b"")
                for key in ("x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags")
            )
        )
    else:
        return None
    if parent is None:
        malformed.append(name)
    return parent


class OutboundCodec:
    """Writes what a call carries. Compiled once, shared by all calls."""

    __slots__ = ("_headers", "_stage_header")

    def __init__(
        self, headers: BudgetHeaders = DEFAULT_HEADERS, stage_header: str = STAGE_HEADER
    ) -> None:
        self._headers = headers
        self._stage_header = stage_header.lower()

    @classmethod
    def of(cls, settings: WireSettings) -> OutboundCodec:
        """The codec that settings ask for."""
        return cls(settings.headers, settings.stage_header)

    def headers(
        self,
        left: Duration | None,
        identity: Identity = NOBODY,
        span: str = "",
        stage: str = "",
        baggage: Mapping[str, str] = NO_BAGGAGE,
        reserve: Duration = 0.0,
    ) -> list[tuple[str, str]]:
        """Headers for one call, names in lower case.

        Args:
            left: seconds left; `None` or infinite without a deadline.
            identity: who the request is.
            span: span of the call, 16 hex digits; this hop's own when empty.
            stage: release stage; sent when it has the form of one.
            baggage: W3C baggage.
            reserve: seconds that this hop keeps for itself.
        """
        found = outbound(left, reserve, self._headers)
        found += trace_headers(identity, span)
        if stage and valid_stage(stage):
            found.append((self._stage_header, stage))
        if baggage and (text := format_baggage(baggage)):
            found.append(("baggage", text))
        return found
