"""The life of a process: random lives next to rules that share no code with the machine."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.domain.lifecycle.phase import (
    Abandon,
    CleanedUp,
    CleanUp,
    CutNow,
    Died,
    Drain,
    Drained,
    Entered,
    Exit,
    ExitCode,
    GiveUpStart,
    Life,
    Lifecycle,
    LimitPassed,
    Negotiate,
    Negotiated,
    Phase,
    SetReady,
    Started,
    StartFailed,
    StopAsked,
    TellStop,
)
from holdfast.domain.machine import fold
from holdfast.domain.tree import Outcome

ORDER = list(Phase)
MACHINE = Lifecycle(drain=10, cleanup=4, hurried=1)


def kinds(decisions: Any) -> list[type]:
    return [type(decision) for decision in decisions]


def after(*events: Any, machine: Lifecycle = MACHINE, now: float = 100.0) -> Life:
    return fold(machine, machine.begin(now)[0], [(now, event) for event in events])


# -- examples --------------------------------------------------------------------------------------


def test_a_life_from_end_to_end_decision_by_decision() -> None:
    state, decisions = MACHINE.begin(100.0)
    assert state == Life(entered_at=100.0)
    assert decisions == (Entered(Phase.INITIALIZING, 100.0, ""), SetReady(False))
    state, decisions = MACHINE.step(state, Started(), 101.0)
    assert decisions == (
        Entered(Phase.RUNNING, 101.0, "all components are up"),
        SetReady(True),
    )
    state, decisions = MACHINE.step(state, StopAsked("SIGTERM", "from process 1"), 200.0)
    assert decisions == (
        Entered(Phase.TERMINATING, 200.0, "SIGTERM: from process 1"),
        SetReady(False),
        TellStop(210.0, 214.0),
        Negotiate(210.0),
    )
    state, decisions = MACHINE.step(state, Negotiated(), 201.0)
    assert decisions == (Entered(Phase.DRAINING, 201.0, "everybody was asked"), Drain(210.0))
    state, decisions = MACHINE.step(state, Drained(), 203.0)
    assert decisions == (CleanUp(207.0),)
    state, decisions = MACHINE.step(state, CleanedUp(), 204.0)
    assert decisions == (
        Entered(Phase.STOPPED, 204.0, "SIGTERM: from process 1"),
        Exit(ExitCode.CLEAN, Outcome.DONE),
    )
    assert (state.entered_at, state.cause) == (204.0, "SIGTERM: from process 1")


@pytest.mark.parametrize(
    ("events", "code", "outcome"),
    [
        ((Started(), StopAsked("x")), ExitCode.CLEAN, Outcome.DONE),
        ((StopAsked("x"),), ExitCode.CLEAN, Outcome.DONE),
        ((StartFailed("db", "no"),), ExitCode.FAILED_TO_START, Outcome.FAILED),
        ((Died("db", "gone"),), ExitCode.FAILED_TO_START, Outcome.FAILED),
        ((Started(), Died("db", "gone")), ExitCode.COMPONENT_DIED, Outcome.FAILED),
        ((Started(), StopAsked("x"), StopAsked("y")), ExitCode.FORCED, Outcome.CANCELLED),
        ((Started(), StopAsked("x"), LimitPassed()), ExitCode.TIMED_OUT, Outcome.EXPIRED),
        (
            (Started(), StopAsked("x"), LimitPassed(), StopAsked("y")),
            ExitCode.FORCED,
            Outcome.CANCELLED,
        ),
        (
            (Started(), Died("db", "gone"), StopAsked("y")),
            ExitCode.COMPONENT_DIED,
            Outcome.FAILED,
        ),
        (
            (StartFailed("db", "no"), LimitPassed()),
            ExitCode.FAILED_TO_START,
            Outcome.FAILED,
        ),
    ],
)
def test_the_exit_code_says_why(events: Any, code: ExitCode, outcome: Outcome) -> None:
    state = after(*events, Negotiated(), Drained())
    _, decisions = MACHINE.step(state, CleanedUp(), 101.0)
    assert decisions[-1] == Exit(code, outcome)
    assert after(*events).code is code


def test_the_numbers_of_the_exit_codes_are_what_scripts_know() -> None:
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("CLEAN", 0),
        ("FAILED_TO_START", 3),
        ("TIMED_OUT", 4),
        ("FORCED", 5),
        ("COMPONENT_DIED", 6),
    ]


def test_the_names_of_the_phases_are_stable() -> None:
    assert [str(p) for p in Phase] == [
        "initializing",
        "running",
        "terminating",
        "draining",
        "stopped",
    ]
    assert [p.stopping for p in Phase] == [False, False, True, True, True]


@pytest.mark.parametrize("late", ["work", "clean-up"])
def test_what_did_not_end_in_time_is_told_by_the_exit_code(late: str) -> None:
    state = after(Started(), StopAsked("x"), Negotiated(), Drained(1 if late == "work" else 0))
    assert state.late is (late == "work")
    _, decisions = MACHINE.step(state, CleanedUp(0 if late == "work" else 1), 101.0)
    assert decisions[-1] == Exit(ExitCode.TIMED_OUT, Outcome.EXPIRED)


def test_a_stop_during_the_start_gives_the_start_up() -> None:
    _, decisions = MACHINE.step(after(), StopAsked("SIGTERM"), 100.0)
    assert kinds(decisions) == [Entered, SetReady, GiveUpStart, TellStop, Negotiate]
    assert decisions[0] == Entered(Phase.TERMINATING, 100.0, "SIGTERM")
    _, decisions = MACHINE.step(after(Started()), StopAsked("SIGTERM"), 100.0)
    assert GiveUpStart not in kinds(decisions)


def test_causes_name_the_component() -> None:
    cases = {
        (StartFailed("db", "refused"),): "component 'db' cannot start: refused",
        (Died("db", "refused"),): "component 'db' died while others started: refused",
        (Started(), Died("db", "refused")): "component 'db' died: refused",
    }
    for events, cause in cases.items():
        assert after(*events).cause == cause


@pytest.mark.parametrize(
    ("event", "brief"),
    [
        (StopAsked("SIGTERM", "from process 812 (bash) of user 1000"), "SIGTERM"),
        (StopAsked("SIGTERM from process 812 (bash) of user 1000"), "SIGTERM"),
        (StopAsked("the program", "enough"), "the program: enough"),
        (StopAsked("the supervisor is gone"), "the supervisor is gone"),
        (Died("db", "ConnectionError: postgres://me:secret@db"), "component 'db' died"),
        (Died("copy from a", "ValueError"), "component 'copy from a' died"),
    ],
)
def test_the_brief_cause_names_no_sender_and_no_error(event: Any, brief: str) -> None:
    assert after(Started()).brief == ""
    assert after(Started(), event).brief == brief


def test_the_first_cause_wins() -> None:
    state = after(Started(), StopAsked("first"), Died("db", "x"), StartFailed("y", "z"))
    assert state.cause == "first"
    assert state.code is ExitCode.CLEAN


def test_force_cuts_and_leaves_a_moment_then_gives_clean_up_up() -> None:
    state = after(Started(), StopAsked("a"), Negotiated())
    state, decisions = MACHINE.step(state, StopAsked("b"), 103.0)
    assert decisions == (CutNow(104.0),)
    assert (state.until, state.end) == (103.0, 104.0)
    assert (state.late, state.forced, state.cutting) == (True, True, True)
    assert MACHINE.step(state, StopAsked("c"), 103.5) == (state, ())
    state, decisions = MACHINE.step(state, Drained(1), 103.5)
    assert decisions == (CleanUp(104.0),)
    state, decisions = MACHINE.step(state, StopAsked("d"), 103.6)
    assert decisions == (Abandon(),)
    assert MACHINE.step(state, StopAsked("e"), 103.7) == (state, ())
    _, decisions = MACHINE.step(state, CleanedUp(), 103.7)
    assert decisions[-1] == Exit(ExitCode.FORCED, Outcome.CANCELLED)


def test_force_during_clean_up_gives_it_up_at_once() -> None:
    state = after(Started(), StopAsked("a"), Negotiated(), Drained())
    assert (state.late, state.forced, state.abandoned) == (False, False, False)
    state, decisions = MACHINE.step(state, StopAsked("b"), 103.0)
    assert decisions == (Abandon(),)
    assert (state.late, state.forced, state.abandoned) == (True, True, True)
    _, decisions = MACHINE.step(state, CleanedUp(), 103.0)
    assert decisions[-1] == Exit(ExitCode.FORCED, Outcome.CANCELLED)


def test_force_leaves_no_more_than_the_reserve() -> None:
    machine = Lifecycle(drain=10, cleanup=0.5, hurried=1)
    _, decisions = machine.step(after(StopAsked("a"), machine=machine), StopAsked("b"), 103.0)
    assert decisions == (CutNow(103.5),)


def test_the_limit_cuts_once_and_not_what_is_cut_already() -> None:
    state = after(Started(), StopAsked("a"), Negotiated())
    state, decisions = MACHINE.step(state, LimitPassed(), 110.0)
    assert decisions == (CutNow(114.0),)
    assert MACHINE.step(state, LimitPassed(), 110.0) == (state, ())
    forced = after(Started(), StopAsked("a"), StopAsked("b"))
    assert MACHINE.step(forced, LimitPassed(), 110.0) == (forced, ())
    cleaning = after(Started(), StopAsked("a"), Negotiated(), Drained())
    assert MACHINE.step(cleaning, LimitPassed(), 110.0) == (cleaning, ())


def test_force_after_the_limit_keeps_the_earlier_deadline() -> None:
    state = after(Started(), StopAsked("a"), Negotiated())
    state, _ = MACHINE.step(state, LimitPassed(), 110.0)
    state, decisions = MACHINE.step(state, StopAsked("b"), 111.0)
    assert decisions == (CutNow(112.0),)
    assert (state.until, state.end) == (110.0, 112.0)


def test_clean_up_has_its_reserve_wherever_the_drain_ends() -> None:
    state = after(Started(), StopAsked("a"), Negotiated())
    assert MACHINE.step(state, Drained(), 102.0)[1] == (CleanUp(106.0),)
    assert MACHINE.step(state, Drained(), 111.5)[1] == (CleanUp(114.0),)


@pytest.mark.parametrize("name", ["drain", "cleanup", "hurried"])
@pytest.mark.parametrize("value", [-1.0, inf, float("nan")])
def test_times_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be zero or more seconds and finite"):
        Lifecycle(**{name: value})
    assert getattr(Lifecycle(**{name: 0.0}), name) == 0.0


# -- random lives ----------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.just(Started()),
    st.builds(StartFailed, st.sampled_from("ab"), st.just("no")),
    st.builds(Died, st.sampled_from("ab"), st.just("gone")),
    st.builds(StopAsked, st.sampled_from(["SIGTERM", "SIGINT"])),
    st.just(Negotiated()),
    st.just(LimitPassed()),
    st.builds(Drained, st.integers(0, 2)),
    st.builds(CleanedUp, st.integers(0, 2)),
)


class LifeWalk(RuleBasedStateMachine):
    """Any event at any time; what must hold is said by the rules, not by the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.told: list[Any] = []
        self.seen: list[Any] = []
        self.journal: list[tuple[float, Any]] = []

    @initialize(drain=st.floats(0, 50), cleanup=st.floats(0, 20), hurried=st.floats(0, 5))
    def begin(self, drain, cleanup, hurried):
        self.machine = Lifecycle(drain, cleanup, hurried)
        self.first, decisions = self.machine.begin(self.now)
        self.life = self.first
        self.told += decisions

    @rule(by=st.floats(0, 20))
    def pass_time(self, by):
        self.now += by

    @rule(event=EVENTS)
    def happen(self, event):
        before = self.life
        again = self.machine.step(before, event, self.now)
        self.life, decisions = self.machine.step(before, event, self.now)
        assert again == (self.life, decisions), "equal arguments, equal answer"
        self.journal.append((self.now, event))
        self.told += decisions
        self.check_step(before, event, decisions)

    def check_step(self, before, event, decisions):
        step = ORDER.index(self.life.phase) - ORDER.index(before.phase)
        entered = [d for d in decisions if isinstance(d, Entered)]
        if before.phase is Phase.INITIALIZING and self.life.phase is Phase.TERMINATING:
            assert step == 2  # the one phase that is left out: it never ran
        else:
            assert step in (0, 1)
        assert len(entered) == (step > 0)
        if entered:
            assert entered[0] == decisions[0]
            assert entered[0].phase is self.life.phase
            assert entered[0].at == self.now == self.life.entered_at
        if before.phase is Phase.STOPPED:
            assert (self.life, list(decisions)) == (before, [])
        if isinstance(event, StopAsked) and not before.phase.stopping:
            assert self.life.phase is Phase.TERMINATING
        # Times only shrink, and a cause never changes.
        assert self.life.until <= before.until
        assert self.life.end <= before.end
        assert not before.cause or self.life.cause == before.cause
        for flag in ("cutting", "forced", "late", "cleaning", "abandoned"):
            assert getattr(self.life, flag) >= getattr(before, flag)

    @invariant()
    def ready_only_while_running(self):
        ready = [d.ready for d in self.told if isinstance(d, SetReady)]
        if ready:
            assert ready[-1] is (self.life.phase is Phase.RUNNING)

    @invariant()
    def each_thing_is_told_at_most_once(self):
        for kind in (TellStop, Negotiate, Drain, CleanUp, Abandon, Exit, GiveUpStart):
            assert kinds(self.told).count(kind) <= 1
        assert kinds(self.told).count(CutNow) <= 2  # by the limit, then by force
        order = [k for k in kinds(self.told) if k in (TellStop, Negotiate, Drain, CleanUp, Exit)]
        assert order == [TellStop, Negotiate, Drain, CleanUp, Exit][: len(order)]

    @invariant()
    def the_reserve_is_behind_the_work(self):
        if self.told and self.life.phase.stopping:
            assert self.life.until <= self.life.end
            assert self.life.end - self.life.until <= self.machine.cleanup + 1e-9 or (
                self.life.forced
            )

    @invariant()
    def stopped_is_told_with_the_code_that_the_events_ask_for(self):
        exits = [d for d in self.told if isinstance(d, Exit)]
        assert bool(exits) is (self.life.phase is Phase.STOPPED)
        if not exits:
            return
        events = [event for _, event in self.journal]
        begin = next(
            i
            for i, e in enumerate(events)
            if isinstance(e, StopAsked | StartFailed | Died)
            and not (isinstance(e, StartFailed) and Started() in events[:i])
        )
        up = Started() in events[:begin]
        code = exits[0].code
        if isinstance(events[begin], Died) and up:
            assert code is ExitCode.COMPONENT_DIED
        elif not isinstance(events[begin], StopAsked):
            assert code is ExitCode.FAILED_TO_START
        else:
            assert code in (ExitCode.CLEAN, ExitCode.FORCED, ExitCode.TIMED_OUT)
            assert (code is ExitCode.FORCED) is self.life.forced

    @invariant()
    def folding_the_journal_leads_to_the_same_state(self):
        if self.told:
            assert fold(self.machine, self.first, self.journal) == self.life


TestLife = LifeWalk.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(st.lists(EVENTS, max_size=30))
def test_whatever_happened_a_life_can_be_led_to_its_end(events: list[Any]) -> None:
    state = after(*events)
    for event in (StopAsked("x"), Negotiated(), Drained(), CleanedUp()):
        state, _ = MACHINE.step(state, event, 1000.0)
    assert state.phase is Phase.STOPPED
