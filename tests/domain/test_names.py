"""The cache of names: a table of what is written in the RFCs, and a random walk next to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.domain.discovery.names import (
    Answer,
    CacheTerms,
    Found,
    Freshness,
    NameCache,
    canonical,
)

ONE = Answer(("192.0.2.1",), 10.0)
TWO = Answer(("192.0.2.2", "192.0.2.3"), 10.0)
NONE = Answer((), 10.0, exists=False)
NO_AGING = CacheTerms(aging=0.0)


def holding(answer: Answer, terms: CacheTerms = NO_AGING) -> NameCache:
    cache = NameCache(terms)
    cache.store("orders.test", "A", answer, 0.0)
    return cache


def fresh_for(answer: Answer, terms: CacheTerms = NO_AGING) -> float:
    """Seconds, to a quarter, after which an answer is not fresh any more."""
    cache = holding(answer, terms)
    at = 0.0
    while (found := cache.look("orders.test", "A", at)) and found.freshness is Freshness.FRESH:
        at += 0.25
    return at


@pytest.mark.parametrize(
    ("answer", "terms", "seconds"),
    [
        (ONE, {}, 10.0),
        (ONE, {"ceiling": 4.0}, 4.0),
        (ONE, {"floor": 20.0}, 20.0),
        (ONE, {"negative_ceiling": 4.0}, 10.0),
        (NONE, {}, 10.0),
        (NONE, {"negative_ceiling": 4.0}, 4.0),
        (NONE, {"ceiling": 4.0}, 10.0),
        (Answer((), 10.0, exists=True), {"negative_ceiling": 4.0}, 4.0),
        (Answer(("192.0.2.1",), 0.0), {}, 0.0),
        (Answer(("192.0.2.1",), 0.0), {"floor": 20.0}, 0.0),
        (Answer(("192.0.2.1",), -1.0), {"floor": 20.0}, 0.0),
        (ONE, {"ceiling": 0.0}, 0.0),
        (NONE, {"negative_ceiling": 0.0}, 0.0),
    ],
)
def test_time_to_live(answer: Answer, terms: dict[str, Any], seconds: float) -> None:
    assert fresh_for(answer, CacheTerms(aging=0.0, **terms)) == seconds
    assert len(holding(answer, CacheTerms(aging=0.0, **terms))) == (seconds > 0)


def test_each_name_and_type_has_its_own() -> None:
    cache = holding(ONE)
    cache.store("orders.test", "AAAA", Answer(("2001:db8::1",), 20.0), 0.0)
    at_15 = {kind: cache.look("orders.test", kind, 15.0) for kind in ("A", "AAAA")}
    assert at_15["A"] is not None
    assert at_15["A"].freshness is Freshness.STALE
    assert at_15["AAAA"] is not None
    assert at_15["AAAA"].freshness is Freshness.FRESH
    assert cache.look("other.test", "A", 15.0) is None


def test_the_last_part_of_a_life_is_for_asking_again() -> None:
    cache = holding(ONE, CacheTerms(aging=0.25))
    assert cache.look("orders.test", "A", 7.25) == Found(ONE, Freshness.FRESH, 7.5)
    assert cache.look("orders.test", "A", 7.5) == Found(ONE, Freshness.AGING, 7.5)
    assert cache.look("orders.test", "A", 10.0) == Found(ONE, Freshness.STALE, 10.0)


def test_stale_serves_within_its_bound_and_only_answers_that_lead_somewhere() -> None:
    terms = CacheTerms(aging=0.0, stale=5.0)
    cache = holding(ONE, terms)
    assert cache.look("orders.test", "A", 14.75) == Found(ONE, Freshness.STALE, 14.75)
    assert cache.look("orders.test", "A", 15.0) is None
    assert len(cache) == 0
    assert holding(NONE, terms).look("orders.test", "A", 10.0) is None


def test_after_a_failure_nobody_is_asked_for_a_while() -> None:
    cache = holding(ONE, CacheTerms(aging=0.0, recheck=30.0))
    cache.failed("orders.test", "A", 12.0)
    assert cache.look("orders.test", "A", 41.75) == Found(ONE, Freshness.STALE, 42.0, hold=True)
    assert cache.look("orders.test", "A", 42.0) == Found(ONE, Freshness.STALE, 42.0)
    cache.store("orders.test", "A", TWO, 43.0)
    assert cache.look("orders.test", "A", 43.0) == Found(TWO, Freshness.FRESH, 53.0)


def test_a_failed_refresh_ahead_of_time_waits_for_the_end() -> None:
    cache = holding(ONE, CacheTerms(aging=0.5, recheck=30.0))
    cache.failed("orders.test", "A", 6.0)
    assert cache.look("orders.test", "A", 7.0) == Found(ONE, Freshness.FRESH, 10.0)


def test_a_type_that_nobody_answers_for_is_remembered() -> None:
    cache = NameCache(CacheTerms(recheck=30.0, most=2))
    assert not cache.silent("orders.test", "AAAA", 0.0)
    cache.failed("orders.test", "AAAA", 0.0)
    assert cache.silent("orders.test", "AAAA", 29.75)
    assert not cache.silent("orders.test", "AAAA", 30.0)
    assert not cache.silent("orders.test", "A", 1.0)
    cache.store("orders.test", "AAAA", ONE, 1.0)
    assert not cache.silent("orders.test", "AAAA", 1.0)
    for name in "abac":
        cache.failed(name, "A", 2.0)
    assert [cache.silent(name, "A", 2.0) for name in "abc"] == [True, False, True]
    cache.forget()
    assert not cache.silent("a", "A", 2.0)


def test_that_what_has_ended_has_no_answer_is_remembered_as_well() -> None:
    cache = holding(ONE, CacheTerms(stale=0.0))
    cache.failed("orders.test", "A", 10.0)
    assert cache.silent("orders.test", "A", 10.0)


def test_of_a_name_that_is_forgotten_nothing_is_left() -> None:
    cache = holding(ONE)
    cache.store("other.test", "A", TWO, 0.0)
    cache.failed("orders.test", "AAAA", 0.0)
    cache.forget("orders.test")
    assert cache.look("orders.test", "A", 0.0) is None
    assert not cache.silent("orders.test", "AAAA", 0.0)
    assert cache.look("other.test", "A", 0.0) is not None
    cache.forget()
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        *(
            ({name: -0.1}, f"{name} must not be negative, got -0.1")
            for name in ("floor", "ceiling", "negative_ceiling", "stale", "recheck", "aging")
        ),
        ({"stale": float("nan")}, "stale must not be negative, got nan"),
        ({"floor": 61.0}, "a floor of 61.0 s is above a ceiling"),
        ({"floor": 6.0, "ceiling": 5.0}, "a floor of 6.0 s is above a ceiling"),
        ({"aging": 1.5}, "aging is a part of a life, at most 1, got 1.5"),
        ({"most": 0}, "most must be at least 1, got 0"),
    ],
)
def test_terms_that_make_no_sense(terms: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="^" + says.replace("+", r"\+") + "$"):
        CacheTerms(**terms)


def test_the_edges_of_terms() -> None:
    CacheTerms(floor=60.0, aging=1.0, most=1)
    CacheTerms(floor=0, ceiling=0, negative_ceiling=0, stale=0, recheck=0, aging=0)


@pytest.mark.parametrize("name", ["Box.Box", "box.box.", "BOX.BOX."])
def test_names_are_compared_without_case_and_dot(name: str) -> None:
    assert canonical(name) == "box.box"


# -- the model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """What happened to a name and a type; the answer, or that there was none."""

    at: float
    answer: Answer | None


KEYS = st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["A", "AAAA"]))
QUARTERS = st.integers(0, 160).map(lambda n: n / 4)
ANSWERS = st.builds(
    Answer, st.sampled_from([(), ("192.0.2.1",), ("192.0.2.1", "::1")]), QUARTERS, st.booleans()
)
TERMS = st.builds(
    CacheTerms,
    floor=st.sampled_from([0.0, 2.0]),
    ceiling=st.sampled_from([4.0, 20.0]),
    negative_ceiling=st.sampled_from([2.0, 8.0]),
    stale=st.sampled_from([0.0, 8.0]),
    recheck=st.sampled_from([0.0, 3.0]),
    aging=st.sampled_from([0.0, 0.25, 1.0]),
    most=st.integers(1, 4),
)


class Walk(RuleBasedStateMachine):
    """Next to the cache: the whole past of each key, from which all is found anew each time."""

    @initialize(terms=TERMS)
    def begin(self, terms: CacheTerms) -> None:
        self.terms = terms
        self.cache = NameCache(terms)
        self.now = 0.0
        self.past: dict[tuple[str, str], list[Event]] = {}
        self.order: list[tuple[str, str]] = []
        self.unanswered: list[tuple[tuple[str, str], float]] = []
        self.gone = 0

    @rule(by=QUARTERS)
    def time_passes(self, by: float) -> None:
        self.now += by

    @rule(key=KEYS, answer=ANSWERS)
    def an_answer_comes(self, key: tuple[str, str], answer: Answer) -> None:
        self.cache.store(*key, answer, self.now)
        self.past[key] = [Event(self.now, answer)]
        self.answered(key)
        self.used(key, self.life(answer) > 0)
        while len(self.order) > self.terms.most:
            self.past[self.order.pop(0)] = []
            self.gone += 1

    @rule(key=KEYS)
    def nobody_answers(self, key: tuple[str, str]) -> None:
        self.cache.failed(*key, self.now)
        self.past.setdefault(key, []).append(Event(self.now, None))
        answer, at = self.kept(key)
        if answer is None or self.now >= at + self.serves(answer):
            self.answered(key)
            self.unanswered = [*self.unanswered, (key, self.now)][-self.terms.most :]

    @rule(name=st.sampled_from(["a", "b", None]))
    def is_forgotten(self, name: str | None) -> None:
        self.cache.forget(name)
        for key in [key for key in self.past if name in (None, key[0])]:
            self.past[key] = []
            self.used(key, False)
            self.answered(key)

    @rule(key=KEYS)
    def is_looked_for(self, key: tuple[str, str]) -> None:
        said = self.cache.look(*key, self.now)
        due = self.due(key)
        assert said == due
        # Nothing changes before the instant that was told.
        if said is not None and said.until > self.now:
            later = self.due(key, said.until - 0.125)
            assert later is not None
            assert (later.freshness, later.hold) == (said.freshness, said.hold)
        if key in self.order:
            self.used(key, due is not None)

    @rule(key=KEYS)
    def is_it_silent(self, key: tuple[str, str]) -> None:
        silent = any(
            other == key and at <= self.now < at + self.terms.recheck
            for other, at in self.unanswered
        )
        assert self.cache.silent(*key, self.now) == silent

    @invariant()
    def it_keeps_what_was_used_last(self) -> None:
        if hasattr(self, "cache"):
            assert len(self.cache) == len(self.order) <= self.terms.most
            assert self.cache.evicted == self.gone

    # -- by definition

    def used(self, key: tuple[str, str], kept: bool) -> None:
        self.order = [other for other in self.order if other != key]
        if kept:
            self.order.append(key)

    def answered(self, key: tuple[str, str]) -> None:
        self.unanswered = [(other, at) for other, at in self.unanswered if other != key]

    def life(self, answer: Answer) -> float:
        if answer.ttl == 0:
            return 0.0
        ceiling = self.terms.ceiling if answer.addresses else self.terms.negative_ceiling
        return sorted([self.terms.floor, answer.ttl, ceiling])[1]

    def serves(self, answer: Answer) -> float:
        return self.life(answer) + (self.terms.stale if answer.addresses else 0.0)

    def kept(self, key: tuple[str, str]) -> tuple[Answer | None, float]:
        for event in self.past.get(key, []):
            if event.answer is not None and self.life(event.answer) > 0:
                return event.answer, event.at
        return None, 0.0

    def due(self, key: tuple[str, str], now: float | None = None) -> Found | None:
        now = self.now if now is None else now
        answer, at = self.kept(key)
        if answer is None or now >= at + self.serves(answer):
            return None
        end = at + self.life(answer)
        failures = [
            event.at + self.terms.recheck
            for event in self.past[key]
            if event.answer is None and event.at < at + self.serves(answer)
        ]
        hold_until = max(failures, default=at)
        hold = now < hold_until
        if now >= end:
            return Found(
                answer,
                Freshness.STALE,
                min(hold_until, at + self.serves(answer)) if hold else now,
                hold,
            )
        ages = end - self.life(answer) * self.terms.aging
        if now >= ages and not hold:
            return Found(answer, Freshness.AGING, now)
        return Found(answer, Freshness.FRESH, min(end, max(ages, hold_until)))


TestWalk = Walk.TestCase
