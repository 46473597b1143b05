"""The drain: by its rules, by a model, and by what must never happen to a connection."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.domain.instant import NEVER
from holdfast.domain.lifecycle.drain import (
    Announce,
    Begun,
    Cut,
    CutOff,
    Decision,
    Done,
    Drain,
    DrainState,
    DrainTerms,
    Kind,
    Line,
    Looked,
    ReleaseQuiet,
    SayFarewell,
    Step,
    StopAccepting,
    Verdict,
    opening,
    verdict,
)

NOBODY = -math.inf
TERMS = DrainTerms(calm=0.5, least=0.0, most=5.0, quiet=1.0)


def begun(terms: DrainTerms = TERMS, at: float = 100.0, deadline: float = 110.0) -> DrainState:
    state, decided = Drain().step(opening(terms), Begun(deadline), at)
    assert decided == (Announce(),)
    return state


def look(
    state: DrainState, now: float, open_: int = 1, accepted: float = NOBODY
) -> tuple[DrainState, list[Decision]]:
    state, decided = Drain().step(state, Looked(open_, accepted), now)
    return state, list(decided)


def kinds(decided: list[Decision]) -> list[type]:
    return [type(decision) for decision in decided]


def test_first_it_is_announced_and_new_connections_are_still_served() -> None:
    state = begun()
    assert state.step is Step.LAME_DUCK
    state, decided = look(state, 100.0)
    assert (decided, state.look) == ([], 100.5)


def test_the_lame_duck_ends_when_no_new_connection_came_for_a_while() -> None:
    state, decided = look(begun(), 100.5, accepted=100.1)
    assert (decided, state.look) == ([], pytest.approx(100.6))
    state, decided = look(state, 100.7, accepted=100.1)
    assert decided == [
        StopAccepting("no new connection came any more"),
        SayFarewell(),
        ReleaseQuiet(),
    ]
    assert state.step is Step.LETTING_GO


def test_the_lame_duck_ends_with_its_share_whoever_still_comes() -> None:
    state, decided = look(begun(), 104.9, accepted=104.9)
    assert (decided, state.look) == ([], 105.0)
    _, decided = look(state, 105.0, accepted=104.99)
    assert decided[0] == StopAccepting("its share of the time is over")


def test_the_lame_duck_leaves_the_quiet_window_its_time() -> None:
    state, decided = look(begun(deadline=103.0), 101.9, accepted=101.9)
    assert (decided, state.look) == ([], 102.0)
    _, decided = look(state, 102.0, accepted=101.9)
    assert decided[0] == StopAccepting("no more time was left for it")


def test_the_lame_duck_lasts_at_least_as_long_as_it_must() -> None:
    state = begun(DrainTerms(calm=0.5, least=2.0, most=5.0))
    state, decided = look(state, 101.0)
    assert (decided, state.look) == ([], 102.0)


def test_with_nothing_open_it_is_done_soon_after_the_listener_is_gone() -> None:
    state, decided = look(begun(), 100.5, 0)
    assert kinds(decided) == [StopAccepting, SayFarewell, ReleaseQuiet]
    state, decided = look(state, 100.52, 0)  # what was taken in last may not be seen yet
    assert (decided, state.look) == ([], pytest.approx(100.55))
    state, decided = look(state, 100.55, 0)
    assert (decided, state.step) == ([Done(0)], Step.DONE)


def test_where_handshakes_may_be_under_way_a_quiet_window_is_waited_out() -> None:
    state, _ = look(begun(DrainTerms(handshakes=True)), 100.5, 0)
    state, decided = look(state, 101.4, 0)
    assert (decided, state.look) == ([], 101.5)
    _, decided = look(state, 101.5, 0)
    assert decided == [Done(0)]


def test_at_the_deadline_what_is_open_is_cut_and_may_unwind() -> None:
    state, _ = look(begun(), 100.5)
    state, decided = look(state, 109.9)
    assert (decided, state.look) == ([], 110.0)
    state, decided = look(state, 110.0, 3)
    assert (decided, state.look) == ([Cut()], 111.0)
    state, decided = look(state, 110.5, 2)
    assert decided == []
    _, decided = look(state, 111.0, 2)
    assert decided == [Done(2)]


def test_what_the_lame_duck_did_not_need_is_not_for_what_hangs() -> None:
    state, _ = look(begun(DrainTerms(drain=3.0)), 100.5)
    assert (state.deadline, state.look) == (103.5, 103.5)
    _, decided = look(state, 103.5)
    assert decided == [Cut()]
    late, _ = look(begun(DrainTerms(drain=30.0)), 100.5)
    assert late.deadline == 110.0  # never later than the stop allows


def test_what_unwinds_at_once_is_not_waited_for() -> None:
    state, _ = look(begun(), 110.0, 3)
    _, decided = look(state, 110.01, 0)
    assert decided == [Done(0)]


def test_whoever_cannot_wait_gets_the_cut_at_once_and_only_once() -> None:
    machine = Drain()
    state, decided = machine.step(begun(), CutOff(), 100.1)
    assert kinds(list(decided)) == [StopAccepting, SayFarewell, ReleaseQuiet, Cut]
    assert machine.step(state, CutOff(), 100.2) == (state, ())
    state, decided = machine.step(opening(TERMS), CutOff(), 100.0)
    assert kinds(list(decided)) == [Announce, StopAccepting, SayFarewell, ReleaseQuiet, Cut]
    letting_go, _ = look(begun(), 100.5)
    _, decided = machine.step(letting_go, CutOff(), 100.6)
    assert decided == [Cut()]


def test_every_step_says_since_when_and_until_when() -> None:
    machine = Drain()
    state = begun()
    assert state == DrainState(TERMS, Step.LAME_DUCK, 100.0, 100.0, 110.0, look=100.0)
    state, _ = look(state, 100.5)
    assert state == DrainState(TERMS, Step.LETTING_GO, 100.0, 100.5, 110.0, look=110.0)
    cut, _ = machine.step(state, CutOff(), 103.0)
    assert cut == DrainState(TERMS, Step.CUTTING, 100.0, 103.0, 110.0, look=104.0)
    done, _ = look(cut, 103.1, 0)
    assert done == DrainState(TERMS, Step.DONE, 100.0, 103.1, 110.0, look=NEVER)
    done, _ = look(state, 103.2, 0)
    assert done == DrainState(TERMS, Step.DONE, 100.0, 103.2, 110.0, look=NEVER)
    at_once, decided = machine.step(opening(TERMS), CutOff(), 50.0)
    assert at_once == DrainState(TERMS, Step.CUTTING, 50.0, 50.0, NEVER, look=51.0)
    assert decided[1] == StopAccepting("the time is over")


def test_where_its_own_end_and_that_of_the_time_fall_together_the_time_is_what_ended_it() -> None:
    state = begun(DrainTerms(calm=0.5, quiet=1.0), deadline=101.5)
    _, decided = look(state, 100.5)
    assert decided[0] == StopAccepting("no more time was left for it")


def test_a_second_beginning_changes_nothing() -> None:
    state = begun()
    assert Drain().step(state, Begun(200.0), 101.0) == (state, ())
    assert look(opening(TERMS), 1.0) == (opening(TERMS), [])


@pytest.mark.parametrize("name", ["calm", "least", "most", "drain", "quiet", "farewell", "parting"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_times_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be zero or more seconds"):
        DrainTerms(**{name: value})


# -- one connection --------------------------------------------------------------------------------

IDLE = Line(Kind.HTTP, busy=False, partial=False, touched=90.0)


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        (IDLE, 100.5, (Verdict.KEEP, 101.0)),  # counted from the announcement
        (IDLE, 101.0, (Verdict.CLOSE, 101.0)),
        (IDLE._replace(touched=100.7), 101.0, (Verdict.KEEP, 101.7)),  # or from its last byte
        (IDLE._replace(touched=100.7), 101.8, (Verdict.CLOSE, 101.8)),
        (IDLE._replace(busy=True), 105.0, (Verdict.KEEP, NEVER)),
        (IDLE._replace(partial=True), 105.0, (Verdict.KEEP, NEVER)),
        (IDLE._replace(leaving=101.0), 109.0, (Verdict.KEEP, NEVER)),
        (IDLE._replace(leaving=101.0, tls=True), 101.4, (Verdict.KEEP, 101.5)),
        (IDLE._replace(leaving=101.0, tls=True), 101.5, (Verdict.ABORT, 101.5)),
        (IDLE._replace(leaving=101.0, tls=True, unsent=1), 109.0, (Verdict.KEEP, NEVER)),
        (IDLE._replace(kind=Kind.WEBSOCKET), 105.0, (Verdict.KEEP, NEVER)),
        (IDLE._replace(kind=Kind.WEBSOCKET, leaving=101.0), 102.0, (Verdict.KEEP, 103.0)),
        (IDLE._replace(kind=Kind.WEBSOCKET, leaving=101.0), 103.0, (Verdict.ABORT, 103.0)),
    ],
)
def test_verdicts(line: Line, now: float, expected: tuple[Verdict, float]) -> None:
    assert verdict(line, 100.0, TERMS, now) == expected


instants = st.floats(0, 200).map(lambda value: round(value, 3))
lines = st.builds(
    Line,
    st.sampled_from(Kind),
    st.booleans(),
    st.booleans(),
    instants,
    st.just(NEVER) | instants,
    st.integers(0, 2),
    st.booleans(),
)


@given(lines, instants)
def test_no_verdict_closes_what_something_may_be_on_the_way_of(line: Line, now: float) -> None:
    found, due = verdict(line, 100.0, TERMS, now)
    assert due >= now
    if found is Verdict.CLOSE:
        assert not line.busy
        assert not line.partial
        assert now - line.touched >= TERMS.quiet
        assert now - 100.0 >= TERMS.quiet
    if found is Verdict.ABORT:
        assert line.leaving < NEVER
        assert not line.unsent


@given(lines, instants)
def test_at_the_instant_that_it_names_a_verdict_is_another(line: Line, now: float) -> None:
    found, due = verdict(line, 100.0, TERMS, now)
    if found is Verdict.KEEP and due < NEVER:
        assert verdict(line, 100.0, TERMS, due)[0] is not Verdict.KEEP


# -- the model -------------------------------------------------------------------------------------

ORDER = [Announce, StopAccepting, SayFarewell, ReleaseQuiet, Cut, Done]


class DrainModel(RuleBasedStateMachine):
    """Any history: each decision at most once, in the one order, and never after the end."""

    def __init__(self) -> None:
        super().__init__()
        self.state = opening(TERMS)
        self.now = 100.0
        self.told: list[type] = []
        self.accepted = NOBODY
        self.deadline = NEVER
        self.open = 0

    def step(self, event: Begun | Looked | CutOff) -> list[Decision]:
        before = self.state.step
        self.state, decided = Drain().step(self.state, event, self.now)
        assert list(Step).index(self.state.step) >= list(Step).index(before)
        for decision in decided:
            if isinstance(decision, Done):
                assert decision.left == 0 or Cut in self.told
            self.told.append(type(decision))
        return list(decided)

    @initialize(
        quiet=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
        calm=st.sampled_from([0.0, 0.5, 20.0]),
        least=st.sampled_from([0.0, 3.0]),
        handshakes=st.booleans(),
    )
    def terms(self, quiet: float, calm: float, least: float, handshakes: bool) -> None:
        self.state = opening(DrainTerms(calm=calm, least=least, quiet=quiet, handshakes=handshakes))

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.3, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 6)

    @rule(left=st.sampled_from([0.0, 0.5, 3.0, 10.0]))
    def begin(self, left: float) -> None:
        if self.state.step is Step.SERVING:
            self.deadline = self.now + left
        self.step(Begun(self.now + left))

    @rule(count=st.integers(0, 3))
    def connections(self, count: int) -> None:
        if count > self.open and StopAccepting not in self.told:
            self.accepted = self.now
        self.open = count

    @rule()
    def looks(self) -> None:
        self.step(Looked(self.open, self.accepted))

    @rule()
    def cut_off(self) -> None:
        self.step(CutOff())

    @precondition(lambda self: self.state.step not in (Step.SERVING, Step.DONE))
    @rule()
    def looks_when_told_to(self) -> None:
        before = (self.state.step, self.state.look)
        self.now = max(self.now, self.state.look) if self.state.look < NEVER else self.now
        self.step(Looked(self.open, self.accepted))
        # It never asks to be looked at again at once for nothing.
        assert self.state.look > self.now or (self.state.step, self.state.look) != before

    @invariant()
    def in_one_order(self) -> None:
        places = [ORDER.index(kind) for kind in self.told]
        assert places == sorted(set(places))

    @invariant()
    def quiet_ones_are_released_only_behind_the_lame_duck(self) -> None:
        if self.state.step in (Step.SERVING, Step.LAME_DUCK):
            assert ReleaseQuiet not in self.told

    def teardown(self) -> None:
        # Looked at when it asks for it, every drain ends, and not long after its deadline.
        if self.state.step is Step.SERVING:
            return
        for _ in range(10):
            if self.state.step is Step.DONE:
                break
            self.now = max(self.now, self.state.look) if self.state.look < NEVER else self.now
            self.step(Looked(self.open, self.accepted))
        assert self.state.step is Step.DONE


TestDrainModel = DrainModel.TestCase
TestDrainModel.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
