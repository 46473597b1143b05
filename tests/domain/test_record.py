from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.record import KINDS, Record, record_from_dict

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
records = st.builds(
    Record,
    at=st.floats(0, 1e7).map(lambda value: round(value, 6)),
    kind=st.sampled_from(sorted(KINDS)),
    subject=st.text(max_size=20),
    detail=st.text(max_size=20),
    cause=st.text(max_size=20),
    scope=st.text(min_size=1, max_size=20),
    wall=st.floats(0, 2e9).map(lambda value: round(value, 6)),
    pid=st.integers(0, 2**22),
    data=st.dictionaries(st.text(max_size=5), plain, max_size=3),
)


@given(records)
def test_what_is_written_is_read_again(record: Record) -> None:
    assert record_from_dict(json.loads(json.dumps(record.as_dict()))) == record


@given(plain)
def test_whatever_else_is_refused_with_a_reason(value: object) -> None:
    with pytest.raises(ValueError, match="record"):
        record_from_dict(value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("at", "soon", "'at' of a record is a number"),
        ("at", math.inf, "'at' of a record is a number"),
        ("wall", True, "'wall' of a record is a number"),
        ("subject", 3, "'subject' of a record is a text"),
        ("kind", "party.begun", "not a kind of record"),
        ("data", [], "'data' of a record is a JSON object"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: object, said: str) -> None:
    good = Record(1.0, "stop.begun").as_dict()
    with pytest.raises(ValueError, match=said):
        record_from_dict(good | {key: value})


def test_a_line_for_logs_leaves_out_what_is_empty() -> None:
    assert Record(0.0, "drain.step", "announce").line() == "drain.step announce"
    full = Record(0.0, "phase.entered", "draining", "all have answered", "SIGTERM")
    assert full.line() == "phase.entered draining all have answered (SIGTERM)"


def test_a_text_from_outside_is_capped() -> None:
    long = Record(0.0, "dump.written").as_dict() | {"detail": "x" * 100_000}
    assert len(record_from_dict(long).detail) == 65_536
