"""What signals mean and which comes first."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.lifecycle.meaning import (
    DEFAULT_MEANINGS,
    Meaning,
    by_priority,
    canonical,
    meanings,
    priority,
)

NAMES = st.sampled_from([*DEFAULT_MEANINGS, "SIGUSR2", "SIGCHLD"])
CHOSEN = st.dictionaries(NAMES, st.sampled_from(Meaning))


def test_defaults() -> None:
    assert dict(DEFAULT_MEANINGS) == {
        "SIGTERM": "stop",
        "SIGINT": "stop",
        "SIGQUIT": "dump_and_exit",
        "SIGHUP": "reload",
        "SIGUSR1": "dump",
    }
    assert meanings() == DEFAULT_MEANINGS


def test_names_are_those_of_the_system() -> None:
    assert set(DEFAULT_MEANINGS) <= set(signal.Signals.__members__)


def test_defaults_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        DEFAULT_MEANINGS["SIGTERM"] = Meaning.IGNORE  # type: ignore[index]


def test_quit_may_mean_stop() -> None:
    assert meanings(quit="stop")["SIGQUIT"] is Meaning.STOP
    assert meanings(quit="dump")["SIGQUIT"] is Meaning.DUMP_AND_EXIT
    with pytest.raises(ValueError, match="'dump' or 'stop', not 'core'"):
        meanings(quit="core")


def test_changes_by_any_spelling_of_the_name() -> None:
    found = meanings({"usr2": "reload", "SIGHUP": Meaning.IGNORE, " Sigterm ": "stop"})
    assert found["SIGUSR2"] is Meaning.RELOAD
    assert found["SIGHUP"] is Meaning.IGNORE
    assert found["SIGTERM"] is Meaning.STOP
    assert len(found) == len(DEFAULT_MEANINGS) + 1


def test_a_change_wins_over_quit() -> None:
    assert meanings({"quit": "ignore"}, quit="stop")["SIGQUIT"] is Meaning.IGNORE


def test_a_meaning_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="'restart' is not a meaning of SIGHUP; there are stop, "):
        meanings({"hup": "restart"})


def test_order_of_all_that_can_wait() -> None:
    # As the kernel hands them out, by number.
    kernel = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM"]
    assert by_priority(kernel) == (
        "SIGQUIT",
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
    )


def test_when_quit_means_stop_it_is_one_among_equals() -> None:
    chosen = meanings(quit="stop")
    assert by_priority(["SIGHUP", "SIGTERM", "SIGQUIT"], chosen) == (
        "SIGTERM",
        "SIGQUIT",
        "SIGHUP",
    )


def test_things_that_have_a_name() -> None:
    things = [(1, "SIGHUP"), (2, "SIGTERM"), (3, "SIGINT"), (4, "SIGTERM")]
    ordered = by_priority(things, name=lambda thing: thing[1])
    assert [number for number, _ in ordered] == [2, 3, 4, 1]


@given(st.lists(NAMES), CHOSEN)
def test_nothing_is_lost_and_ranks_never_fall(waiting: list[str], changes: dict[str, str]) -> None:
    chosen = meanings(changes)
    ordered = by_priority(waiting, chosen)
    assert sorted(ordered) == sorted(waiting)
    ranks = [priority(name, chosen) for name in ordered]
    assert all(first <= second for first, second in pairwise(ranks))


@given(st.lists(NAMES, min_size=1), CHOSEN)
def test_equals_stay_in_the_order_of_arrival(waiting: list[str], changes: dict[str, str]) -> None:
    chosen = meanings(changes)
    numbered = list(enumerate(waiting))
    for rank in range(5):
        same = [one for one in numbered if priority(one[1], chosen) == rank]
        ordered = by_priority(numbered, chosen, name=lambda one: one[1])
        assert [one for one in ordered if priority(one[1], chosen) == rank] == same


@given(CHOSEN, NAMES)
def test_rank_follows_from_the_meaning_alone(changes: dict[str, str], name: str) -> None:
    chosen = meanings(changes)
    rank = priority(name, chosen)
    order = ["dump_and_exit", "stop", "reload", "dump", "ignore"]
    assert rank == order.index(chosen.get(name, Meaning.IGNORE))


@given(NAMES)
def test_canonical(name: str) -> None:
    assert canonical(name) == name
    assert canonical(name.removeprefix("SIG").lower()) == name
    assert priority(name.lower()) == priority(name)
