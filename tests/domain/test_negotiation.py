"""Exit negotiation: who is asked when, who has answered, who is forced."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.lifecycle.negotiation import (
    Acknowledged,
    Ask,
    Failed,
    Forced,
    GivenUp,
    LookAt,
    Looked,
    Negotiation,
    Over,
    ShutdownRequest,
    Standing,
)

TALKS = Negotiation(patience=2.0)


def test_a_request_says_when_work_is_cut_and_when_an_answer_is_due() -> None:
    cause = Cause(CauseKind.SHUTDOWN, "process")
    request = ShutdownRequest("db", 130.0, cause)
    assert (request.name, request.deadline, request.cause) == ("db", 130.0, cause)
    assert request.answer_by == inf


def test_who_needs_others_is_asked_first() -> None:
    state, decisions = TALKS.begin([["web"], ["cache", "db"]], 120.0, 100.0)
    assert decisions == [Ask("web", 102.0), LookAt(102.0)]
    state, decisions = TALKS.step(state, Acknowledged("web"), 101.0)
    assert decisions == [Ask("cache", 103.0), Ask("db", 103.0), LookAt(103.0)]
    state, decisions = TALKS.step(state, Acknowledged("db"), 101.5)
    assert decisions == []
    assert not state.over
    state, decisions = TALKS.step(state, Acknowledged("cache"), 101.5)
    assert decisions == [Over(())]
    assert state.over


def test_nobody_to_ask_is_over_at_once() -> None:
    for waves in ([], [[]], [[], []]):
        state, decisions = TALKS.begin(waves, 120.0, 100.0)
        assert decisions == [Over(())]
        assert state.over
        assert TALKS.step(state, Looked(), 200.0) == (state, ())


def test_who_answers_with_an_error_is_forced_and_the_rest_goes_on() -> None:
    state, _ = TALKS.begin([["web"], ["db"]], 120.0, 100.0)
    state, decisions = TALKS.step(state, Failed("web", "boom"), 100.5)
    assert decisions == [Forced("web", "failed: boom"), Ask("db", 102.5), LookAt(102.5)]
    state, decisions = TALKS.step(state, Acknowledged("db"), 100.5)
    assert decisions == [Over(("web",))]


def test_who_does_not_answer_is_forced_at_the_deadline_and_not_before() -> None:
    state, _ = TALKS.begin([["a", "b"], ["c"]], 120.0, 100.0)
    state, _ = TALKS.step(state, Acknowledged("b"), 101.0)
    state, decisions = TALKS.step(state, Looked(), 101.999)
    assert decisions == []
    state, decisions = TALKS.step(state, Looked(), 102.0)
    assert decisions == [Forced("a", "did not answer in time"), Ask("c", 104.0), LookAt(104.0)]


def test_an_answer_at_the_very_deadline_counts_and_one_after_it_does_not() -> None:
    state, _ = TALKS.begin([["a"]], 120.0, 100.0)
    assert TALKS.step(state, Acknowledged("a"), 102.0)[1] == [Over(())]
    late, decisions = TALKS.step(state, Acknowledged("a"), 102.1)
    assert decisions == [Forced("a", "did not answer in time"), Over(("a",))]
    assert late.forced == ("a",)
    assert TALKS.step(state, Failed("a", "x"), 102.1)[1] == decisions


def test_no_answer_reaches_beyond_the_time_of_the_stop() -> None:
    state, decisions = TALKS.begin([["a"], ["b"], ["c"]], 101.0, 100.0)
    assert decisions == [Ask("a", 101.0), LookAt(101.0)]
    state, decisions = TALKS.step(state, Looked(), 101.0)
    assert decisions == [
        Forced("a", "did not answer in time"),
        Forced("b", "no time was left to ask", asked=False),
        Forced("c", "no time was left to ask", asked=False),
        Over(("a", "b", "c")),
    ]


def test_no_time_at_all() -> None:
    _, decisions = TALKS.begin([["a"]], 100.0, 100.0)
    assert decisions == [Forced("a", "no time was left to ask", asked=False), Over(("a",))]
    _, decisions = Negotiation(0.0).begin([["a"]], 200.0, 100.0)
    assert decisions == [Ask("a", 100.0), LookAt(100.0)]


def test_a_forced_stop_ends_it() -> None:
    state, _ = TALKS.begin([["a", "x"], ["b"]], 120.0, 100.0)
    state, _ = TALKS.step(state, Acknowledged("x"), 100.5)
    state, decisions = TALKS.step(state, GivenUp(), 100.5)
    assert decisions == [
        Forced("a", "did not answer in time"),
        Forced("b", "no time was left to ask", asked=False),
        Over(("a", "b")),
    ]
    assert state.standing["x"] is Standing.ACKNOWLEDGED


def test_answers_of_strangers_and_of_those_not_asked_change_nothing() -> None:
    state, _ = TALKS.begin([["a"], ["b"]], 120.0, 100.0)
    for event in (Acknowledged("b"), Acknowledged("z"), Failed("b", "x"), Failed("z", "x")):
        assert TALKS.step(state, event, 100.5) == (state, [])


def test_how_it_stands_with_each_can_be_read_at_any_time() -> None:
    state, _ = TALKS.begin([["a", "b"], ["c"]], 120.0, 100.0)
    state, _ = TALKS.step(state, Acknowledged("b"), 100.5)
    assert dict(state.standing) == {
        "a": Standing.ASKED,
        "b": Standing.ACKNOWLEDGED,
        "c": Standing.WAITING,
    }
    assert state.forced == ()


def test_the_first_answer_counts() -> None:
    state, _ = TALKS.begin([["a", "b"]], 120.0, 100.0)
    state, _ = TALKS.step(state, Failed("a", "x"), 100.1)
    assert TALKS.step(state, Acknowledged("a"), 100.2) == (state, [])
    assert state.forced == ("a",)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_patience_is_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="patience must be zero or more seconds"):
        Negotiation(value)


def test_a_thousand_in_one_wave() -> None:
    names = [str(n) for n in range(1000)]
    state, decisions = TALKS.begin([names], 120.0, 100.0)
    assert len(decisions) == 1001
    for name in names[:-1]:
        state, decisions = TALKS.step(state, Acknowledged(name), 100.0)
        assert decisions == []
    assert TALKS.step(state, Acknowledged(names[-1]), 100.0)[1] == [Over(())]


class TalksWalk(RuleBasedStateMachine):
    """Any answer at any time, next to plain sets that derive who must be what."""

    @initialize(
        shape=st.lists(st.integers(0, 3), max_size=4),
        budget=st.floats(0, 8),
        patience=st.floats(0, 3),
    )
    def begin(self, shape, budget, patience):
        names = iter("abcdefghijkl")
        self.waves = [[next(names) for _ in range(size)] for size in shape]
        self.machine = Negotiation(patience)
        self.now = 100.0
        self.until = self.now + budget
        self.asked: dict[str, tuple[float, float]] = {}
        self.acknowledged: set[str] = set()
        self.forced: list[str] = []
        self.over = 0
        self.look_at = inf
        self.state, decisions = self.machine.begin(self.waves, self.until, self.now)
        self.take(decisions)

    def take(self, decisions: Any) -> None:
        for decision in decisions:
            assert not self.over, "nothing comes after the end"
            match decision:
                case Ask(name, deadline):
                    assert name not in self.asked
                    assert name not in self.forced
                    assert deadline <= self.until
                    assert deadline == min(self.now + self.machine.patience, self.until)
                    before = self.waves[: next(i for i, w in enumerate(self.waves) if name in w)]
                    done = self.acknowledged | set(self.forced)
                    assert all(each in done for wave in before for each in wave)
                    self.asked[name] = (self.now, deadline)
                case Forced(name, _, asked):
                    assert name not in self.acknowledged
                    assert name not in self.forced
                    assert asked is (name in self.asked)
                    self.forced.append(name)
                case LookAt(at):
                    self.look_at = at
                case Over(forced):
                    assert forced == tuple(self.forced) or set(forced) == set(self.forced)
                    self.over += 1

    @rule(name=st.sampled_from("abcdef"), fine=st.booleans())
    def answer(self, name, fine):
        waits = name in self.asked and name not in self.acknowledged | set(self.forced)
        if waits and self.now <= self.asked[name][1] and fine and not self.over:
            self.acknowledged.add(name)
        event = Acknowledged(name) if fine else Failed(name, "x")
        self.state, decisions = self.machine.step(self.state, event, self.now)
        self.take(decisions)

    @rule(by=st.floats(0, 4))
    def pass_time(self, by):
        # The driver looks in when it was told to.
        target = self.now + by
        while not self.over and self.look_at <= target:
            self.now = max(self.now, self.look_at)
            self.state, decisions = self.machine.step(self.state, Looked(), self.now)
            self.take(decisions)
        self.now = target

    @rule()
    def force(self):
        self.state, decisions = self.machine.step(self.state, GivenUp(), self.now)
        self.take(decisions)
        assert self.over == 1

    @invariant()
    def it_is_over_when_everybody_is_accounted_for(self):
        if not hasattr(self, "state"):
            return
        names = {name for wave in self.waves for name in wave}
        done = self.acknowledged | set(self.forced)
        assert bool(self.over) is (names == done)
        assert self.state.over is bool(self.over)
        if self.now > self.until:
            assert self.over


TestTalks = TalksWalk.TestCase
TestTalks.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
