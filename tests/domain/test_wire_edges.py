"""Corners of the grammars: white space, caps to the byte, and the wording of what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.domain.errors import ConfigError
from holdfast.domain.wire.baggage import NO_BAGGAGE, format_baggage, parse_baggage
from holdfast.domain.wire.budget import (
    GRAMMARS,
    BudgetHeaders,
    budget_headers,
    decode_connect,
    decode_grpc,
    decode_millis,
    decode_seconds,
)
from holdfast.domain.wire.settings import WireSettings
from holdfast.domain.wire.stage import parse_stage
from holdfast.domain.wire.timing import (
    Timing,
    _unquoted,
    format_timing,
    merge_timing,
    parse_timing,
)
from holdfast.domain.wire.trace import (
    TraceInbound,
    TraceParent,
    identify,
    is_sampled,
    parse_b3,
    parse_b3_multi,
    parse_request_id,
    parse_traceparent,
    parse_tracestate,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
IDS = f"{TRACE}-{SPAN}".encode()
GRAMMAR_NAMES = "millis, seconds, grpc, connect"


def sampled_multi(raw: bytes) -> object:
    return parse_b3_multi(sampled=raw)


def debug_multi(raw: bytes) -> object:
    return parse_b3_multi(flags=raw)


def trace_multi(raw: bytes) -> object:
    return parse_b3_multi(trace=raw, span=SPAN.encode())


def span_multi(raw: bytes) -> object:
    return parse_b3_multi(trace=TRACE.encode(), span=raw)


@pytest.mark.parametrize(
    ("parse", "good"),
    [
        (decode_millis, b"5"),
        (decode_connect, b"5"),
        (decode_seconds, b"5.5"),
        (decode_grpc, b"5S"),
        (parse_traceparent, b"00-" + IDS + b"-01"),
        (parse_b3, IDS),
        (sampled_multi, b"1"),
        (debug_multi, b"1"),
        (trace_multi, TRACE.encode()),
        (span_multi, SPAN.encode()),
        (parse_stage, b"canary"),
    ],
)
def test_blanks_and_tabs_are_taken_off_and_nothing_else(
    parse: Callable[[bytes], object], good: bytes
) -> None:
    found = parse(good)
    assert found is not None
    assert parse(b" \t" + good + b"\t ") == found
    for wrong in (b"\n" + good, good + b"\n", b"X" + good, good + b"X", b"\x0b" + good):
        assert parse(wrong) is None


@pytest.mark.parametrize("parse", [parse_request_id, parse_tracestate])
def test_texts_keep_what_is_printable(parse: Callable[[bytes], object]) -> None:
    assert parse(b" \tXa=bX\t ") == "Xa=bX"
    assert parse(b"a=b\n") is None
    assert parse(b"\na=b") is None


# -- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "raw", "found"),
    [
        (decode_millis, b"-" + b"1" * 16, 0.0),
        (decode_millis, b"-" + b"1" * 17, None),
        (decode_connect, b"-" + b"1" * 10, 0.0),
        (decode_connect, b"-" + b"1" * 11, None),
        (decode_grpc, b"-12345678S", 0.0),
        (decode_grpc, b"-123456789S", None),
        (decode_grpc, b"-5H", 0.0),
    ],
)
def test_expired_in_as_many_digits_as_allowed(
    parse: Callable[[bytes], float | None], raw: bytes, found: float | None
) -> None:
    assert parse(raw) == found


@pytest.mark.parametrize(
    ("inbound", "problem"),
    [
        ("a b: millis", "'a b: millis' is not a header name"),
        (
            "x-mine",
            "the grammar of header 'x-mine' is not known; "
            f"write 'x-mine: millis', or one of: {GRAMMAR_NAMES}",
        ),
        ("x-mine: weeks", f"unknown grammar 'weeks'; use one of: {GRAMMAR_NAMES}"),
    ],
)
def test_what_is_wrong_with_a_header(inbound: str, problem: str) -> None:
    assert ", ".join(GRAMMARS) == GRAMMAR_NAMES
    with pytest.raises(ConfigError) as caught:
        budget_headers(["grpc-timeout", inbound], [])
    assert (caught.value.path, caught.value.problem) == ("headers.inbound[1]", problem)


def test_what_is_wrong_with_a_header_made_by_hand() -> None:
    with pytest.raises(ConfigError) as caught:
        BudgetHeaders(inbound=((b"X-Mine", "millis"),))
    assert caught.value.path == "headers.inbound[0]"
    assert caught.value.problem == "b'X-Mine' is not a lower-case header name"
    with pytest.raises(ConfigError) as caught:
        BudgetHeaders(outbound=((b"x-mine", "millis"), (b"y", "weeks")))
    assert caught.value.path == "headers.outbound[1]"


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_the_whole_range_of_ratios(sample: float) -> None:
    assert WireSettings(sample=sample).sample == sample


@pytest.mark.parametrize("sample", [-0.1, 1.5])
def test_a_wrong_ratio(sample: float) -> None:
    with pytest.raises(ConfigError) as caught:
        WireSettings(sample=sample)
    assert caught.value.path == "identity.sample"
    assert caught.value.problem == f"must be from 0 to 1, not {sample}"


def test_the_longest_stage() -> None:
    assert parse_stage(b" " + b"a" * 63 + b" ") == "a" * 63
    assert parse_stage(b"  " + b"a" * 63 + b" ") is None
    assert parse_stage(b"a" * 64) is None


# -- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "sampled"), [("0a", False), ("0b", True), ("11", True)])
def test_flags_are_hex(flags: str, sampled: bool) -> None:
    found = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}".encode())
    assert found == TraceParent(TRACE, SPAN, sampled)


def test_the_longest_of_each() -> None:
    later = b"01-" + IDS + b"-01-"
    assert parse_traceparent(later + b"x" * (256 - len(later))) is not None
    assert parse_traceparent(later + b"x" * (257 - len(later))) is None
    assert parse_tracestate(b"a=" + b"b" * 1022) is not None
    assert parse_tracestate(b"a=" + b"b" * 1023) is None
    assert parse_b3(IDS.ljust(256)) is not None
    assert parse_b3(IDS.ljust(257)) is None
    assert parse_request_id(b" " + b"a" * 128 + b" ") == "a" * 128
    assert parse_request_id(b"  " + b"a" * 128 + b" ") is None
    assert parse_request_id(b"a" * 129) is None


def test_half_a_b3_is_malformed_whatever_it_decides() -> None:
    assert parse_b3_multi(trace=TRACE.encode(), sampled=b"1") is None
    assert parse_b3_multi(span=SPAN.encode(), sampled=b"1") is None


def test_the_threshold_itself_is_sampled() -> None:
    assert is_sampled("0" * 18 + "8" + "0" * 13, 0.5)
    assert not is_sampled("0" * 18 + "7" + "f" * 13, 0.5)


def test_a_request_id_as_long_as_a_uuid() -> None:
    inbound = TraceInbound(request_id="g" * 36)
    found = identify(inbound, span_id=SPAN, new_trace=lambda: TRACE)
    assert (found.trace_id, found.given_id) == (TRACE, "g" * 36)


# -- baggage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "found", "clean"),
    [
        (b"", {}, True),
        (b"a=X1X", {"a": "X1X"}, True),
        (b"a=1,,b=2", {"a": "1", "b": "2"}, True),
        (b"a=1, \t,b=2", {"a": "1", "b": "2"}, True),
        (b"a=1,\n,b=2", {"a": "1", "b": "2"}, False),
        (b"a=1,X,b=2", {"a": "1", "b": "2"}, False),
        (b"a\n=1,b=2", {"b": "2"}, False),
        (b"a=1\n,b=2", {"b": "2"}, False),
        (b"a=%FF", {"a": "\N{REPLACEMENT CHARACTER}"}, True),
        (b"a=" + b"1" * 8190, {"a": "1" * 8190}, True),
        (b"a=1,b=2,c=" + b"1" * 8190, {"a": "1", "b": "2"}, False),
        (b",".join(b"k%d=1" % i for i in range(64)), {f"k{i}": "1" for i in range(64)}, True),
        (b",".join(b"k%d=1" % i for i in range(65)), {f"k{i}": "1" for i in range(64)}, False),
    ],
)
def test_baggage_in(raw: bytes, found: dict[str, str], clean: bool) -> None:
    assert parse_baggage(raw) == (found, clean)


def test_no_baggage_is_always_the_same() -> None:
    assert parse_baggage(b"")[0] is NO_BAGGAGE


@pytest.mark.parametrize(
    ("baggage", "text"),
    [
        ({"a b": "1", "c": "2"}, "c=2"),
        ({"a": "!#$&'()*+-./:<=>?@[]^_`{|}~"}, "a=!#$&'()*+-./:<=>?@[]^_`{|}~"),
        ({"a": "\ud800"}, "a=?"),
        ({"a": '%,;"\\'}, "a=%25%2C%3B%22%5C"),
    ],
)
def test_baggage_out(baggage: dict[str, str], text: str) -> None:
    assert format_baggage(baggage) == text


@pytest.mark.parametrize("last", [10, 11])
def test_baggage_is_filled_to_the_last_byte(last: int) -> None:
    first = {"a": "1" * 4000, "b": "2" * (8192 - 4002 - 1 - 2 - 1 - 2 - 10)}
    whole = {**first, "c": "3" * last, "d": ""}
    text = format_baggage(whole)
    assert parse_baggage(text.encode())[0] == {
        **first,
        **({"c": "3" * 10} if last == 10 else {"d": ""}),
    }
    assert len(text) == (8192 if last == 10 else 8192 - 13 + 3)
    assert len(format_baggage({"a": "1" * 8190})) == 8192
    assert format_baggage({"a": "1" * 8191}) == ""


# -- timings ------------------------------------------------------------------------------------


def test_a_description_keeps_all_that_is_printable() -> None:
    assert format_timing([Timing("a", None, " ~")]) == 'a;desc=" ~"'


def test_timings_are_filled_to_the_last_byte() -> None:
    many = [Timing("x" * 98)] * 20
    assert len(format_timing([*many, Timing("y" * 48)])) == 2048
    assert len(format_timing([*many, Timing("y" * 49)])) == 2048 - 48 - 2


@pytest.mark.parametrize(
    ("text", "plain"), [('""', ""), ('"a"', "a"), ('"', '"'), ('"a', '"a'), (r'"\""', '"')]
)
def test_quotes_are_taken_off(text: str, plain: str) -> None:
    assert _unquoted(text) == plain


@pytest.mark.parametrize("raw", ["", ";", ";;", ";;, ;"])
def test_an_entry_without_a_name(raw: str) -> None:
    assert parse_timing(raw) == ()


def test_the_longest_name_and_the_last_parameter() -> None:
    assert parse_timing("x" * 128) == (Timing("x" * 128),)
    assert parse_timing("x" * 129) == ()
    assert parse_timing("a;1;2;3;4;5;6;7;dur=5") == (Timing("a", 0.005),)
    assert parse_timing("a;1;2;3;4;5;6;7;8;dur=5") == (Timing("a"),)


def test_a_hop_has_no_dots() -> None:
    assert merge_timing("a.b.c", 1.0) == (Timing("a-b-c", 1.0),)
