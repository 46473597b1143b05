"""Corners of whole messages: requests, calls, and causes that travel back."""

from __future__ import annotations

import json
import math

import pytest

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Identity
from holdfast.domain.instant import NEVER
from holdfast.domain.wire.baggage import NO_BAGGAGE
from holdfast.domain.wire.budget import budget_headers
from holdfast.domain.wire.inbound import (
    EMPTY,
    Inbound,
    InboundCodec,
    OutboundCodec,
    _again,
    raw_headers,
)
from holdfast.domain.wire.problem import (
    encode_cause_header,
    parse_cause_header,
    parse_problem,
    problem,
)
from holdfast.domain.wire.settings import WireSettings
from holdfast.domain.wire.trace import NO_TRACE, TraceInbound, TraceParent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()
BUDGET = b"x-envoy-expected-rq-timeout-ms"
B3 = [(b"x-b3-traceid", TRACE.encode()), (b"x-b3-spanid", SPAN.encode())]


# -- requests -----------------------------------------------------------------------------------


def test_raw_headers_hold_latin_1_only() -> None:
    assert raw_headers([("Ü\u20ac", "\u20acü"), ("A", b"\xff")]) == [
        (b"\xfc?", b"?\xfc"),
        (b"a", b"\xff"),
    ]


def test_a_stage_is_not_believed_unless_asked_to() -> None:
    assert InboundCodec().read([(b"x-release-stage", b"canary")]) is EMPTY


@pytest.mark.parametrize(
    ("headers", "left", "malformed"),
    [
        ([], None, 0),
        ([(b"host", b"a"), (b"traceparent", PARENT)], None, 0),
        ([(BUDGET, b"1500")], 1.5, 0),
        ([(b"host", b"5"), (BUDGET, b"500"), (b"grpc-timeout", b"1S")], 0.5, 0),
        ([(BUDGET, b"1500"), (b"grpc-timeout", b"1S")], 1.0, 0),
        ([(BUDGET, b"x"), (b"grpc-timeout", b"y")], None, 2),
        ([(BUDGET, b"x"), (b"grpc-timeout", b"1S")], 1.0, 1),
    ],
)
def test_a_glance_sees_what_read_says(
    headers: list[tuple[bytes, bytes]], left: float | None, malformed: int
) -> None:
    codec = InboundCodec()
    seen, wrong, ours = codec.glance(headers)
    assert (seen, wrong) == (math.inf if left is None else left, malformed)
    assert codec.left(headers) == (left, malformed)
    assert codec.read(headers).left == left
    assert codec.read(ours) == codec.read(headers)
    assert len(codec.read(headers).malformed) == malformed


@pytest.mark.parametrize(
    ("headers", "echo"),
    [
        ([], None),
        ([(b"host", b"a")], None),
        ([(b"host", b"a"), (b"x-request-id", b" abc")], b" abc"),
        ([(b"x-request-id", b"\xff")], None),
        ([(b"x-request-id", b"abc"), (b"x-request-id", b"abc")], None),
    ],
)
def test_echo(headers: list[tuple[bytes, bytes]], echo: bytes | None) -> None:
    assert InboundCodec.echo(headers) == echo


def test_a_codec_says_what_it_reads() -> None:
    names = "traceparent, tracestate, baggage, x-request-id, b3, "
    multi = "x-b3-traceid, x-b3-spanid, x-b3-sampled, x-b3-flags"
    codec = InboundCodec(budget_headers(["grpc-timeout"], []))
    assert repr(codec) == f"InboundCodec({names}{multi}, grpc-timeout)"


def test_a_list_grows_no_further_than_its_cap() -> None:
    short, long = b"x" * 16_383, b"x" * 16_384
    assert _again("baggage", short, b"y") == short + b",y"
    assert _again("baggage", long, b"y") == long


def test_only_what_was_said_is_filled_in() -> None:
    codec = InboundCodec()
    name = BUDGET.decode()
    assert codec.read([(BUDGET, b"1500")]) == Inbound(1.5, name, NO_TRACE, "", NO_BAGGAGE, ())
    assert codec.read([(BUDGET, b"1500"), (b"traceparent", PARENT)]) == Inbound(
        1.5, name, TraceInbound(TraceParent(TRACE, SPAN, True), "", ""), "", NO_BAGGAGE, ()
    )
    assert codec.read([(b"x-request-id", b"a")]) == Inbound(trace=TraceInbound(None, "", "a"))


def test_the_first_of_two_equal_budgets_is_the_source() -> None:
    headers = [(BUDGET, b"1000"), (b"grpc-timeout", b"1S")]
    assert InboundCodec().read(headers).source == BUDGET.decode()
    assert InboundCodec().read(headers[::-1]).source == "grpc-timeout"


@pytest.mark.parametrize(
    ("more", "sampled"),
    [
        ([], None),
        ([(b"x-b3-sampled", b"0")], False),
        ([(b"x-b3-sampled", b"1")], True),
        ([(b"x-b3-flags", b"1")], True),
    ],
)
def test_b3_in_several_headers(more: list[tuple[bytes, bytes]], sampled: bool | None) -> None:
    found = InboundCodec().read([*B3, *more])
    assert found == Inbound(trace=TraceInbound(TraceParent(TRACE, SPAN, sampled), "", ""))


# -- calls --------------------------------------------------------------------------------------


def test_what_a_call_carries() -> None:
    headers = budget_headers([], ["grpc-timeout"])
    codec = OutboundCodec.of(WireSettings(headers, "X-Stage"))
    assert codec.headers(2.0) == [("grpc-timeout", "2000000u")]
    assert codec.headers(2.0, reserve=0.5) == [("grpc-timeout", "1500000u")]
    who = Identity(TRACE, SPAN)
    assert codec.headers(None, who, "b" * 16, "canary", {"a": "1"}) == [
        ("traceparent", f"00-{TRACE}-{'b' * 16}-01"),
        ("x-request-id", TRACE),
        ("x-stage", "canary"),
        ("baggage", "a=1"),
    ]


# -- causes -------------------------------------------------------------------------------------


def chain(length: int, scope: str = "s") -> Cause:
    cause = Cause(CauseKind.DEADLINE, scope)
    for _ in range(length - 1):
        cause = Cause(CauseKind.DEADLINE, scope, below=(cause,))
    return cause


def levels(members: dict[str, object]) -> int:
    below = members.get("below")
    if not isinstance(below, list):
        return 1
    return 1 + max(levels(each) for each in below)


def depth(cause: Cause | None) -> int:
    assert cause is not None
    return 1 + max((depth(each) for each in cause.below), default=0)


def test_nothing_is_said_that_is_not_there() -> None:
    assert list(json.loads(problem(Cause(CauseKind.SHUTDOWN, "a"), status=503))) == [
        "type",
        "title",
        "status",
        "detail",
        "kind",
        "scope",
        "elapsed_ms",
    ]


def test_sixteen_hops_are_written_and_read() -> None:
    assert levels(json.loads(problem(chain(16), status=504))) == 16
    assert levels(json.loads(problem(chain(20), status=504))) == 16
    members: dict[str, object] = {"kind": "deadline", "scope": "s"}
    for _ in range(19):
        members = {"kind": "deadline", "scope": "s", "below": [members]}
    body = json.dumps({"type": "urn:holdfast:problem:deadline-exceeded", **members})
    assert depth(parse_problem(body.encode())) == 16


def test_a_document_is_cut_by_halves() -> None:
    # 16 hops of 256 characters of three bytes, and the detail of 1024, do not fit in 16 KiB.
    long = Cause(CauseKind.DEADLINE, "\u20ac" * 256, "\u20ac" * 256, detail="\u20ac" * 256)
    cause = long
    for _ in range(15):
        cause = Cause(long.kind, long.scope, long.hop, detail=long.detail, below=(cause,))
    short = Cause(long.kind, long.scope, below=(cause,))
    body = problem(cause, status=504)
    assert len(body) <= 16_384
    assert levels(json.loads(body)) == 4
    thin = chain(16, "\u20ac" * 256)
    assert levels(json.loads(problem(thin, status=504))) == 16
    medium = Cause(CauseKind.DEADLINE, "\u20ac" * 256, "\u20ac" * 200)
    for _ in range(15):
        medium = Cause(medium.kind, medium.scope, medium.hop, below=(medium,))
    assert levels(json.loads(problem(medium, status=504))) == 8
    wide = Cause(long.kind, long.scope, below=(long,) * 16)
    assert levels(json.loads(problem(wide, status=504))) == 1
    assert levels(json.loads(problem(short, status=504))) == 4


def test_a_document_may_be_filled_to_the_last_byte() -> None:
    child = Cause(CauseKind.DEADLINE, "s" * 256, "h" * 256, detail="d" * 256)
    wide = Cause(CauseKind.DEADLINE, "\u00e9" * 256, "\u00e9" * 256, detail="\u00e9" * 256)

    def document(filling: int) -> bytes:
        more = [min(256, max(0, filling - start)) for start in (0, 256, 512, 768)]
        hop, note, title, instance = ("x" * each for each in more)
        cause = Cause(CauseKind.DEADLINE, "s", hop, detail=note, below=(*(child,) * 15, wide))
        return problem(cause, status=504, title=title, instance=instance)

    full = 800 + 16_384 - len(document(800))
    assert len(document(full)) == 16_384
    assert levels(json.loads(document(full))) == 2
    assert levels(json.loads(document(full + 1))) == 1


def test_the_longest_document_is_read() -> None:
    body = problem(chain(2), status=504)
    assert parse_problem(body.ljust(16_384)) is not None
    assert parse_problem(body.ljust(16_385)) is None


def test_a_detail_may_be_longer_than_a_name() -> None:
    cause = Cause(CauseKind.DEADLINE, "s" * 200, "h" * 200, detail="d" * 200)
    assert json.loads(problem(cause, status=504))["detail"] == cause.line()


def test_times_are_told_to_the_microsecond() -> None:
    cause = Cause(CauseKind.DEADLINE, "s", budget=1.0000004, elapsed=2.0000006)
    assert encode_cause_header(cause) == "scope=s; budget-ms=1000; elapsed-ms=2000.001"


def test_an_absent_time() -> None:
    body = b'{"type": "urn:holdfast:problem:x", "kind": "deadline"}'
    assert parse_problem(body) == Cause(CauseKind.DEADLINE, "", budget=NEVER, elapsed=0.0)


def test_the_least_header() -> None:
    assert parse_cause_header("hop=a") == Cause(CauseKind.DEADLINE, "", "a")
    assert parse_cause_header("scope=a=b") == Cause(CauseKind.DEADLINE, "a=b")
    assert encode_cause_header(Cause(CauseKind.CHAOS, "a")) == "scope=a; elapsed-ms=0; kind=chaos"


def test_what_needs_no_escape_in_a_header() -> None:
    plain = "/:._~@+-"
    assert encode_cause_header(Cause(CauseKind.DEADLINE, plain, plain)) == (
        f"hop={plain}; scope={plain}; elapsed-ms=0"
    )


@pytest.mark.parametrize(("more", "hops"), [(0, 8), (1, 7)])
def test_a_header_is_filled_to_the_last_byte(more: int, hops: int) -> None:
    each = len("scope=") + 240 + len("; elapsed-ms=0")
    rest = 2048 - 7 * (each + 2) - (each - 240)
    cause = Cause(CauseKind.DEADLINE, "z" * (rest + more))
    for _ in range(7):
        cause = Cause(CauseKind.DEADLINE, "s" * 240, below=(cause,))
    text = encode_cause_header(cause)
    assert text.count("scope=") == hops
    assert (len(text) == 2048) == (more == 0)


def test_the_longest_header_is_read() -> None:
    assert parse_cause_header("scope=a;".ljust(8192)) is not None
    assert parse_cause_header("scope=a;".ljust(8193)) is None


def test_names_of_wide_characters_stay_within_the_header() -> None:
    wide = Cause(CauseKind.DEADLINE, "部" * 4000, "店" * 4000, 0.0, 1.0, 2.0)
    text = encode_cause_header(wide)
    assert len(text) <= 2048
    read = parse_cause_header(text)
    assert read is not None
    assert read.scope.startswith("部" * 100)
    assert read.hop.startswith("店" * 100)
    assert read.budget == 1.0
