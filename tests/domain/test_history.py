"""What is remembered of the last stops."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.lifecycle.history import (
    REMEMBERED,
    Begun,
    Cleared,
    Ended,
    Event,
    Found,
    History,
    Judged,
    Member,
    Outcome,
    Stop,
    StopHistory,
    Terms,
    history_as_plain,
    history_from_plain,
)
from holdfast.domain.machine import fold

TERMS = Terms(drain=11.0, base=11.0, most=20.0, grace=30.0)
MACHINE = StopHistory()


def after(*journal: tuple[float, Event]) -> History:
    return fold(MACHINE, History(), journal)


def whole(key: str, outcome: Outcome, at: float = 0.0) -> tuple[tuple[float, Event], ...]:
    return (at, Begun(key, "m", TERMS)), (at + 1, Ended(key, "m", outcome))


def test_a_clean_stop_is_remembered_and_no_failure() -> None:
    history = after(*whole("a", Outcome.CLEAN, 5.0))
    assert history.stops == (Stop("a", 5.0, TERMS, (Member("m", Outcome.CLEAN),), 6.0),)
    assert history.over == history.stops
    assert history.failures == 0


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.FORCED, Outcome.UNFINISHED])
def test_what_a_failure_is(outcome: Outcome) -> None:
    history = after(*whole("a", outcome))
    assert history.failures == 1
    assert history.stops[0].outcome is outcome


def test_the_last_three_count() -> None:
    assert REMEMBERED == 3
    bad, good = Outcome.TIMED_OUT, Outcome.CLEAN
    counts = [
        after(*(entry for i, o in enumerate(row) for entry in whole(str(i), o, i * 10))).failures
        for row in ([bad] * 5, [bad, good], [bad, bad, good, good], [bad, good, good, good])
    ]
    assert counts == [3, 1, 1, 0]


def test_a_stop_under_way_is_no_failure_and_takes_no_place() -> None:
    three = (entry for i in range(3) for entry in whole(str(i), Outcome.FORCED, i * 10))
    history = after(*three, (100.0, Begun("x", "m", TERMS)))
    assert [stop.key for stop in history.stops] == ["0", "1", "2", "x"]
    assert history.failures == 3
    assert [stop.key for stop in history.over] == ["0", "1", "2"]
    assert history.stops[-1].outcome is None
    assert not history.stops[-1].failed


def test_a_start_finds_a_stop_that_never_ended() -> None:
    begun = (0.0, Begun("a", "m", TERMS))
    history = after(begun, (1.0, Found(frozenset({"m"}))))
    assert history.failures == 1
    assert history.stops[0].outcome is Outcome.UNFINISHED
    assert history.stops[0].ended == 1.0


def test_a_start_leaves_a_stop_alone_that_is_still_under_way() -> None:
    begun = (0.0, Begun("a", "m", TERMS))
    assert after(begun, (29.9, Found(frozenset({"other"})))) == after(begun)
    # Its grace is over: whoever has not ended by then was killed.
    assert after(begun, (30.0, Found(frozenset()))).failures == 1


def test_an_end_that_comes_after_all_is_believed() -> None:
    begun, found = (0.0, Begun("a", "m", TERMS)), (1.0, Found(frozenset({"m"})))
    history = after(begun, found, (2.0, Ended("a", "m", Outcome.CLEAN)))
    assert history.failures == 0
    assert history.stops[0].ended == 2.0


def test_the_first_word_of_a_process_holds() -> None:
    history = after(*whole("a", Outcome.FORCED), (5.0, Ended("a", "m", Outcome.CLEAN)))
    assert history == after(*whole("a", Outcome.FORCED))
    assert after(*whole("a", Outcome.CLEAN), (99.0, Found(frozenset({"m"})))).failures == 0


def test_workers_take_part_in_one_stop() -> None:
    history = after(
        (0.0, Begun("a", "1", TERMS)),
        (0.1, Begun("a", "2", TERMS)),
        (0.2, Begun("a", "3", TERMS)),
        (1.0, Ended("a", "1", Outcome.CLEAN)),
        (2.0, Ended("a", "2", Outcome.FORCED)),
    )
    (stop,) = history.stops
    assert not stop.over
    assert stop.outcome is None
    assert stop.ended == 0.0
    history, judged = MACHINE.step(history, Ended("a", "3", Outcome.TIMED_OUT), 3.0)
    (stop,) = history.stops
    assert (stop.outcome, stop.begun, stop.ended) == (Outcome.FORCED, 0.0, 3.0)
    assert history.failures == 1
    assert list(judged) == [Judged(stop, 1)]


def test_a_worker_that_joins_late_opens_the_stop_again() -> None:
    history = after(*whole("a", Outcome.CLEAN), (2.0, Begun("a", "n", TERMS)))
    assert not history.stops[0].over
    assert history.stops[0].ended == 0.0
    assert after(*whole("a", Outcome.CLEAN), (2.0, Begun("a", "m", TERMS))).stops[0].over


def test_whoever_joins_one_stop_does_not_join_another() -> None:
    a, b = (0.0, Begun("a", "1", TERMS)), (1.0, Begun("b", "1", TERMS))
    one, two = after(a, b, (2.0, Begun("a", "2", TERMS))).stops
    assert [member.name for member in one.members] == ["1", "2"]
    assert [member.name for member in two.members] == ["1"]


def test_decisions_are_made_once() -> None:
    history, judged = MACHINE.step(History(), Begun("a", "m", TERMS), 0.0)
    assert list(judged) == []
    history, judged = MACHINE.step(history, Found(frozenset({"m"})), 1.0)
    assert [decision.failures for decision in judged] == [1]
    history, judged = MACHINE.step(history, Ended("a", "m", Outcome.CLEAN), 2.0)
    assert list(judged) == []


def test_an_end_of_an_unknown_stop_says_nothing() -> None:
    assert after((0.0, Ended("a", "m", Outcome.FORCED))) == History()
    assert after((0.0, Begun("a", "m", TERMS)), (1.0, Ended("a", "n", Outcome.FORCED))) == after(
        (0.0, Begun("a", "m", TERMS))
    )


def test_everything_can_be_forgotten() -> None:
    assert after(*whole("a", Outcome.FORCED), (5.0, Cleared())) == History()


def test_which_stops_are_forgotten() -> None:
    # Those that ended first, and not those that began first.
    begun: Iterable[tuple[float, Event]] = [(float(i), Begun(str(i), "m", TERMS)) for i in range(4)]
    ended: Iterable[tuple[float, Event]] = [
        (10.0 - i, Ended(str(i), "m", Outcome.CLEAN)) for i in range(4)
    ]
    assert [stop.key for stop in after(*begun, *ended).stops] == ["0", "1", "2"]
    many = after(*((float(i), Begun(str(i), "m", TERMS)) for i in range(20)))
    assert [stop.key for stop in many.stops] == [str(i) for i in range(4, 20)]


def test_a_stop_has_room_for_many_processes_but_not_for_all() -> None:
    (stop,) = after(*((0.0, Begun("a", str(i), TERMS)) for i in range(1030))).stops
    assert len(stop.members) == 1024


keys = st.sampled_from("abcdef")
events = st.one_of(
    st.builds(Begun, keys, keys, st.just(TERMS)),
    st.builds(Ended, keys, keys, st.sampled_from(Outcome)),
    st.builds(Found, st.frozensets(keys)),
    st.just(Cleared()),
)
journals = st.lists(st.tuples(st.floats(min_value=0, max_value=200), events), max_size=40)


@given(journals)
def test_what_always_holds(journal: list[tuple[float, Event]]) -> None:
    history = after(*journal)
    assert history.failures <= len(history.over) <= REMEMBERED
    names = [stop.key for stop in history.stops]
    assert len(names) == len(set(names))
    for stop in history.stops:
        assert stop.over == (stop.outcome is not None)
        members = [member.name for member in stop.members]
        assert len(members) == len(set(members)) > 0


@given(journals)
def test_it_is_the_same_after_it_was_written_and_read(journal: list[tuple[float, Event]]) -> None:
    history = after(*journal)
    read, problems = history_from_plain(json.loads(json.dumps(history_as_plain(history))))
    assert read == history
    assert problems == ()


def test_how_it_is_written() -> None:
    endless = Terms(drain=20.0, base=math.inf, most=20.0, grace=30.0)
    history = after((5.0, Begun("a", "m", endless)), (6.0, Begun("a", "n", endless)))
    history, _ = MACHINE.step(history, Ended("a", "n", Outcome.TIMED_OUT), 7.0)
    assert history_as_plain(history) == [
        {
            "stop": "a",
            "begun": 5.0,
            "ended": 0.0,
            "terms": {"drain": 20.0, "base": None, "most": 20.0, "grace": 30.0},
            "members": {"m": None, "n": "timed_out"},
        }
    ]
    assert history_from_plain(history_as_plain(history)) == (history, ())


NO_OUTCOME = "is not an outcome; there is clean, timed_out, forced, unfinished"
GOOD = {
    "stop": "a",
    "begun": 5.0,
    "ended": 6,
    "terms": {"drain": 20.0, "base": 20, "most": 20.0, "grace": 30.0},
    "members": {"m": "clean"},
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stop": ""}, "'stop' is a text, not ''"),
        ({"stop": 5}, "'stop' is a text, not 5"),
        ({"begun": -1}, "'begun' is a number of seconds, not -1"),
        ({"begun": True}, "'begun' is a number of seconds, not True"),
        ({"ended": "x"}, "'ended' is a number of seconds, not 'x'"),
        ({"ended": math.nan}, "'ended' is a number of seconds, not nan"),
        ({"ended": 1e12}, "'ended' is a number of seconds, not 1000000000000.0"),
        ({"terms": None}, "'terms' is an object, not NoneType"),
        ({"terms": {}}, "'drain' is a number of seconds, not None"),
        ({"members": []}, "'members' is an object, not list"),
        ({"members": {}}, "nobody takes part in it"),
        ({"members": {"m": "well"}}, f"'well' {NO_OUTCOME}"),
        ({"members": {"m": []}}, f"[] {NO_OUTCOME}"),
    ],
)
def test_what_makes_no_sense_is_left_out(change: dict[str, object], problem: str) -> None:
    other = GOOD | {"stop": "b"}
    history, problems = history_from_plain([GOOD | change, other])
    assert [stop.key for stop in history.stops] == ["b"]
    assert problems == (f"stop 1 is left out: {problem}",)


@pytest.mark.parametrize("value", [None, 5, "x", {}, True])
def test_what_is_no_list_is_nothing(value: object) -> None:
    kind = type(value).__name__
    assert history_from_plain(value) == (History(), (f"the stops are a list, not {kind}",))


def test_what_is_no_object_is_left_out() -> None:
    history, problems = history_from_plain([5, GOOD])
    assert len(history.stops) == 1
    assert problems == ("stop 1 is left out: a stop is an object, not int",)


def test_what_was_written_by_others_is_bounded() -> None:
    many = [GOOD | {"stop": str(i), "ended": float(i)} for i in range(9)]
    history, problems = history_from_plain(many)
    assert [stop.key for stop in history.stops] == ["6", "7", "8"]
    assert problems == ()
    crowd = GOOD | {"members": {str(i): "clean" for i in range(2000)}}
    assert len(history_from_plain([crowd])[0].stops[0].members) == 1024
