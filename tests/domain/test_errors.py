"""The tree of errors and the causes that they carry."""

from __future__ import annotations

import copy
import pickle

import pytest

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    HoldfastError,
    InsufficientBudget,
    OutcomeUnknown,
    ScopeEnded,
    UsageError,
)

CAUSE = Cause(CauseKind.DEADLINE, "request/charge", "shop", 12.0, 3.0, 3.01, "no answer")


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (ScopeEnded, {HoldfastError}),
        (DeadlineExceeded, {ScopeEnded, TimeoutError, OSError}),
        (InsufficientBudget, {DeadlineExceeded, TimeoutError}),
        (Cancelled, {ScopeEnded}),
        (OutcomeUnknown, {ScopeEnded}),
        (UsageError, {HoldfastError, RuntimeError}),
        (ConfigError, {HoldfastError, ValueError}),
    ],
)
def test_the_tree(error: type[Exception], bases: set[type[Exception]]) -> None:
    assert all(issubclass(error, base) for base in bases)


def test_cancelled_is_not_timed_out() -> None:
    assert not issubclass(Cancelled, TimeoutError)
    assert not issubclass(DeadlineExceeded, Cancelled)


@pytest.mark.parametrize("kind", [ScopeEnded, DeadlineExceeded, InsufficientBudget, Cancelled])
def test_an_end_is_one_readable_line(kind: type[ScopeEnded]) -> None:
    error = kind(CAUSE)
    assert error.cause is CAUSE
    assert str(error) == CAUSE.line()
    assert "\n" not in str(error)
    for part in ("shop:request/charge", "budget 3 s", "ran 3.01 s", "no answer"):
        assert part in str(error)


@pytest.mark.parametrize("kind", [DeadlineExceeded, InsufficientBudget, Cancelled])
def test_an_end_survives_pickling_and_copying(kind: type[ScopeEnded]) -> None:
    for again in (pickle.loads(pickle.dumps(kind(CAUSE))), copy.copy(kind(CAUSE))):
        assert type(again) is kind
        assert again.cause == CAUSE
        assert str(again) == str(kind(CAUSE))


def test_an_unknown_outcome_is_no_time_out_and_says_what_it_is() -> None:
    error = OutcomeUnknown(CAUSE)
    assert not isinstance(error, TimeoutError)
    assert str(error).startswith("the outcome is unknown, it may have been done: ")
    assert str(error).endswith(CAUSE.line())
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is OutcomeUnknown
    assert again.cause == CAUSE


def test_a_config_error_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(ConfigError("timeouts.request", "write 30s")))
    assert (again.path, again.problem) == ("timeouts.request", "write 30s")
    assert str(again) == "timeouts.request: write 30s"
    assert str(ConfigError("", "write 30s")) == "write 30s"


@pytest.mark.parametrize("kind", list(CauseKind))
def test_every_kind_has_a_sentence(kind: CauseKind) -> None:
    line = Cause(kind, "s").line()
    assert "in scope 's'" in line
    assert kind.value not in line or " " not in kind.value
    assert len(line.split()) > 4


def test_a_cause_without_a_budget_names_none() -> None:
    assert "budget" not in Cause(CauseKind.CALLER, "s", elapsed=1.0).line()


def test_the_origin_is_the_deepest_hop() -> None:
    db = Cause(CauseKind.DEADLINE, "query", "db")
    stock = Cause(CauseKind.DEADLINE, "reserve", "stock").with_below(db)
    edge = Cause(CauseKind.DEADLINE, "order", "edge").with_below(stock)
    assert edge.origin is db
    assert db.origin is db
    assert edge.line().index("edge") < edge.line().index("stock") < edge.line().index("db")


def test_what_is_below_is_added_after_what_is_known() -> None:
    first, second = Cause(CauseKind.CALLER, "1"), Cause(CauseKind.CALLER, "2")
    assert CAUSE.with_below(first).with_below(second).below == (first, second)
    assert CAUSE.below == ()


def test_the_values_of_kinds_are_stable() -> None:
    assert {str(kind) for kind in CauseKind} == {
        "deadline",
        "cancelled_by_caller",
        "client_disconnected",
        "parent_cancelled",
        "sibling_failed",
        "shutdown",
        "overload",
        "hedge_lost",
        "chaos",
    }


def test_except_timeouterror_sees_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        raise DeadlineExceeded(CAUSE)
