"""Who a request is, on the wire."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.context import NOBODY, Identity
from holdfast.domain.wire.baggage import format_baggage, parse_baggage
from holdfast.domain.wire.stage import parse_stage, valid_stage
from holdfast.domain.wire.trace import (
    NO_TRACE,
    TraceInbound,
    TraceParent,
    format_traceparent,
    identify,
    is_sampled,
    parse_b3,
    parse_b3_multi,
    parse_request_id,
    parse_traceparent,
    parse_tracestate,
    trace_headers,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
OURS = "b7ad6b7169203331"
FRESH = "0af7651916cd43dd8448eb211c80319c"


def who(inbound: TraceInbound, sample: float = 1.0) -> Identity:
    return identify(inbound, span_id=OURS, new_trace=lambda: FRESH, sample=sample)


@pytest.mark.parametrize(
    ("raw", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f" 00-{TRACE}-{SPAN}-01 ", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f"cc-{TRACE}-{SPAN}-01-", True),
    ],
)
def test_traceparent(raw: str, sampled: bool) -> None:
    assert parse_traceparent(raw.encode()) == TraceParent(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01".replace("0F067AA0", "00F067AA"),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 1000,
    ],
)
def test_malformed_traceparent(raw: str) -> None:
    assert parse_traceparent(raw.encode()) is None


@given(st.uuids(), st.integers(1, 2**64 - 1), st.booleans())
def test_traceparent_round_trip(trace: uuid.UUID, span: int, sampled: bool) -> None:
    if trace.int == 0:
        return
    parent = TraceParent(trace.hex, f"{span:016x}", sampled)
    assert parse_traceparent(format_traceparent(*parent).encode()) == parent


@pytest.mark.parametrize(
    ("raw", "parent"),
    [
        (f"{TRACE}-{SPAN}-1", TraceParent(TRACE, SPAN, True)),
        (f"{TRACE}-{SPAN}-d-{OURS}", TraceParent(TRACE, SPAN, True)),
        (f"{TRACE}-{SPAN}-0", TraceParent(TRACE, SPAN, False)),
        (f"{TRACE}-{SPAN}", TraceParent(TRACE, SPAN, None)),
        (f"{SPAN}-{OURS}-1", TraceParent("0" * 16 + SPAN, OURS, True)),
        ("0", TraceParent("", "", False)),
        ("1", TraceParent("", "", True)),
        ("d", TraceParent("", "", True)),
        ("", None),
        ("2", None),
        (TRACE, None),
        (f"{'0' * 32}-{SPAN}-1", None),
        (f"{TRACE}-{SPAN}-2", None),
        (f"{TRACE}-{SPAN}-1-{OURS}-1", None),
        (f"{TRACE.upper()}-{SPAN}-1", None),
        ("x" * 10_000, None),
    ],
)
def test_b3(raw: str, parent: TraceParent | None) -> None:
    assert parse_b3(raw.encode()) == parent


def test_b3_in_several_headers() -> None:
    trace, span = TRACE.encode(), SPAN.encode()
    assert parse_b3_multi(trace, span, b"1") == TraceParent(TRACE, SPAN, True)
    assert parse_b3_multi(trace, span, b"False") == TraceParent(TRACE, SPAN, False)
    assert parse_b3_multi(trace, span) == TraceParent(TRACE, SPAN, None)
    assert parse_b3_multi(trace, span, b"0", b"1") == TraceParent(TRACE, SPAN, True)
    assert parse_b3_multi(sampled=b"0") == TraceParent("", "", False)
    assert parse_b3_multi(trace, span, b"maybe") is None
    assert parse_b3_multi(trace) is None
    assert parse_b3_multi(b"\xff" * 32, span) is None
    assert parse_b3_multi(flags=b"0") is None
    assert parse_b3_multi() is None


def test_the_caller_is_continued() -> None:
    parent = TraceParent(TRACE, SPAN, False)
    found = who(TraceInbound(parent, "a=b", ""))
    assert found == Identity(TRACE, OURS, SPAN, False, "", "a=b")


def test_without_a_caller_a_trace_begins() -> None:
    assert who(NO_TRACE) == Identity(FRESH, OURS, "", True, "", "")


def test_new_ids_are_asked_for_only_when_needed() -> None:
    def never() -> str:
        raise AssertionError("not needed")

    inbound = TraceInbound(TraceParent(TRACE, SPAN, True), "", "")
    assert identify(inbound, span_id=OURS, new_trace=never).trace_id == TRACE


@pytest.mark.parametrize(
    ("given_id", "trace_id", "kept"),
    [
        (TRACE, TRACE, ""),
        ("4bf92f35-77b3-4da6-a3ce-929d0e0e4736", TRACE, "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"),
        ("4BF92F35-77B3-4DA6-A3CE-929D0E0E4736", TRACE, "4BF92F35-77B3-4DA6-A3CE-929D0E0E4736"),
        ("0" * 32, FRESH, "0" * 32),
        (str(uuid.UUID(int=0)), FRESH, str(uuid.UUID(int=0))),
        (TRACE.upper(), FRESH, TRACE.upper()),
        ("order 7", FRESH, "order 7"),
        ("", FRESH, ""),
    ],
)
def test_one_number_for_both(given_id: str, trace_id: str, kept: str) -> None:
    found = who(TraceInbound(None, "", given_id))
    assert (found.trace_id, found.request_id, found.given_id) == (trace_id, trace_id, kept)
    assert found.echo_id == (given_id or trace_id)


def test_a_trace_wins_over_a_request_id_which_is_kept() -> None:
    found = who(TraceInbound(TraceParent(TRACE, SPAN, True), "", FRESH))
    assert (found.trace_id, found.given_id, found.echo_id) == (TRACE, FRESH, FRESH)
    found = who(TraceInbound(TraceParent(TRACE, SPAN, True), "", TRACE))
    assert (found.trace_id, found.given_id) == (TRACE, "")


def test_a_decision_without_a_trace_is_kept() -> None:
    assert who(TraceInbound(TraceParent("", "", False), "", "")).sampled is False
    assert who(TraceInbound(TraceParent("", "", True), "", ""), sample=0.0).sampled is True


def test_the_caller_decides_on_sampling_else_the_ratio() -> None:
    assert who(TraceInbound(TraceParent(TRACE, SPAN, None), "", ""), sample=0.0).sampled is False
    assert who(TraceInbound(TraceParent(TRACE, SPAN, True), "", ""), sample=0.0).sampled is True


@given(st.integers(1, 2**128 - 1), st.floats(0, 1), st.floats(0, 1))
def test_sampling_is_a_function_that_grows_with_the_ratio(trace: int, a: float, b: float) -> None:
    trace_id = f"{trace:032x}"
    low, high = sorted((a, b))
    assert is_sampled(trace_id, low) <= is_sampled(trace_id, high)
    assert is_sampled(trace_id, 1.0)
    assert not is_sampled(trace_id, 0.0)
    assert not is_sampled(trace_id, float("nan"))


def test_sampling_is_fair_to_uuids_too() -> None:
    ids = [uuid.uuid5(uuid.NAMESPACE_URL, str(n)).hex for n in range(4000)]
    assert 0.45 < sum(is_sampled(i, 0.5) for i in ids) / len(ids) < 0.55


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"abc", "abc"),
        (b" a b ", "a b"),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, None),
        (b"", None),
        (b"a\x00b", None),
        (b"a\r\nb", None),
        ("é".encode(), None),
        (b"x" * 100_000, None),
    ],
)
def test_request_id(raw: bytes, found: str | None) -> None:
    assert parse_request_id(raw) == found


def test_tracestate() -> None:
    assert parse_tracestate(b"congo=t61rcWkgMzE,rojo=00f0") == "congo=t61rcWkgMzE,rojo=00f0"
    assert parse_tracestate(b"") is None
    assert parse_tracestate(b"a=\x00") is None
    assert parse_tracestate(b"a=" + b"b" * 2000) is None
    assert parse_tracestate(b",".join([b"a=b"] * 33)) is None


def test_headers_of_a_call() -> None:
    identity = Identity(TRACE, OURS, SPAN, True, "order 7", "a=b")
    assert trace_headers(identity) == [
        ("traceparent", f"00-{TRACE}-{OURS}-01"),
        ("x-request-id", "order 7"),
        ("tracestate", "a=b"),
    ]
    assert trace_headers(Identity(TRACE, OURS), SPAN) == [
        ("traceparent", f"00-{TRACE}-{SPAN}-01"),
        ("x-request-id", TRACE),
    ]
    assert trace_headers(NOBODY) == []


@given(
    st.one_of(st.just(""), st.text(st.characters(min_codepoint=33, max_codepoint=126))),
    st.integers(1, 10),
)
def test_the_leaf_has_the_names_of_the_edge(given_id: str, hops: int) -> None:
    given_id = given_id[:128]
    edge = identity = who(TraceInbound(None, "", given_id))
    for _ in range(hops):
        sent = dict(trace_headers(identity))
        inbound = TraceInbound(
            parse_traceparent(sent["traceparent"].encode()),
            "",
            parse_request_id(sent["x-request-id"].encode()) or "",
        )
        identity = who(inbound, sample=0.0)
        assert (identity.trace_id, identity.echo_id) == (edge.trace_id, edge.echo_id)
        assert identity.sampled is edge.sampled


@given(st.binary(max_size=300))
def test_parsers_never_raise(raw: bytes) -> None:
    parse_traceparent(raw)
    parse_tracestate(raw)
    parse_b3(raw)
    parse_b3_multi(raw, raw, raw, raw)
    parse_request_id(raw)
    parse_baggage(raw)
    parse_stage(raw)


def test_stage() -> None:
    assert parse_stage(b"canary") == "canary"
    assert parse_stage(b" v1.2-rc ") == "v1.2-rc"
    assert parse_stage(b"x" * 63) == "x" * 63
    for raw in (b"", b"x" * 64, b"Canary", b"a b", b"a\n", b"a_b", b"\xff", b"x" * 10_000):
        assert parse_stage(raw) is None
    assert not valid_stage("a\n")


def test_baggage() -> None:
    raw = b'user=alice;ttl=1, note = caf%C3%A9%2C ok ,,bad,=x,k=a"b'
    found, clean = parse_baggage(raw)
    assert dict(found) == {"user": "alice"}
    assert not clean
    found, clean = parse_baggage(b"user=alice;ttl=1, note = caf%C3%A9%2C%20ok ,")
    assert dict(found) == {"user": "alice", "note": "café, ok"}
    assert clean
    assert parse_baggage(b"") == ({}, True)


def test_baggage_caps() -> None:
    found, clean = parse_baggage(b",".join(b"k%d=v" % n for n in range(70)))
    assert (len(found), clean) == (64, False)
    found, clean = parse_baggage(b"a=1,b=" + b"x" * 9000)
    assert (dict(found), clean) == ({"a": "1"}, False)
    many = {f"k{n}": "v" for n in range(70)}
    assert format_baggage(many).count(",") == 63
    assert format_baggage({"a": "x" * 9000, "b": "1", "bad key": "2", "": "3"}) == "b=1"


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        max_size=10,
    )
)
def test_baggage_round_trip(baggage: dict[str, str]) -> None:
    raw = format_baggage(baggage).encode("ascii")
    assert parse_baggage(raw) == (baggage, True)


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=200), max_size=80))
def test_baggage_that_is_sent_is_in_the_grammar(baggage: dict[str, str]) -> None:
    text = format_baggage(baggage)
    assert text.isascii()
    assert not text or text.isprintable()
    assert len(text) <= 8192
    assert parse_baggage(text.encode())[1]
