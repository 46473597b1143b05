"""What starts before what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.errors import ConfigError
from holdfast.domain.lifecycle.order import above, waves


def test_waves_by_need() -> None:
    needs = {"web": ["db", "cache"], "db": [], "cache": ["net"], "net": [], "log": []}
    assert waves(needs) == (("db", "net", "log"), ("cache",), ("web",))


def test_nothing_has_no_waves() -> None:
    assert waves({}) == ()


def test_within_a_wave_the_order_of_adding_stays() -> None:
    assert waves({name: [] for name in "cab"}) == (("c", "a", "b"),)
    assert waves({"z": [], "c": ["z"], "a": ["z"], "b": ["z"]}) == (("z",), ("c", "a", "b"))


def test_a_need_said_twice_is_one() -> None:
    assert waves({"a": ["b", "b"], "b": []}) == (("b",), ("a",))


def test_an_unknown_need_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        waves({"web": ["bd"], "db": []})
    assert caught.value.path == "components.web"
    assert (
        caught.value.problem == "needs 'bd', but no component has that name; there are 'web', 'db'"
    )


def test_of_many_components_ten_are_named() -> None:
    needs = {str(n): ["x"] if not n else [] for n in range(20)}
    with pytest.raises(ConfigError, match=r"there are '0', .*, '9'$"):
        waves(needs)


@pytest.mark.parametrize(
    ("needs", "circle"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"x": [], "b": ["c", "x"], "c": ["b"]}, "b -> c -> b"),
        ({"out": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, "a -> b -> c -> a"),
    ],
)
def test_a_circle_is_named(needs: dict[str, list[str]], circle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        waves(needs)
    assert caught.value.problem == f"needs go round in a circle: {circle}"
    assert caught.value.path == f"components.{circle[0]}"


def test_a_thousand_in_a_row_and_a_thousand_in_one_wave() -> None:
    row = {str(n): [str(n - 1)] if n else [] for n in range(1000)}
    assert waves(row) == tuple((str(n),) for n in range(1000))
    wide = {str(n): [] for n in range(1000)}
    assert waves(wide) == (tuple(map(str, range(1000))),)


@given(st.lists(st.sets(st.integers(0, 11)), max_size=12), st.randoms(use_true_random=False))
def test_everybody_comes_after_what_he_needs_and_no_later_than_necessary(wanted, random) -> None:
    # Needs of smaller numbers only, so that there is no circle; the order of adding is another.
    graph = {n: [m for m in some if m < n] for n, some in enumerate(wanted)}
    names = list(graph)
    random.shuffle(names)
    needs = {str(n): [str(m) for m in graph[n]] for n in names}
    found = waves(needs)
    place = {name: at for at, wave in enumerate(found) for name in wave}
    assert sorted(place) == sorted(needs)
    for name, some in needs.items():
        assert place[name] == max((place[need] + 1 for need in some), default=0)


def test_above_is_who_needs_them_directly_or_not() -> None:
    needs = {"db": [], "web": ["db"], "metrics": ["web"], "page": ["metrics"], "other": ["db"]}
    assert above(["web"], needs) == {"web", "metrics", "page"}
    assert above(["web", "other"], needs) == {"web", "metrics", "page", "other"}
    assert above([], needs) == frozenset()
    assert above(["a"], {"a": ["b"], "b": ["a"]}) == {"a", "b"}  # a circle does not hang it
