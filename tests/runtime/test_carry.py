"""The context as a dict: what is written, what is believed, and what never makes it fail."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import carry
from holdfast.domain.context import Carried, Identity
from holdfast.domain.instant import NEVER
from holdfast.domain.tree import Outcome
from holdfast.domain.wire.carrier import (
    MOST_SKEW,
    due,
    format_put_at,
    format_until,
    parse_put_at,
    parse_until,
    raw_pairs,
    waiting_time,
)
from holdfast.runtime import carry as runtime_carry
from holdfast.runtime.ambient import carried, use
from holdfast.runtime.clock import wall
from holdfast.runtime.driver import driver_of

WHO = Carried(Identity("a" * 32, "b" * 16), "canary", {"tenant": "blue moon"})


def from_afar(headers: dict[str, str]) -> dict[str, str]:
    """As another host reads them: it does not know the clock."""
    return {**headers, "holdfast-until": "0000.1;5"} if "holdfast-until" in headers else headers


async def test_what_is_written_is_read() -> None:
    async with use(WHO), holdfast.timeout(5):
        headers = carry.inject()
        until = holdfast.current().deadline
    assert json.loads(json.dumps(headers)) == headers
    await asyncio.sleep(2)
    async with carry.extract(headers, name="job", trust_stage=True) as scope:
        assert until - 1e-8 <= scope.deadline <= until
        assert holdfast.remaining() == pytest.approx(3)
        assert scope.waited == pytest.approx(2, abs=0.002)
        assert carried().identity.trace_id == WHO.identity.trace_id
        assert carried().identity.parent_id == WHO.identity.span_id
        assert carried().stage == "canary"
        assert carried().baggage == WHO.baggage
        assert not scope.malformed


async def test_a_stage_is_believed_where_it_is_told_to() -> None:
    async with use(WHO):
        headers = carry.inject()
    async with carry.extract(headers):
        assert carried().stage == ""
    async with carry.extract(headers, trust_stage=True):
        assert carried().stage == "canary"


async def test_no_deadline_stays_none_and_may_be_capped() -> None:
    headers = carry.inject()
    assert "holdfast-put-at" in headers
    assert "holdfast-until" not in headers
    async with carry.extract(headers):
        assert holdfast.remaining() == math.inf
    async with carry.extract(headers, cap=4):
        assert holdfast.remaining() == pytest.approx(4)
    async with holdfast.timeout(100):
        headers = carry.inject()
    async with carry.extract(headers, cap=4):
        assert holdfast.remaining() == pytest.approx(4)


async def test_the_scope_around_bounds_what_was_carried() -> None:
    async with holdfast.timeout(100):
        headers = carry.inject()
    async with holdfast.timeout(3), carry.extract(headers):
        assert holdfast.remaining() == pytest.approx(3)


async def test_what_expired_in_the_queue_does_not_begin() -> None:
    async with holdfast.timeout(2):
        headers = carry.inject()
    await asyncio.sleep(3)
    scope = carry.extract(headers, name="resize")
    with pytest.raises(holdfast.InsufficientBudget, match=r"resize.*waited 3 s in the queue"):
        async with scope:
            pytest.fail("the body ran")
    assert scope.outcome is Outcome.REFUSED
    assert driver_of(asyncio.get_running_loop()).counts["carry.expired"] == 1


async def test_what_runs_too_long_is_told_from_what_waited() -> None:
    async with holdfast.timeout(2):
        headers = carry.inject()
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        async with carry.extract(headers, name="resize"):
            await asyncio.Event().wait()
    assert not isinstance(caught.value, holdfast.InsufficientBudget)
    assert "queue" not in str(caught.value)


async def test_a_spent_budget_is_not_sent() -> None:
    carrier = {"mine": "kept"}
    with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
        async with holdfast.timeout(1):
            try:
                await asyncio.sleep(5)
            finally:
                with pytest.raises(holdfast.InsufficientBudget, match="not sent"):
                    carry.inject(carrier)
                assert carrier == {"mine": "kept"}
                # What must be done all the same goes without a deadline.
                assert "holdfast-until" not in carry.inject(carrier, detached=True)


async def test_too_little_is_not_sent() -> None:
    async with holdfast.timeout(1):
        with pytest.raises(holdfast.InsufficientBudget, match="2 s needed"):
            carry.inject(refuse_below=2)
        assert carry.inject(refuse_below=0.5)


async def test_detached_keeps_identity_and_stage_and_no_deadline() -> None:
    async with use(WHO), holdfast.timeout(2):
        headers = carry.inject(detached=True)
    await asyncio.sleep(10)
    async with carry.extract(headers, trust_stage=True):
        assert holdfast.remaining() == math.inf
        assert carried().identity.trace_id == WHO.identity.trace_id
        assert carried().stage == "canary"


async def test_a_carrier_that_is_used_again_has_nothing_stale() -> None:
    carrier = {"X-Request-ID": "theirs", "Grpc-Timeout": "1S", "mine": "kept"}
    async with use(WHO), holdfast.timeout(2):
        carry.inject(carrier)
    assert carrier["x-request-id"] == "a" * 32
    assert "X-Request-ID" not in carrier
    carry.inject(carrier)  # outside: no deadline any more
    async with carry.extract(carrier):
        assert holdfast.remaining() == math.inf
    assert carrier["mine"] == "kept"


async def test_another_host_is_told_what_is_left_and_subtracts_the_time_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with holdfast.timeout(30):
        headers = from_afar(carry.inject())
    began = wall()

    def later(seconds: float) -> Any:
        monkeypatch.setattr(runtime_carry, "wall", lambda: began + seconds)
        return carry.extract(headers)

    async with later(10) as scope:
        assert scope.remaining() == pytest.approx(20, abs=0.1)
        assert scope.remaining() <= 20
    async with later(-10) as scope:  # their clock is ahead: as if it had not waited
        assert scope.remaining() == pytest.approx(30, abs=0.1)
    with pytest.raises(holdfast.InsufficientBudget, match="waited 40 s in the queue"):
        async with later(40):
            pytest.fail("the body ran")
    async with later(-3600) as scope:  # not set at all
        assert scope.due.skewed
        assert scope.remaining() == pytest.approx(30, abs=0.1)
    assert driver_of(asyncio.get_running_loop()).counts["carry.skewed"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        None, {}, [], 5, "text", b"bytes", object(), [("a",)], [None], [(1, 2)], {1: 2},
        [("traceparent", None)], {"traceparent": 5, "baggage": ["x"], "x-request-id": {}},
        {"holdfast-until": "x", "holdfast-put-at": "-5", "traceparent": b"\xff\xfe"},
        {"x-envoy-expected-rq-timeout-ms": "9" * 40, "holdfast-put-at": "9" * 40},
        [("holdfast-until", "a;" + "9" * 19), ("holdfast-put-at", "\u0663")],
        iter([("a", "b")]), (x for x in [1 / 1, "ab"]),
    ],
)  # fmt: skip
async def test_garbage_is_no_deadline_and_no_error(headers: Any) -> None:
    async with carry.extract(headers):
        assert holdfast.remaining() == math.inf
        assert carried().identity  # it has a name all the same


@given(st.dictionaries(
    st.sampled_from(["holdfast-until", "holdfast-put-at", "traceparent", "baggage", "grpc-timeout",
                     "x-envoy-expected-rq-timeout-ms", "x-release-stage", "B3"]),
    st.binary(max_size=80) | st.text(max_size=80) | st.none() | st.integers(),
))  # fmt: skip
def test_no_bytes_make_it_fail(headers: dict[str, Any]) -> None:
    carry.extract(headers, trust_stage=True)
    carry.extract(list(headers.items()))


class Trouble:
    def __iter__(self) -> Any:
        raise OSError("gone")


def test_a_carrier_that_fails_is_passed_over() -> None:
    with carry.extract(Trouble()) as scope:
        assert scope.malformed == ("(pairs)",)


def send_late() -> None:
    while holdfast.remaining():
        pass
    carry.inject()


def test_it_works_in_plain_functions() -> None:
    with use(WHO), holdfast.timeout(5):
        headers = carry.inject()
    with carry.extract(headers, trust_stage=True) as scope:
        assert 4 < scope.remaining() <= 5
        assert carried().stage == "canary"
    with pytest.raises(holdfast.InsufficientBudget, match="not sent"), holdfast.timeout(0.001):
        send_late()


async def test_malformed_headers_are_counted() -> None:
    scope = carry.extract({"traceparent": "x", "holdfast-until": "y", "baggage": "a=1"})
    assert set(scope.malformed) == {"traceparent", "holdfast-until"}
    assert driver_of(asyncio.get_running_loop()).counts["carry.malformed"] == 2


# -- how brokers give them -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kafka", "bytes", "nats", "upper", "lists"])
async def test_the_forms_of_brokers(form: str) -> None:
    async with use(WHO), holdfast.timeout(5):
        headers = carry.inject()
    given: Any = {
        "kafka": [(name, value.encode()) for name, value in headers.items()],
        "bytes": {name.encode(): value.encode() for name, value in headers.items()},
        "nats": dict(headers),
        "upper": {name.upper(): value for name, value in headers.items()},
        "lists": [[name, value] for name, value in headers.items()],
    }[form]
    async with carry.extract(given):
        assert holdfast.remaining() == pytest.approx(5)
        assert carried().identity.trace_id == "a" * 32


# -- the rules -------------------------------------------------------------------------------------


@given(st.floats(0, 1e10))
def test_a_time_that_is_written_never_moves_later(seconds: float) -> None:
    put = parse_put_at(format_put_at(seconds).encode())
    assert put is not None
    assert put <= seconds
    assert put == pytest.approx(seconds, abs=2e-6)
    until = parse_until(format_until("clock", min(seconds, 9e9)).encode())
    assert until is not None
    assert until[0] == "clock"
    assert until[1] <= min(seconds, 9e9)


def test_how_long_something_waited() -> None:
    assert waiting_time(None, 100) == (0, True)
    assert waiting_time(90, 100) == (10, True)
    assert waiting_time(100 + MOST_SKEW, 100) == (0, True)
    assert waiting_time(101 + MOST_SKEW, 100) == (0, False)
    assert waiting_time(0, 1_800_000_000) == (0, False)


def test_the_clock_that_is_shared_goes_before_the_wall() -> None:
    found = due(left=10, put_at=0, until=107, now=100, wall=2e9)
    assert found.at == 107
    assert found.waited == 3
    assert not found.skewed


def test_a_budget_that_was_tightened_on_the_way_counts() -> None:
    assert due(left=2, put_at=None, until=107, now=100, wall=0).at == 102


@given(
    st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 3e9), st.none() | st.floats(0, 1e6),
    st.floats(0, 1e6), st.floats(0, 3e9), st.floats(0, 1e6) | st.just(NEVER),
)  # fmt: skip
def test_nothing_is_due_later_than_was_said(
    left: float | None, put_at: float | None, until: float | None,
    now: float, wall_now: float, cap: float,
) -> None:  # fmt: skip
    at = due(left, put_at, until, now, wall_now, cap).at
    assert at <= now + cap
    if left is not None:
        assert at <= now + left
    if until is not None:
        assert at <= until


def test_pairs_beyond_the_cap_are_not_looked_at() -> None:
    assert len(raw_pairs((str(n), "x") for n in range(100_000))[0]) == 1000


@pytest.mark.parametrize("headers", [{}, {"x-envoy-expected-rq-timeout-ms": "5000"}])
def test_a_cap_must_be_a_number(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="nan"):
        carry.extract(headers, cap=math.nan)
    with pytest.raises(TypeError, match=r"extract\(\) takes a number"):
        carry.extract(headers, cap="30")  # type: ignore[arg-type]


async def test_the_name_of_a_clock_tells_no_address() -> None:
    loop = asyncio.get_running_loop()
    async with holdfast.timeout(5):
        clock, _, _ = carry.inject()["holdfast-until"].partition(";")
        assert carry.inject()["holdfast-until"].startswith(clock)  # and is the same every time
    assert re.fullmatch(r"loop\.[0-9a-f]{16}", clock)
    assert f"{id(loop):x}" not in clock
