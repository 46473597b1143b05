"""The algebra of the three budgets."""

# ruff: noqa: RUF043
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.budget import Hold, Purse, share_of
from holdfast.domain.instant import NEVER

instants = st.floats(0, 1e9) | st.just(NEVER)
weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@given(weights, st.floats(0.1, 1e5))
def test_shares_add_up_to_the_whole(parts: list[float], left: float) -> None:
    rest = left
    for step in range(len(parts)):
        share = share_of(rest, parts, step)
        assert 0 <= share <= rest * (1 + 1e-12)
        rest -= share
    assert rest == pytest.approx(0, abs=left * 1e-9)


@given(weights, st.floats(0.1, 1e5))
def test_what_a_step_does_not_use_goes_to_the_later_ones(parts: list[float], left: float) -> None:
    for step in range(1, len(parts)):
        assert (
            share_of(left, parts, step) >= share_of(left, parts, 0) * parts[step] / parts[0] - 1e-9
        )
    assert share_of(left, parts, len(parts) - 1) == pytest.approx(left)


def test_shares_of_nothing_and_of_everything() -> None:
    assert share_of(-5, (1, 1), 0) == 0.0
    assert share_of(NEVER, (1, 3), 1) == NEVER


@pytest.mark.parametrize("bad", [(0,), (1, -1), (math.nan,), (1, 0)])
def test_weights_must_be_positive(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="positive"):
        share_of(1, bad, 0)


@pytest.mark.parametrize("step", [-1, 2])
def test_there_is_no_such_step(step: int) -> None:
    with pytest.raises(IndexError, match="of 2"):
        share_of(1, (1, 1), step)


# -- holds ----------------------------------------------------------------------------------------


def test_a_hold_lends_up_to_its_total() -> None:
    hold = Hold(3)
    assert hold.lend(2)
    assert not hold.lend(2)
    assert (hold.lent, hold.free) == (2, 1)
    hold.take_back(2)
    assert hold.free == 3


def test_children_share_what_the_parent_has() -> None:
    parent = Hold(5)
    first, second = parent.carve(3), parent.carve(2)
    assert first is not None
    assert second is not None
    assert parent.carve(1) is None
    first.release()
    assert parent.free == 3
    first.release()
    assert parent.free == 3


def test_what_is_out_when_a_hold_is_released_follows_as_it_is_returned() -> None:
    parent = Hold(6)
    child = parent.carve(4)
    assert child is not None
    assert child.lend(3)
    child.release()
    assert (parent.lent, child.free) == (3, 0)
    child.take_back(2)
    assert parent.lent == 1
    assert child.free == 0
    assert not child.lend(1)
    child.take_back(1)
    assert parent.lent == 0


def test_a_released_grandchild_gives_back_to_the_top() -> None:
    top = Hold(6)
    middle = top.carve(4)
    assert middle is not None
    low = middle.carve(2)
    assert low is not None
    low.lend(1)
    middle.release()
    assert top.lent == 2
    low.release()
    assert top.lent == 1
    low.take_back(1)
    assert top.lent == 0


@pytest.mark.parametrize("bad", [-1, math.nan])
def test_a_hold_refuses_what_makes_no_sense(bad: float) -> None:
    hold = Hold(3)
    for call in (Hold, hold.lend, hold.take_back, hold.carve):
        with pytest.raises(ValueError, match="negative|lend|take back"):
            call(bad)
    with pytest.raises(ValueError, match="0.0 is lent"):
        hold.take_back(1)


# -- purses ---------------------------------------------------------------------------------------


def test_a_spend_debits_every_ancestor_or_none() -> None:
    top = Purse(3)
    middle = Purse(2, top)
    low = Purse(9, middle)
    assert low.capacity == 2
    assert low.spend()
    assert (top.balance, middle.balance, low.balance) == (2, 1, 1)
    assert low.available == 1
    assert not low.spend(2)
    assert (top.balance, middle.balance, low.balance) == (2, 1, 1)


def test_three_tiers_with_three_tries_are_not_twenty_seven_calls() -> None:
    top = Purse(3)
    calls = 0
    for _ in range(3):
        middle = Purse(3, top)
        for _ in range(3):
            low = Purse(3, middle)
            while low.spend():
                calls += 1
    assert calls == 3


def test_only_success_refills_and_never_beyond_the_capacity() -> None:
    top = Purse(10)
    low = Purse(2, top)
    assert low.spend(2)
    low.earn(1)
    assert (low.balance, top.balance) == (1, 9)
    low.earn(100)
    assert (low.balance, top.balance) == (2, 10)


def test_a_purse_may_begin_part_full() -> None:
    assert Purse(5, balance=2).available == 2
    assert Purse(5, balance=9).available == 5


@pytest.mark.parametrize("bad", [-1, math.nan])
def test_a_purse_refuses_what_makes_no_sense(bad: float) -> None:
    purse = Purse(3)
    for call in (Purse, purse.spend, purse.earn):
        with pytest.raises(ValueError, match="negative|spend|earn"):
            call(bad)


def test_a_purse_does_not_begin_overdrawn() -> None:
    with pytest.raises(ValueError, match="negative|balance"):
        Purse(5, balance=-1)
