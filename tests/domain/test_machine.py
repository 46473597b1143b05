"""Folding a journal is running the machine without performing anything."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.machine import fold


@dataclass(frozen=True)
class Breaker:
    failures: int = 0
    open_until: float = 0.0


class BreakerMachine:
    """A machine of the shape: opens for ten seconds after three failures in a row."""

    def step(self, state: Breaker, event: str, now: float) -> tuple[Breaker, tuple[str, ...]]:
        if event == "worked":
            return Breaker(), ()
        failures = state.failures + 1
        if failures < 3:
            return Breaker(failures, state.open_until), ()
        return Breaker(0, now + 10), ("open",)


journals = st.lists(
    st.tuples(st.floats(0, 1e6), st.sampled_from(["worked", "failed", "failed"])), max_size=30
)


def test_an_empty_journal_changes_nothing() -> None:
    state = Breaker(2)
    assert fold(BreakerMachine(), state, []) is state


@given(journals)
def test_folding_is_stepping(journal: list[tuple[float, str]]) -> None:
    machine, state = BreakerMachine(), Breaker()
    for at, event in journal:
        state, _ = machine.step(state, event, at)
    assert fold(machine, Breaker(), journal) == state


@given(journals, st.integers(0, 30))
def test_a_crash_in_between_changes_nothing(journal: list[tuple[float, str]], at: int) -> None:
    machine = BreakerMachine()
    before = fold(machine, Breaker(), journal[:at])
    assert fold(machine, before, journal[at:]) == fold(machine, Breaker(), journal)


def test_a_journal_may_be_a_stream() -> None:
    state = fold(BreakerMachine(), Breaker(), ((float(n), "failed") for n in range(3)))
    assert state == Breaker(0, 12.0)
