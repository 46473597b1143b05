"""One pass over the headers of a request, and the headers of a call."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.context import Identity
from holdfast.domain.wire.budget import LONGEST, budget_headers
from holdfast.domain.wire.inbound import (
    EMPTY,
    Inbound,
    InboundCodec,
    OutboundCodec,
    raw_headers,
)
from holdfast.domain.wire.settings import WireSettings
from holdfast.domain.wire.trace import NO_TRACE, TraceParent, identify

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()
CODEC = InboundCodec()
TRUSTING = InboundCodec(trust_stage=True)
BUDGET = b"x-envoy-expected-rq-timeout-ms"


def test_headers_of_others_are_nothing() -> None:
    assert CODEC.read([(b"host", b"a"), (b"accept", b"*/*")]) is EMPTY
    assert CODEC.read([]) is EMPTY
    assert CODEC.read(iter([(b"host", b"a")])) is EMPTY
    assert Inbound(None, "", NO_TRACE, "", {}, ()) == EMPTY


@pytest.mark.parametrize(
    ("headers", "left", "source", "malformed"),
    [
        ([(BUDGET, b"1500")], 1.5, BUDGET, ()),
        ([(b"grpc-timeout", b"2S")], 2.0, b"grpc-timeout", ()),
        ([(b"connect-timeout-ms", b"2000")], 2.0, b"connect-timeout-ms", ()),
        ([(BUDGET, b"1500"), (BUDGET, b"500")], 0.5, BUDGET, ()),
        ([(BUDGET, b"500"), (BUDGET, b"1500")], 0.5, BUDGET, ()),
        ([(BUDGET, b"1500"), (b"grpc-timeout", b"1S")], 1.0, b"grpc-timeout", ()),
        ([(BUDGET, b"abc"), (BUDGET, b"500")], 0.5, BUDGET, (BUDGET,)),
        ([(BUDGET, b"")], None, b"", (BUDGET,)),
        ([(BUDGET, b"abc"), (b"grpc-timeout", b"x")], None, b"", (BUDGET, b"grpc-timeout")),
        ([(BUDGET, b"0")], 0.0, BUDGET, ()),
        ([(BUDGET, b"-5"), (BUDGET, b"5")], 0.0, BUDGET, ()),
    ],
)
def test_the_tightest_budget_wins(
    headers: list[tuple[bytes, bytes]],
    left: float | None,
    source: bytes,
    malformed: tuple[bytes, ...],
) -> None:
    found = CODEC.read(headers)
    assert found.left == left
    assert found.source == source.decode()
    assert found.malformed == tuple(name.decode() for name in malformed)


def test_trace_and_request_id() -> None:
    found = CODEC.read(
        [(b"traceparent", PARENT), (b"tracestate", b"a=b"), (b"x-request-id", b"order 7")]
    )
    assert found.trace.parent == TraceParent(TRACE, SPAN, True)
    assert found.trace.tracestate == "a=b"
    assert found.request_id == "order 7"
    assert found.malformed == ()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", b"junk")],
        [(b"traceparent", PARENT.upper())],
        [(b"traceparent", PARENT), (b"traceparent", PARENT)],
        [(b"traceparent", PARENT), (b"traceparent", PARENT.replace(b"-01", b"-00"))],
        [(b"traceparent", b"junk"), (b"b3", f"{TRACE}-{SPAN}-1".encode())],
    ],
)
def test_an_unclear_traceparent_begins_a_new_trace(headers: list[tuple[bytes, bytes]]) -> None:
    found = CODEC.read([*headers, (b"tracestate", b"a=b")])
    assert found.trace.parent is None
    assert found.trace.tracestate == ""
    assert found.malformed == ("traceparent",)


def test_traceparent_wins_over_b3_and_b3_single_over_multi() -> None:
    other = b"0af7651916cd43dd8448eb211c80319c"
    b3 = (b"b3", other + b"-" + SPAN.encode() + b"-0")
    multi = [(b"x-b3-traceid", b"a" * 32), (b"x-b3-spanid", b"b" * 16), (b"x-b3-flags", b"1")]
    found = CODEC.read([b3, *multi, (b"traceparent", PARENT)])
    assert found.trace.parent == TraceParent(TRACE, SPAN, True)
    found = CODEC.read([b3, *multi])
    assert found.trace.parent == TraceParent(other.decode(), SPAN, False)
    found = CODEC.read(multi)
    assert found.trace.parent == TraceParent("a" * 32, "b" * 16, True)
    assert CODEC.read([(b"b3", b"x")]).malformed == ("b3",)
    assert CODEC.read([(b"x-b3-traceid", b"x")]).malformed == ("x-b3-traceid",)


def test_a_request_id_that_comes_twice() -> None:
    same = [(b"x-request-id", b"a"), (b"x-request-id", b"a")]
    assert CODEC.read(same).request_id == "a"
    found = CODEC.read([(b"x-request-id", b"a"), (b"x-request-id", b"b"), (b"x-request-id", b"a")])
    assert (found.request_id, found.malformed) == ("", ("x-request-id",))
    assert CODEC.read([(b"x-request-id", b"x" * 200)]).malformed == ("x-request-id",)


def test_lists_are_joined() -> None:
    found = CODEC.read(
        [
            (b"traceparent", PARENT),
            (b"tracestate", b"a=b"),
            (b"tracestate", b"c=d"),
            (b"baggage", b"a=1"),
            (b"baggage", b"b=2"),
        ]
    )
    assert found.trace.tracestate == "a=b,c=d"
    assert found.baggage == {"a": "1", "b": "2"}
    assert found.malformed == ()


def test_a_list_without_end() -> None:
    found = CODEC.read([(b"baggage", b"a=" + b"1" * 4000)] * 1000)
    assert found.malformed == ("baggage",)
    found = CODEC.read([(b"traceparent", PARENT), (b"tracestate", b"\xff")])
    assert found.malformed == ("tracestate",)


def test_a_stage_is_believed_only_where_it_is_trusted() -> None:
    headers = [(b"x-release-stage", b"canary")]
    assert CODEC.read(headers) is EMPTY
    assert TRUSTING.read(headers).stage == "canary"
    own = InboundCodec.of(WireSettings(stage_header="X-Lane", trust_stage=True))
    assert own.read([(b"x-lane", b"blue")]).stage == "blue"
    assert own.read([(b"x-lane", b"BLUE")]).malformed == ("x-lane",)
    # What a client set before the proxy added its own: neither is believed.
    both = [(b"x-release-stage", b"canary"), (b"x-release-stage", b"stable")]
    found = TRUSTING.read(both)
    assert (found.stage, found.malformed) == ("", ("x-release-stage",))


def test_own_names() -> None:
    codec = InboundCodec(budget_headers(["x-left: seconds"], []))
    assert codec.read([(b"x-left", b"1.5"), (BUDGET, b"1")]).left == 1.5
    assert "x-left" in repr(codec)


def test_raw_headers() -> None:
    items = [("X-Request-ID", "a"), ("key-bin", b"\x00"), ("grpc-timeout", "٣S")]
    raw = raw_headers(items)
    assert raw == [(b"x-request-id", b"a"), (b"key-bin", b"\x00"), (b"grpc-timeout", b"?S")]
    assert CODEC.read(raw).malformed == ("grpc-timeout",)


NAMES = st.sampled_from(
    [
        BUDGET,
        b"grpc-timeout",
        b"connect-timeout-ms",
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"x-request-id",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-sampled",
        b"x-b3-flags",
        b"x-release-stage",
        b"host",
    ]
)
VALUES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([PARENT, b"1", b"0", b"-1", b"5S", TRACE.encode(), SPAN.encode(), b"a=b"]),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_read_never_raises_and_always_gives_an_identity(
    headers: list[tuple[bytes, bytes]],
) -> None:
    found = TRUSTING.read(headers)
    assert found.left is None or 0 <= found.left <= LONGEST
    assert set(found.malformed) <= {name.decode() for name, _ in headers} | {"x-b3-traceid"}
    identity = identify(found.trace, span_id=SPAN, new_trace=lambda: TRACE, sample=0.5)
    assert len(identity.trace_id) == 32
    assert int(identity.trace_id, 16)
    assert identity.echo_id


def test_what_is_sent_is_what_is_read() -> None:
    identity = Identity(TRACE, SPAN, "", False, "order 7", "a=b")
    sent = OutboundCodec().headers(
        1.5, identity, stage="canary", baggage={"user": "é"}, reserve=0.25
    )
    found = TRUSTING.read(raw_headers(sent))
    assert found.left == 1.25
    assert found.trace == (TraceParent(TRACE, SPAN, False), "a=b", "order 7")
    assert (found.stage, found.baggage, found.malformed) == ("canary", {"user": "é"}, ())


def test_nothing_to_send() -> None:
    codec = OutboundCodec()
    assert codec.headers(None) == []
    assert codec.headers(math.inf, stage="Not A Stage", baggage={"bad key": "1"}) == []
    own = OutboundCodec.of(WireSettings(stage_header="X-Lane"))
    assert own.headers(None, stage="blue") == [("x-lane", "blue")]
