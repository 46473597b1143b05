"""A cause on the wire."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER
from holdfast.domain.wire.budget import LONGEST
from holdfast.domain.wire.problem import (
    PROBLEM_TYPE,
    encode_cause_header,
    parse_cause_header,
    parse_problem,
    problem,
    problem_type,
)

BANK = Cause(CauseKind.DEADLINE, "charge/sql", "bank", 0.0, 2.0, 2.001)
ORDERS = Cause(CauseKind.DEADLINE, "POST /orders", "orders", 17.5, 3.0, 3.002, "slow", (BANK,))


def test_members() -> None:
    data = json.loads(problem(ORDERS, status=504, instance="/orders/7", request_id="abc"))
    assert data == {
        "type": "urn:holdfast:problem:deadline-exceeded",
        "title": "Deadline exceeded",
        "status": 504,
        "detail": ORDERS.line(),
        "instance": "/orders/7",
        "request_id": "abc",
        "kind": "deadline",
        "scope": "POST /orders",
        "hop": "orders",
        "budget_ms": 3000.0,
        "elapsed_ms": 3002.0,
        "note": "slow",
        "below": [
            {
                "kind": "deadline",
                "scope": "charge/sql",
                "hop": "bank",
                "budget_ms": 2000.0,
                "elapsed_ms": 2001.0,
            }
        ],
    }


def test_every_kind_has_a_type_of_its_own() -> None:
    types = {problem_type(kind) for kind in CauseKind}
    assert len(types) == len(CauseKind)
    assert (
        json.loads(problem(Cause(CauseKind.SHUTDOWN, "a"), status=503, title="Bye"))["title"]
        == "Bye"
    )


def test_no_deadline_has_no_budget() -> None:
    body = problem(Cause(CauseKind.SHUTDOWN, "a"), status=503)
    assert "budget_ms" not in json.loads(body)
    found = parse_problem(body)
    assert found is not None
    assert found.budget == NEVER


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=40).map(
    lambda text: "".join(c for c in text if c.isprintable())
)
SECONDS = st.integers(0, 10**12).map(lambda micros: micros / 1e6)


def causes(text: st.SearchStrategy[str]) -> st.SearchStrategy[Cause]:
    leaf = st.builds(
        Cause,
        kind=st.sampled_from(CauseKind),
        scope=text,
        hop=text,
        budget=st.one_of(st.just(NEVER), SECONDS),
        elapsed=SECONDS,
        detail=text,
    )
    return st.recursive(
        leaf,
        lambda below: st.builds(
            lambda cause, found: cause.with_below(*found), leaf, st.lists(below, max_size=3)
        ),
        max_leaves=8,
    )


def alike(a: Cause, b: Cause) -> bool:
    return (
        (a.kind, a.scope, a.hop, a.detail, len(a.below))
        == (b.kind, b.scope, b.hop, b.detail, len(b.below))
        and (a.budget == b.budget or math.isclose(a.budget, b.budget, abs_tol=1e-6))
        and math.isclose(a.elapsed, b.elapsed, abs_tol=1e-6)
        and all(alike(x, y) for x, y in zip(a.below, b.below, strict=True))
    )


@given(causes(TEXT))
def test_round_trip(cause: Cause) -> None:
    found = parse_problem(problem(cause, status=504), "application/problem+json; charset=utf-8")
    assert found is not None
    assert alike(found, cause)


@given(
    st.builds(
        Cause,
        kind=st.sampled_from(CauseKind),
        scope=st.text(max_size=400),
        hop=st.text(max_size=400),
        budget=st.floats(allow_nan=False),
        elapsed=st.floats(allow_nan=False),
        detail=st.text(max_size=400),
    )
)
def test_any_cause_can_be_sent(cause: Cause) -> None:
    for found in (
        parse_problem(problem(cause, status=504, request_id=cause.scope)),
        parse_cause_header(encode_cause_header(cause)),
    ):
        assert found is not None
        assert found.kind is cause.kind
        assert 0 <= found.elapsed <= LONGEST
        assert found.scope.isprintable()
        assert len(found.scope) <= 256
        assert not math.isnan(found.budget)


def chain(length: int, text: str = "s") -> Cause:
    cause = Cause(CauseKind.DEADLINE, text, text)
    for _ in range(length - 1):
        cause = Cause(CauseKind.DEADLINE, text, text, below=(cause,))
    return cause


def depth(cause: Cause) -> int:
    return 1 + max((depth(below) for below in cause.below), default=0)


def test_caps_of_the_document() -> None:
    found = parse_problem(problem(chain(40), status=504))
    assert found is not None
    assert depth(found) == 16
    body = problem(chain(16, "\N{GRINNING FACE}" * 256), status=504)
    assert len(body) <= 16_384
    found = parse_problem(body)
    assert found is not None
    assert 1 <= depth(found) < 16
    wide = Cause(CauseKind.DEADLINE, "a").with_below(*(BANK for _ in range(100)))
    found = parse_problem(problem(wide, status=504))
    assert found is not None
    assert len(found.below) == 16


def document(**members: object) -> bytes:
    base = {"type": "urn:holdfast:problem:deadline-exceeded", "kind": "deadline", "scope": "a"}
    return json.dumps(base | members).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"a"',
        b"{" * 5000,
        b"[" * 16_000,
        b'{"a":' * 3000,
        b"\xff\xfe",
        b"1" * 10_000,
        b'{"type": 5}',
        b'{"type": "about:blank", "kind": "deadline"}',
        document(kind="nothing we know"),
        document(kind=None),
        document(kind=["deadline"]),
        document(note="x" * 20_000),
    ],
)
def test_what_is_not_ours(body: bytes) -> None:
    assert parse_problem(body) is None


def test_the_content_type_decides() -> None:
    body = problem(BANK, status=504)
    assert parse_problem(body, "Application/Problem+JSON;charset=utf-8") is not None
    assert parse_problem(body, "application/json") is None
    assert parse_problem(body, "") is None
    assert PROBLEM_TYPE == "application/problem+json"


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        ("1500", NEVER),
        (True, NEVER),
        (None, NEVER),
        (float("nan"), NEVER),
        (float("inf"), NEVER),
        (10**400, NEVER),
        (-5, 0.0),
        (1500, 1.5),
        (1e300, LONGEST),
    ],
)
def test_numbers(value: object, budget: float) -> None:
    found = parse_problem(document(budget_ms=value))
    assert found is not None
    assert found.budget == budget


def test_texts_and_lists_from_outside() -> None:
    found = parse_problem(
        document(scope="a\r\nb\x1b[31m\u202e" + "x" * 500, hop=5, note=["a"], below=["a", 5, {}])
    )
    assert found is not None
    assert found.scope.startswith("ab[31mxx")
    assert len(found.scope) <= 256
    assert (found.hop, found.detail, found.below) == ("", "", ())


@given(st.binary(max_size=200))
def test_parsers_never_raise(raw: bytes) -> None:
    parse_problem(raw)
    parse_cause_header(raw)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["kind", "scope", "hop", "below", "budget_ms", "note"]), inner
        ),
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON)
def test_any_members_of_ours(below: object, budget: object, scope: object) -> None:
    parse_problem(document(below=below, budget_ms=budget, scope=scope, elapsed_ms=budget))


def test_header() -> None:
    text = encode_cause_header(BANK)
    assert text == "hop=bank; scope=charge/sql; budget-ms=2000; elapsed-ms=2001"
    text = encode_cause_header(ORDERS)
    assert text == (
        "hop=orders; scope=POST%20/orders; budget-ms=3000; elapsed-ms=3002, "
        "hop=bank; scope=charge/sql; budget-ms=2000; elapsed-ms=2001"
    )
    found = parse_cause_header(text)
    assert found is not None
    assert (found.hop, found.scope, found.below) == ("orders", "POST /orders", (BANK,))
    assert encode_cause_header(Cause(CauseKind.CHAOS, "a")).endswith("kind=chaos")


@given(causes(TEXT))
def test_header_round_trip(cause: Cause) -> None:
    text = encode_cause_header(cause)
    assert text.isascii()
    assert text.isprintable()
    found = parse_cause_header(text.encode())
    assert found is not None
    assert (found.kind, found.scope, found.hop) == (cause.kind, cause.scope, cause.hop)
    assert math.isclose(found.elapsed, cause.elapsed, abs_tol=1e-6)


def test_caps_of_the_header() -> None:
    assert len(encode_cause_header(chain(40, "a b" * 50))) <= 2048
    found = parse_cause_header(encode_cause_header(chain(40)))
    assert found is not None
    assert depth(found) == 16
    huge = encode_cause_header(chain(1, "\N{GRINNING FACE}" * 256))
    assert parse_cause_header(huge) is not None
    assert parse_cause_header("hop=a," * 10_000) is None


@pytest.mark.parametrize("raw", ["", "true", "1", "hop", "a=b", "kind=nothing; hop=a", ";;;,,,"])
def test_a_header_without_a_cause(raw: str) -> None:
    assert parse_cause_header(raw) is None


def test_a_header_that_has_grown() -> None:
    found = parse_cause_header("HOP = bank;new=1; budget-ms=1e9999; elapsed-ms=x; scope=a%0Ab")
    assert found == Cause(CauseKind.DEADLINE, "ab", "bank", 0.0, NEVER, 0.0)
