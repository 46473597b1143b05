"""`Server-Timing`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.wire.timing import Timing, format_timing, merge_timing, parse_timing


def test_a_tree_in_a_header() -> None:
    payments = merge_timing("payments", 0.08, own=[Timing("db", 0.06)])
    received = parse_timing(format_timing(payments))
    orders = merge_timing("orders", 0.12, own=[Timing("db", 0.03, "two rows")], below=received)
    assert format_timing(orders) == (
        'orders;dur=120, orders.db;dur=30;desc="two rows", '
        "orders.payments;dur=80, orders.payments.db;dur=60"
    )


@pytest.mark.parametrize(
    ("timing", "text"),
    [
        (Timing("a b,c"), "a_b_c"),
        (Timing(""), "_"),
        (Timing("é"), "_"),
        (Timing("a", math.nan), "a"),
        (Timing("a", math.inf), "a"),
        (Timing("a", -1.0), "a"),
        (Timing("a", 0.0), "a;dur=0"),
        (Timing("a", 1e-9), "a;dur=0"),
        (Timing("a", 0.0123), "a;dur=12.3"),
        (Timing("a", 1e20), "a;dur=315576000000"),
        (Timing("a", None, 'x"\\\r\n,y;é'), 'a;desc="x,y;"'),
    ],
)
def test_what_is_sent_is_in_the_grammar(timing: Timing, text: str) -> None:
    assert format_timing([timing]) == text


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", ()),
        (",,;;", ()),
        ("a", (Timing("a"),)),
        ("a;dur=12.5", (Timing("a", 0.0125),)),
        ("a ; DUR = 12.5 ; x", (Timing("a", 0.0125),)),
        ('a;desc="x, y; z";dur=1', (Timing("a", 0.001, "x, y; z"),)),
        ('a;desc="x \\" y"', (Timing("a", None, "x  y"),)),
        ("a;desc=x", (Timing("a", None, "x"),)),
        ('a;dur="5"', (Timing("a", 0.005),)),
        ("a;dur=-5, b;dur=1e5, c;dur=nan, d;dur=", (Timing("a"), *map(Timing, "bcd"))),
        ("a;dur=1;dur=2", (Timing("a", 0.001),)),
        ("bad name, a", (Timing("a"),)),
        ("a;dur=\u0661", (Timing("a"),)),
        ('a;desc="never closed, b', (Timing("a"),)),
    ],
)
def test_parsing_is_tolerant(raw: str, found: tuple[Timing, ...]) -> None:
    assert parse_timing(raw)[: len(found)] == found


def test_caps() -> None:
    many = [Timing(f"t{n}", 1.0) for n in range(100)]
    assert len(parse_timing(format_timing(many))) == 32
    assert len(parse_timing(", ".join(f"t{n}" for n in range(100)))) == 32
    long = [Timing("x" * 1000, 1.0, "y" * 1000) for _ in range(100)]
    assert len(format_timing(long)) <= 2048
    assert len(merge_timing("a", 1.0, below=many)) == 32
    assert len(parse_timing(b"a, " * 100_000)) == 32
    deep = merge_timing("a", 1.0, own=[Timing("db")], below=[Timing("b.c.d"), Timing("b")])
    assert [timing.name for timing in deep] == ["a", "a.db", "a.b", "a.b.c.d"]


@given(st.one_of(st.binary(max_size=200), st.text(alphabet='ab,;="\\ .\tdur1', max_size=200)))
def test_parsing_never_raises(raw: str | bytes) -> None:
    for timing in parse_timing(raw):
        assert timing.name
        assert timing.seconds is None or timing.seconds >= 0


@given(
    st.lists(
        st.builds(
            Timing,
            st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True),
            st.one_of(st.none(), st.integers(0, 10**9).map(lambda micros: micros / 1e6)),
            st.text(st.characters(min_codepoint=35, max_codepoint=91), max_size=20),
        ),
        max_size=20,
    )
)
def test_round_trip(timings: list[Timing]) -> None:
    found = parse_timing(format_timing(timings))
    for a, b in zip(found, timings, strict=False):
        assert (a.name, a.desc) == (b.name, b.desc)
        assert (a.seconds is None) == (b.seconds is None)
        assert a.seconds is None or math.isclose(a.seconds, b.seconds or 0.0, abs_tol=1e-7)
