"""The time left, on the wire."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.errors import ConfigError
from holdfast.domain.wire.budget import (
    DEFAULT_HEADERS,
    GRAMMARS,
    LONGEST,
    BudgetHeaders,
    budget_headers,
    decode_connect,
    decode_grpc,
    decode_millis,
    decode_seconds,
    encode_connect,
    encode_grpc,
    encode_millis,
    encode_seconds,
    outbound,
    tightest,
)

GARBAGE = [
    b"",
    b" ",
    b"abc",
    b"+5",
    b"--5",
    b"-",
    b"1e9",
    b"0x10",
    b"1_000",
    b"1 000",
    b"1,000",
    b"inf",
    b"nan",
    b"12\x00",
    b"99999999999999999999",
    "١٢٣".encode(),
    b"\xb2",
    b"9" * 100_000,
]


@pytest.mark.parametrize("raw", GARBAGE)
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_garbage_is_no_deadline(grammar: str, raw: bytes) -> None:
    assert GRAMMARS[grammar][0](raw) is None


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b"0", 0.0),
        (b"-5", 0.0),
        (b"-0", 0.0),
        (b"1", 0.001),
        (b"1500", 1.5),
        (b" 1500\t", 1.5),
        (b"0001500", 1.5),
        (b"315576000000", LONGEST),
        (b"315576000001", None),
        (b"1.5", None),
        (b"-99999999999999999", None),
    ],
)
def test_millis(raw: bytes, left: float | None) -> None:
    assert decode_millis(raw) == left


@pytest.mark.parametrize(
    ("raw", "left"),
    [(b"9999999999", 9_999_999.999), (b"10000000000", None), (b"0", 0.0), (b"-1", 0.0)],
)
def test_connect(raw: bytes, left: float | None) -> None:
    assert decode_connect(raw) == left


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b"1.25", 1.25),
        (b"12", 12.0),
        (b"-1.5", 0.0),
        (b"0", 0.0),
        (b".5", None),
        (b"5.", None),
        (b"1.2.3", None),
        (b"999999999", None),
    ],
)
def test_seconds(raw: bytes, left: float | None) -> None:
    assert decode_seconds(raw) == left


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"250u", 0.00025),
        (b"250n", 2.5e-7),
        (b"99999999n", 0.099999999),
        (b"0S", 0.0),
        (b"-5m", 0.0),
        (b"-5x", None),
        (b"100000000m", None),
        (b"5", None),
        (b"m", None),
        (b"5s", None),
        (b"5 m", None),
        (b"1.5S", None),
        (b"99999999H", None),
        (b"87660H", LONGEST),
    ],
)
def test_grpc(raw: bytes, left: float | None) -> None:
    assert decode_grpc(raw) == left


@pytest.mark.parametrize(
    ("seconds", "millis", "grpc"),
    [
        (0.0, "0", "0n"),
        (-1.0, "0", "0n"),
        (math.nan, "0", "0n"),
        (0.0009, "0", "900000n"),
        (0.5, "500", "500000u"),
        (1.0, "1000", "1000000u"),
        (30.0, "30000", "30000000u"),
        (100.0, "100000", "100000m"),
        (1e8, "100000000000", "1666666M"),
        (math.inf, "315576000000", "5259600M"),
    ],
)
def test_encoding_rounds_down(seconds: float, millis: str, grpc: str) -> None:
    assert encode_millis(seconds) == millis
    assert encode_grpc(seconds) == grpc


def test_other_encodings() -> None:
    assert encode_connect(math.inf) == "9999999999"
    assert encode_seconds(1.2509) == "1.250"
    assert encode_seconds(0.0004) == "0"


def test_sums_that_are_not_exact_do_not_round_up() -> None:
    # 4.35 * 100 and its like are a little less than the decimal says, or a little more.
    for n in range(1, 20_000):
        seconds = math.nextafter(n / 1000, 0)
        assert decode_millis(encode_millis(seconds).encode()) == (n - 1) / 1000
        assert encode_millis(n / 1000) == str(n)


LEFT = st.floats(min_value=0, max_value=2 * LONGEST, allow_nan=False)


@given(st.sampled_from(sorted(GRAMMARS)), LEFT)
def test_what_is_read_is_never_more_than_what_was_left(grammar: str, left: float) -> None:
    decode, encode = GRAMMARS[grammar]
    again = decode(encode(left).encode())
    assert again is not None
    assert again <= left
    # Reading and sending on loses nothing more, where the value did not change.
    assert decode(encode(again).encode()) == again


@given(
    st.floats(min_value=0, max_value=1e6, allow_nan=False),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(GRAMMARS)),
            st.fractions(min_value=0, max_value=10, max_denominator=10**9),
        ),
        max_size=20,
    ),
)
def test_the_deadline_never_moves_later_over_many_hops(
    first: float, hops: list[tuple[str, Fraction]]
) -> None:
    now, left = Fraction(0), Fraction(first)
    deadline = now + left
    for grammar, elapsed in hops:
        decode, encode = GRAMMARS[grammar]
        now, left = now + elapsed, left - elapsed
        sent = float(left)
        if Fraction(sent) > left:
            sent = math.nextafter(sent, -math.inf)
        received = decode(encode(sent).encode())
        assert received is not None
        left = Fraction(received)
        if received > 0:
            assert now + left <= deadline
            deadline = now + left


@given(st.sampled_from(sorted(GRAMMARS)), st.binary(max_size=40))
def test_decoders_never_raise(grammar: str, raw: bytes) -> None:
    left = GRAMMARS[grammar][0](raw)
    assert left is None or 0 <= left <= LONGEST


@given(
    st.sampled_from(sorted(GRAMMARS)),
    st.from_regex(rb"[ \t]?-?[0-9]{0,20}\.?[0-9]{0,3}[HMSmunx]?\n?", fullmatch=True),
)
def test_decoders_never_raise_near_the_grammar(grammar: str, raw: bytes) -> None:
    left = GRAMMARS[grammar][0](raw)
    assert left is None or 0 <= left <= LONGEST


def test_outbound() -> None:
    name = "x-envoy-expected-rq-timeout-ms"
    assert outbound(1.5) == [(name, "1500")]
    assert outbound(1.5, reserve=0.5) == [(name, "1000")]
    assert outbound(0.1, reserve=0.5) == [(name, "0")]
    assert outbound(0.0) == [(name, "0")]
    both = budget_headers([], ["grpc-timeout", "X-Left: seconds"])
    assert outbound(2.5, headers=both) == [("grpc-timeout", "2500000u"), ("x-left", "2.500")]


@pytest.mark.parametrize("left", [None, math.inf, math.nan])
def test_no_deadline_sends_nothing(left: float | None) -> None:
    assert outbound(left) == []


def test_tightest() -> None:
    assert tightest(None, None) is None
    assert tightest(None, 1.0) == 1.0
    assert tightest(2.0, None) == 2.0
    assert tightest(2.0, 1.0) == 1.0
    assert tightest(0.0, 1.0) == 0.0


def test_headers_from_configuration() -> None:
    assert DEFAULT_HEADERS.inbound == (
        (b"x-envoy-expected-rq-timeout-ms", "millis"),
        (b"grpc-timeout", "grpc"),
        (b"connect-timeout-ms", "connect"),
    )
    assert DEFAULT_HEADERS.outbound == ((b"x-envoy-expected-rq-timeout-ms", "millis"),)
    found = budget_headers(["Grpc-Timeout", "X-Budget: millis"], [])
    assert found.inbound == ((b"grpc-timeout", "grpc"), (b"x-budget", "millis"))


@pytest.mark.parametrize(
    ("inbound", "outbound_names", "path"),
    [
        (["x budget: millis"], [], "headers.inbound[0]"),
        (["grpc-timeout", "x-budget"], [], "headers.inbound[1]"),
        ([], ["x-budget: minutes"], "headers.outbound[0]"),
        ([], [""], "headers.outbound[0]"),
        ([], ["é: millis"], "headers.outbound[0]"),
    ],
)
def test_wrong_headers_say_where(inbound: list[str], outbound_names: list[str], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        budget_headers(inbound, outbound_names)
    assert caught.value.path == path


def test_wrong_headers_are_refused_when_made_by_hand() -> None:
    with pytest.raises(ConfigError, match="lower-case"):
        BudgetHeaders(inbound=((b"X-Budget", "millis"),))
    with pytest.raises(ConfigError, match="unknown grammar"):
        BudgetHeaders(outbound=((b"x-budget", "minutes"),))
