"""The time of a stop: what the shares are, and that they never exceed the grace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.lifecycle.stopbudget import (
    GROWTH,
    StopBudget,
    adaptive,
    breaches,
    stop_budget,
)

seconds = st.floats(min_value=0, max_value=1e6)
endless = st.one_of(seconds, st.just(math.inf))
failures = st.integers(min_value=0, max_value=5)


def test_the_shares_of_the_default_grace() -> None:
    budget = stop_budget(grace=30, cleanup=5, base=11)
    assert budget == StopBudget(lame_duck=25 / 3, drain=11, cleanup=5)
    assert budget.total == pytest.approx(24.3333, abs=1e-3)


@pytest.mark.parametrize(
    ("count", "drain"), [(0, 8.0), (1, 12.0), (2, 18.0), (3, 27.0), (4, 30.0), (10**6, 30.0)]
)
def test_half_as_much_again_for_each_failure(count: int, drain: float) -> None:
    assert adaptive(8.0, count, 30.0) == drain
    assert stop_budget(grace=300, cleanup=5, base=8, failures=count).drain == drain


def test_the_grace_goes_before_the_cap() -> None:
    budget = stop_budget(grace=30, cleanup=5, base=11, failures=3, cap=30)
    assert budget.drain == pytest.approx(50 / 3)
    assert budget.total <= 30


def test_a_base_without_limit_ends_at_the_cap() -> None:
    assert stop_budget(grace=300, cleanup=5, base=math.inf, cap=20).drain == 20


def test_a_lame_duck_that_is_asked_for() -> None:
    assert stop_budget(grace=30, cleanup=5, base=1, lame_duck=2).lame_duck == 2
    assert stop_budget(grace=30, cleanup=5, base=1, lame_duck=0).lame_duck == 0
    # It comes before the drain, and after the clean-up.
    assert stop_budget(grace=30, cleanup=5, base=9, lame_duck=60) == StopBudget(25, 0, 5)


def test_the_least_lame_duck_is_of_the_third() -> None:
    assert stop_budget(grace=30, cleanup=6, base=1, lame_duck_least=3).lame_duck == 8
    assert stop_budget(grace=30, cleanup=6, base=1, lame_duck_least=12).lame_duck == 12


def test_a_cleanup_longer_than_the_grace_is_all_of_it() -> None:
    assert stop_budget(grace=3, cleanup=5, base=1) == StopBudget(0, 0, 3)


def test_the_law_holds_where_sums_are_rounded_up() -> None:
    assert 1.024 + (15.9 - 1.024) > 15.9
    budget = stop_budget(grace=15.9, cleanup=1.024, base=60, lame_duck=0)
    assert budget.total <= 15.9
    assert budget.drain == pytest.approx(14.876, abs=1e-12)
    assert budget.drain == 15.9 - 1.024 - 2 * math.ulp(15.9)


def test_the_least_lame_duck_is_none() -> None:
    assert stop_budget(grace=1.5, cleanup=0, base=1).lame_duck == 0.5


def test_instants() -> None:
    budget = StopBudget(lame_duck=2, drain=10, cleanup=5)
    assert budget.drain_deadline(100) == 112
    assert budget.end(100) == 117


@given(
    grace=seconds,
    cleanup=seconds,
    base=endless,
    count=failures,
    cap=seconds,
    duck=st.none() | seconds,
    least=seconds,
)
def test_the_shares_never_exceed_the_grace(
    grace: float,
    cleanup: float,
    base: float,
    count: int,
    cap: float,
    duck: float | None,
    least: float,
) -> None:
    budget = stop_budget(
        grace=grace,
        cleanup=cleanup,
        base=base,
        failures=count,
        cap=cap,
        lame_duck=duck,
        lame_duck_least=least,
    )
    assert budget.total <= grace
    assert min(budget.lame_duck, budget.drain, budget.cleanup) >= 0
    assert budget.cleanup <= cleanup
    assert budget.drain <= cap
    if duck is not None:
        assert budget.lame_duck <= duck


@given(grace=seconds, cleanup=seconds, base=endless, count=failures, cap=seconds)
def test_a_failure_never_makes_it_shorter(
    grace: float, cleanup: float, base: float, count: int, cap: float
) -> None:
    before = stop_budget(grace=grace, cleanup=cleanup, base=base, failures=count, cap=cap)
    after = stop_budget(grace=grace, cleanup=cleanup, base=base, failures=count + 1, cap=cap)
    assert after.drain >= before.drain
    assert (after.lame_duck, after.cleanup) == (before.lame_duck, before.cleanup)


@given(base=seconds, count=failures)
def test_the_factor_holds_below_the_cap(base: float, count: int) -> None:
    assert adaptive(base, count, math.inf) == base * GROWTH**count


@given(
    grace=st.floats(min_value=10, max_value=1000),
    cleanup=st.floats(min_value=0, max_value=5),
    longest=st.floats(min_value=0.001, max_value=100),
)
def test_what_is_advised_helps(grace: float, cleanup: float, longest: float) -> None:
    budget = stop_budget(grace=grace, cleanup=cleanup, base=longest, cap=math.inf)
    if not breaches(budget, grace=grace, longest=longest):
        return
    advised = math.ceil(
        budget.cleanup + max(budget.lame_duck + longest, longest * 3 / 2)
    )  # the last number of the sentence, which is rounded for people
    better = stop_budget(grace=advised + 1e-9, cleanup=cleanup, base=longest, cap=math.inf)
    assert breaches(better, grace=advised + 1e-9, longest=longest) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"grace": math.inf},
        {"grace": math.nan},
        {"grace": -1},
        {"cleanup": -1},
        {"cleanup": math.nan},
        {"base": -1},
        {"base": math.nan},
        {"failures": -1},
        {"cap": -1},
        {"lame_duck": -1},
        {"lame_duck_least": -1},
    ],
)
def test_what_cannot_be(wrong: dict[str, float]) -> None:
    problem = "base, cap and failures are not|the grace has an end, and no share is"
    with pytest.raises(ValueError, match=rf"^({problem}) negative$"):
        stop_budget(**({"grace": 30, "cleanup": 5, "base": 10} | wrong))  # type: ignore[arg-type]


def test_nothing_is_said_of_a_budget_that_fits() -> None:
    assert breaches(StopBudget(5, 20, 5), grace=30, longest=20) == ()


def test_a_budget_longer_than_its_grace() -> None:
    assert breaches(StopBudget(5, 20.5, 5), grace=30, longest=20) == (
        "lame duck 5 s, drain 20.5 s and clean-up 5 s are longer than the grace of 30 s: the "
        "platform kills before the stop is over; give it at least 31 s",
    )


def test_requests_longer_than_the_drain() -> None:
    assert breaches(StopBudget(5, 19, 5), grace=30, longest=20) == (
        "requests may take 20 s, and the drain ends after 19 s: what is under way then is cut; "
        "shorten the limit, or give a cap of 20 s and a grace of 35 s",
    )
    assert breaches(StopBudget(8, 19, 5), grace=60, longest=20)[0].endswith("a grace of 35 s")
    assert breaches(StopBudget(11, 19, 5), grace=60, longest=20)[0].endswith("a grace of 36 s")


def test_requests_without_a_limit() -> None:
    assert breaches(StopBudget(5, 20, 5), grace=30, longest=math.inf) == (
        "some requests have no limit: those are cut when the drain of 20 s is over",
    )


def test_both_at_once() -> None:
    assert len(breaches(StopBudget(5, 20, 6), grace=30, longest=21)) == 2
