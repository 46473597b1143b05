"""Causes and the errors that carry them."""

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
    ScopeEnded,
    UsageError,
)

BANK = Cause(CauseKind.DEADLINE, "charge", "bank", 5.0, 2.0, 2.5)


def test_the_line_says_who_why_and_how_long() -> None:
    assert BANK.line() == "deadline exceeded in scope 'bank:charge' (budget 2 s, ran 2.5 s)"
    cause = Cause(CauseKind.SHUTDOWN, "a/b", elapsed=0.5, detail="SIGTERM")
    assert cause.line() == "the process is shutting down in scope 'a/b' (ran 500 ms): SIGTERM"


def test_what_is_below_is_kept_in_order() -> None:
    other = Cause(CauseKind.OVERLOAD, "db")
    cause = Cause(CauseKind.DEADLINE, "edge").with_below(BANK).with_below(other)
    assert cause.below == (BANK, other)
    assert cause.line().endswith(f" <- {BANK.line()} <- {other.line()}")


def test_the_origin_is_the_deepest_of_the_nearest() -> None:
    assert BANK.origin is BANK
    middle = Cause(CauseKind.DEADLINE, "orders").with_below(BANK)
    assert Cause(CauseKind.DEADLINE, "edge").with_below(middle).origin is BANK


@pytest.mark.parametrize("kind", CauseKind)
def test_every_kind_is_readable(kind: CauseKind) -> None:
    line = Cause(kind, "a").line()
    assert " in scope 'a'" in line
    assert "\n" not in line


def test_kinds_are_stable() -> None:
    assert [kind.value for kind in CauseKind] == [
        "deadline",
        "cancelled_by_caller",
        "client_disconnected",
        "parent_cancelled",
        "sibling_failed",
        "shutdown",
        "overload",
        "hedge_lost",
        "chaos",
    ]


@pytest.mark.parametrize("kind", [ScopeEnded, DeadlineExceeded, InsufficientBudget, Cancelled])
def test_errors_carry_their_cause_and_print_it(kind: type[ScopeEnded]) -> None:
    error = kind(BANK)
    assert isinstance(error, HoldfastError)
    assert error.cause is BANK
    assert str(error) == BANK.line()
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert again.cause == BANK
        assert str(again) == BANK.line()


def test_the_tree_of_errors() -> None:
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(InsufficientBudget, DeadlineExceeded)
    assert not issubclass(Cancelled, TimeoutError)
    assert issubclass(UsageError, RuntimeError)
    assert issubclass(ConfigError, ValueError)
    assert DeadlineExceeded(BANK).errno is None


def test_a_config_error_says_where() -> None:
    error = ConfigError("timeouts.request", "must be longer")
    assert (error.path, error.problem) == ("timeouts.request", "must be longer")
    assert str(error) == "timeouts.request: must be longer"
    assert str(ConfigError("", "empty")) == "empty"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
