"""Durations as people write and read them."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.instant import NEVER, format_duration, parse_duration


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30.0),
        ("250ms", 0.25),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1.5s", 1.5),
        (" 1S ", 1.0),
        ("inf", NEVER),
        ("never", NEVER),
        ("none", NEVER),
        ("0s", 0.0),
        (3, 3.0),
        (0.5, 0.5),
        (math.inf, NEVER),
    ],
)
def test_parse(value: str | float, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "s",
        "5",
        "-5s",
        "+5s",
        "5 s",
        "1e3s",
        ".5s",
        "5.s",
        "5x",
        "\u0665s",
        "5s!",
        -1,
        math.nan,
        True,
    ],
)
def test_not_a_duration(value: str | float) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (5e-6, "5 us"),
        (0.0009996, "1 ms"),
        (0.35, "350 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.234, "1.23 s"),
        (119.4, "119 s"),
        (119.9, "2 min 0 s"),
        (150.0, "2 min 30 s"),
        (-0.35, "-350 ms"),
        (-150.0, "-2 min 30 s"),
        (NEVER, "no limit"),
        (-math.inf, "-no limit"),
    ],
)
def test_format(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e9))
def test_what_is_shown_has_no_exponent_and_is_near(seconds: float) -> None:
    text = format_duration(seconds)
    if seconds > 1e-5:
        assert "e" not in text
    number, unit = text.split(" ")[:2]
    if unit in ("us", "ms", "s"):
        shown = parse_duration(f"{float(number):.12f}{unit}")
        assert math.isclose(shown, seconds, rel_tol=0.006, abs_tol=1e-11)


@given(st.text(max_size=20))
def test_parse_raises_nothing_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0


@given(st.integers(0, 1000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_parts_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    found = parse_duration(f"{hours}h{minutes}m{seconds}s{millis}ms")
    assert math.isclose(found, hours * 3600 + minutes * 60 + seconds + millis / 1000)
