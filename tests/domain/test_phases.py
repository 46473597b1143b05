"""Shares of one budget, and the record of a call."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.phases import DEFAULT_SHARES, Ended, Phase, Shares, Trail

PHASES = st.sampled_from(list(Phase))
LEFT = st.floats(min_value=0, max_value=1e6)


@given(PHASES, LEFT, st.sets(PHASES))
def test_a_share_is_never_more_than_what_is_left(
    phase: Phase, left: float, ahead: set[Phase]
) -> None:
    share = DEFAULT_SHARES.share(phase, left, ahead - {phase})
    assert 0 <= share <= left
    assert share >= min(left, DEFAULT_SHARES.floors.get(phase, 0.0))


@given(st.lists(st.floats(min_value=0, max_value=2), min_size=5, max_size=5))
def test_phases_that_keep_to_their_shares_keep_to_the_whole(used: list[float]) -> None:
    # Whatever each uses of its share, the rest carries over and the last may take all of it.
    shares = Shares(floors={}, bounded=())
    route = (Phase.DNS, Phase.CONNECT, Phase.REQUEST, Phase.HEADER, Phase.BODY)
    now, limit = 100.0, 110.0
    trail = Trail("x:1", now, limit, shares, route=route)
    before = 0.0
    for phase, part in zip(route, used, strict=True):
        trail.begin(phase, now)
        now += min(part, 1.0) * trail.shares.share(
            phase, limit - now, route[route.index(phase) + 1 :]
        )
        assert now <= limit + 1e-9
        assert now >= before
        before = now
    trail.end(now)
    assert trail.steps[-1].share == pytest.approx(trail.steps[-1].left)


def test_an_unused_part_carries_over() -> None:
    weights = {Phase.DNS: 1, Phase.CONNECT: 1, Phase.PROXY: 1, Phase.TLS: 2}
    route = (Phase.DNS, Phase.CONNECT, Phase.TLS)
    trail = Trail("x:1", 0.0, 8.0, Shares(weights, floors={}), route=route)
    assert trail.begin(Phase.DNS, 0.0) == 2.0  # one of 1 + 1 + 2: no proxy is on the way
    assert trail.begin(Phase.CONNECT, 0.5) == 3.0  # 7.5 s are left for 1 + 2
    assert trail.begin(Phase.TLS, 1.0) == 8.0


def test_a_floor_holds_and_the_total_wins() -> None:
    route = (Phase.DNS, Phase.CONNECT, Phase.HEADER)
    assert Trail("x:1", 0.0, 2.0, route=route).begin(Phase.DNS, 0.0) == 1.0
    assert Trail("x:1", 0.0, 0.7, route=route).begin(Phase.DNS, 0.0) == 0.7
    assert Trail("x:1", 0.0, 0.7, route=route).begin(Phase.DNS, 0.9) == 0.7
    assert Trail("x:1", 0.0, route=route).begin(Phase.DNS, 0.9) == math.inf


def test_phases_of_the_exchange_may_take_all_that_is_left() -> None:
    trail = Trail("x:1", 0.0, 30.0)
    assert trail.begin(Phase.HEADER, 1.0) == 30.0
    trail.end(30.0, Ended.TIMEOUT)
    assert trail.steps[-1].share < 29.0


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"weights": {Phase.DNS: 0.0}}, "weight of dns.resolve"),
        ({"weights": {Phase.DNS: math.nan}}, "weight of dns.resolve"),
        ({"floors": {Phase.TLS: -1.0}}, "floor of tls.handshake"),
        ({"weights": {Phase.DNS: 1.0}, "bounded": (Phase.TLS,)}, "tls.handshake is bounded"),
    ],
)
def test_shares_that_make_no_sense(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Shares(**fields)  # type: ignore[arg-type]


def test_the_record_of_a_call_that_was_late() -> None:
    trail = Trail("GET http://orders.local/1", 10.0, 11.0, client="httpx")
    assert trail.phase is None
    assert trail.line() == "GET http://orders.local/1: not begun"
    trail.begin(Phase.DNS, 10.0)
    trail.begin(Phase.CONNECT, 10.002)
    trail.tried("10.0.0.7:80", 10.002, 10.003, "connected")
    trail.begin(Phase.REQUEST, 10.003)
    trail.sent = 120
    trail.begin(Phase.HEADER, 10.004)
    trail.interim = 103
    assert trail.phase is Phase.HEADER
    assert trail.event == ""
    assert not trail.spent(10.9)
    assert trail.spent(11.0)
    trail.end(11.0, Ended.TIMEOUT)
    assert trail.event == "http.header.timeout"
    assert trail.brief() == "http.header.timeout at GET http://orders.local/1 after 996 ms"
    assert trail.line().startswith(trail.brief() + " (share ")
    for words in ("dns.resolve 2 ms", "tcp.connect 1 ms", "120 bytes sent", "response 103"):
        assert words in trail.line()
    assert trail.elapsed == pytest.approx(1.0)
    assert sum(trail.took.values()) == pytest.approx(1.0)
    plain = json.loads(json.dumps(trail.as_dict()))
    assert plain["event"] == "http.header.timeout"
    assert plain["phases_s"]["http.header"] == pytest.approx(0.996)
    assert plain["addresses"][0]["result"] == "connected"
    assert "orders.local" in repr(trail)


def test_addresses_are_told_where_connecting_failed() -> None:
    trail = Trail("orders.local:443", 0.0, 1.0)
    trail.begin(Phase.CONNECT, 0.0)
    trail.tried("10.0.0.7:443", 0.0, 1.0, "timeout")
    trail.tried("10.0.0.8:443", 0.25, 1.0, "timeout")
    trail.end(1.0, Ended.TIMEOUT, "2 addresses")
    assert "10.0.0.8:443 timeout 750 ms" in trail.line()
    assert "10.0.0.8" not in trail.brief()


def test_a_long_chain_of_redirects_is_kept_in_bounds() -> None:
    trail = Trail("x:1", 0.0)
    for turn in range(1000):
        trail.begin(Phase.CONNECT, float(turn))
        trail.tried("a", 0.0, 0.0, "connected")
    trail.end(1000.0)
    assert len(trail.steps) == len(trail.attempts) == 64


@given(st.lists(st.tuples(PHASES, st.integers(0, 9)), min_size=1, max_size=200))
def test_a_long_record_says_how_it_ended_and_its_sums_are_right(
    turns: list[tuple[Phase, int]],
) -> None:
    trail = Trail("x:1", 0.0, 5000.0)
    now, sums = 0.0, dict.fromkeys([phase for phase, _ in turns], 0.0)
    for phase, took in turns:
        trail.begin(phase, now)
        trail.tried(f"a{now}", now, now, "connected")
        now += took
        sums[phase] += took
    trail.end(now, Ended.TIMEOUT)
    assert len(trail.steps) == len(trail.attempts) == min(64, len(turns))
    assert trail.phase is turns[-1][0]
    assert trail.event == f"{turns[-1][0].value}.timeout"
    assert trail.brief().startswith(trail.event)
    assert trail.elapsed == now
    assert trail.took == sums
    assert list(trail.took) == list(sums) or len(turns) > 64
    assert trail.attempts[-1].address == f"a{now - turns[-1][1]}"


@given(PHASES, st.sets(PHASES), st.floats(min_value=0, max_value=1e6), st.booleans())
def test_what_is_remembered_of_a_route_is_what_the_shares_say(
    phase: Phase, route: set[Phase], left: float, own: bool
) -> None:
    way = tuple(each for each in Phase if each in route)
    weights = {Phase.DNS: 1.0, Phase.CONNECT: 3.0, Phase.BODY: 0.5}
    shares = Shares(weights, {Phase.DNS: 2.0}, (Phase.DNS,)) if own else DEFAULT_SHARES
    order = list(Phase)
    ahead = [each for each in way if order.index(each) > order.index(phase)]
    share = shares.share(phase, left, ahead)
    for _ in range(2):
        trail = Trail("x:1", 0.0, left, shares, route=way)
        until = trail.begin(phase, 0.0)
        trail.end(0.0)
        assert trail.steps[-1].share == share
        assert until == (share if phase in shares.bounded else left)


def test_shares_keep_to_what_they_were_made_of() -> None:
    weights = {Phase.DNS: 1.0, Phase.CONNECT: 1.0}
    shares = Shares(weights, {}, (Phase.DNS,))
    weights[Phase.DNS] = 100.0
    trail = Trail("x:1", 0.0, 8.0, shares, route=(Phase.DNS, Phase.CONNECT))
    assert trail.begin(Phase.DNS, 0.0) == 4.0


def pickled(it: Any) -> Any:
    return pickle.loads(pickle.dumps(it))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickled])
def test_shares_records_and_errors_travel(twin: Callable[[Any], Any]) -> None:
    shares = Shares({Phase.CONNECT: 1.0}, {}, (Phase.CONNECT,))
    assert twin(shares) == shares
    assert twin(DEFAULT_SHARES) == DEFAULT_SHARES
    trail = Trail("x:1", 0.0, 10.0, shares)
    trail.begin(Phase.CONNECT, 0.0)
    trail.end(3.0, Ended.TIMEOUT)
    assert twin(trail).as_dict() == trail.as_dict()
    assert twin(trail).begin(Phase.BODY, 4.0) == 10.0
    error = PhaseTimeout(trail)
    error.add_note("here")
    again = twin(error)
    assert type(again) is PhaseTimeout
    assert str(again) == str(error)
    assert again.phase is Phase.CONNECT
    assert again.__notes__ == ["here"]
    spent = DeadlineExceeded(Cause(CauseKind.DEADLINE, "call"))
    spent.trail = trail
    assert twin(spent).trail.line() == trail.line()


def test_the_errors_tell_the_phase() -> None:
    trail = Trail("x:1", 0.0, 10.0)
    trail.begin(Phase.CONNECT, 0.0)
    trail.end(3.0, Ended.TIMEOUT)
    error = PhaseTimeout(trail)
    assert isinstance(error, TimeoutError)
    assert error.phase is Phase.CONNECT
    assert str(error) == trail.line()
    spent = DeadlineExceeded(Cause(CauseKind.DEADLINE, "call"))
    assert spent.phase is None
    spent.trail = trail
    assert spent.phase is Phase.CONNECT
