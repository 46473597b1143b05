"""What a request has ended as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import Cancelled, DeadlineExceeded
from holdfast.domain.instant import NEVER
from holdfast.domain.wire.ending import close_of, ended_by, is_late, request_name

DEADLINE = CauseKind.DEADLINE


def cause(
    kind: CauseKind = DEADLINE, at: float = 10.0, budget: float = 3.0, elapsed: float = 1.0
) -> Cause:
    return Cause(kind, "scope", "hop", at, budget, elapsed, "")


def test_a_request_is_called_by_its_method_and_path() -> None:
    assert request_name("GET", "/orders/1") == "GET /orders/1"
    assert request_name("GET", "/a\nb\x1b") == "GET /a?b?"


@given(st.text(), st.text())
def test_its_name_is_one_short_line(method: str, path: str) -> None:
    name = request_name(method, path)
    assert name.isprintable()
    assert len(name) == min(128, len(method) + 1 + len(path))


def test_the_cause_is_in_an_error_of_ours_or_in_a_group_of_such() -> None:
    first, second = DeadlineExceeded(cause()), Cancelled(cause(CauseKind.SHUTDOWN))
    assert ended_by(first) is first.cause
    assert ended_by(ExceptionGroup("", [first, ExceptionGroup("", [second])])) is first.cause
    assert ended_by(ExceptionGroup("", [first, ValueError()])) is None
    assert ended_by(ExceptionGroup("", [ValueError(), first])) is None
    assert ended_by(ValueError()) is None
    assert ended_by(None) is None


@pytest.mark.parametrize(
    ("end", "now", "kept", "late"),
    [
        (12.0, 10.0, 0.0, True),  # its limit was the caller's: 10 - 1 + 3
        (12.5, 10.0, 0.5, True),  # less what is kept
        (12.5, 10.0, 0.0, False),
        (11.5, 10.0, 0.0, False),
        (12.1, 12.1, 0.0, True),  # the caller's is spent
        (12.6, 12.1, 0.5, True),
        (12.6, 12.1, 0.4, False),
        (12.6, 12.7, 0.0, True),
        (NEVER, 10.0, 0.0, False),
    ],
)
def test_whether_the_caller_is_late(end: float, now: float, kept: float, late: bool) -> None:
    assert is_late(cause(), end, now, kept) is late
    assert not is_late(cause(CauseKind.SHUTDOWN), end, now, kept)


def test_a_cause_without_a_budget_is_late_when_the_time_is_over() -> None:
    boundless = cause(budget=NEVER)
    assert not is_late(boundless, 12.0, 11.0, 0.0)
    assert is_late(boundless, 12.0, 12.0, 0.0)
    assert not is_late(boundless, NEVER, 12.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(DEADLINE, 1001), (CauseKind.SHUTDOWN, 1012), (CauseKind.OVERLOAD, 1013)],
)
def test_a_web_socket_is_closed_with_a_code_that_says_why(kind: CauseKind, code: int) -> None:
    told, reason = close_of(cause(kind), True)
    assert told == code
    assert reason == cause(kind).line()[:120]
    assert "scope" not in close_of(cause(kind), False)[1]


def test_a_reason_is_cut_between_two_characters() -> None:
    long = Cause(DEADLINE, "a" + "\N{WHALE}" * 100, "", 0.0, 1.0, 1.0, "")
    reason = close_of(long, True)[1]
    assert 116 < len(reason.encode()) <= 120
