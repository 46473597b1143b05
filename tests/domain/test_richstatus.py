"""A cause in the rich status of gRPC."""

from __future__ import annotations

import base64
import math
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER
from holdfast.domain.wire.richstatus import (
    DETAILS_KEY,
    cut_message,
    encode_status,
    parse_status,
    printable,
    status_names,
)

BANK = Cause(CauseKind.DEADLINE, "charge/sql", "bank", 0.0, 2.0, 2.001)
ORDERS = Cause(CauseKind.DEADLINE, "Orders/Get", "orders", 17.5, 3.0, 3.002, "slow", (BANK,))

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=24).map(
    lambda text: "".join(c for c in text if c.isprintable())
)
SECONDS = st.one_of(st.just(0.0), st.integers(0, 10**12).map(lambda micros: micros / 1e6))


def plain(text: st.SearchStrategy[str]) -> st.SearchStrategy[Cause]:
    return st.builds(
        Cause,
        kind=st.sampled_from(CauseKind),
        scope=text,
        hop=text,
        budget=st.one_of(st.just(NEVER), SECONDS),
        elapsed=SECONDS,
        detail=text,
    )


def alike(a: Cause, b: Cause, *, detail: bool = True) -> bool:
    return (
        (a.kind, a.scope, a.hop) == (b.kind, b.scope, b.hop)
        and (not detail or a.detail == b.detail)
        and (a.budget == b.budget or math.isclose(a.budget, b.budget, abs_tol=1e-6))
        and math.isclose(a.elapsed, b.elapsed, abs_tol=1e-6)
    )


@given(st.integers(0, 16), TEXT, plain(TEXT), st.lists(plain(TEXT), max_size=3))
def test_round_trip(code: int, message: str, cause: Cause, below: list[Cause]) -> None:
    nested: Cause | None = None
    for lower in reversed(below):
        nested = lower if nested is None else lower.with_below(nested)
    chain = cause if nested is None else cause.with_below(nested)
    found = parse_status(encode_status(code, message, chain))
    assert found is not None
    assert alike(found, cause)
    at, expected = found, chain
    while expected.below:
        assert at.below
        at, expected = at.below[0], expected.below[0]
        assert alike(at, expected, detail=False)
    assert not at.below


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=5000),
    st.builds(
        Cause,
        kind=st.sampled_from(CauseKind),
        scope=st.text(max_size=400),
        hop=st.text(max_size=400),
        budget=st.floats(allow_nan=False),
        elapsed=st.floats(allow_nan=False),
        detail=st.text(max_size=400),
        below=st.lists(plain(st.text(max_size=400)), max_size=2).map(tuple),
    ),
)
def test_whatever_is_written_is_small_and_can_be_read(code: int, said: str, cause: Cause) -> None:
    data = encode_status(code, said, cause)
    assert len(data) <= 2496
    found = parse_status(data)
    assert found is not None
    assert found.kind is cause.kind
    assert found.scope.isprintable()


def sent(message: str) -> int:
    """Bytes of the details of a call, as gRPC sends them."""
    plain = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    return len(quote(message, safe=plain, errors="replace"))


@given(st.text(max_size=2000))
def test_details_are_cut_as_they_are_sent(message: str) -> None:
    short = cut_message(message)
    assert message.startswith(short)
    assert sent(short) <= 768
    longer = message[: len(short) + 1]
    assert longer == short or sent(longer) > 768
    assert cut_message(short) == short


@pytest.mark.parametrize("char", ["a", "%", "é", "計", "\U0001f600"])
def test_what_is_written_leaves_room_in_8_kib(char: str) -> None:
    chain = Cause(CauseKind.DEADLINE, char * 400, char * 100, 0.0, 1.0, 1.0, char * 300, (BANK,))
    message = cut_message(char * 512)
    data = encode_status(4, char * 512, chain)
    assert sent(message) + len(base64.b64encode(data)) <= 4096
    # Who reads it wants the two to be the same.
    status_pb2: Any = pytest.importorskip("google.rpc.status_pb2")
    assert status_pb2.Status.FromString(data).message == message


def test_texts_of_others_are_cleaned() -> None:
    assert printable("boom\nlevel=ERROR\x1b[31m\u2028é") == "boomlevel=ERROR[31mé"
    assert printable("abc", 2) == "ab"


def test_the_longest_texts_fit() -> None:
    wide = "\U0001f600" * 256
    cause = Cause(CauseKind.DEADLINE, wide, wide, 0.0, 1.0, 1.0, wide, (BANK, ORDERS))
    data = encode_status(4, wide * 4, cause)
    assert len(data) <= 2496
    found = parse_status(data)
    assert found is not None
    assert found.scope


@given(st.binary(max_size=300))
def test_garbage_is_nothing(data: bytes) -> None:
    assert parse_status(data) is None
    assert isinstance(status_names(data), tuple)


@given(st.data())
def test_what_was_spoilt_on_the_way_raises_nothing(data: st.DataObject) -> None:
    whole = bytearray(encode_status(4, "late", ORDERS))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    spoilt = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = parse_status(spoilt)
    assert found is None or found.scope.isprintable()
    status_names(spoilt)


def test_too_much_is_not_looked_at() -> None:
    assert parse_status(encode_status(4, "late", ORDERS) + b"\x0a\x00" * 10_000) is None
    assert parse_status(b"") is None


def test_numbers_that_are_none() -> None:
    whole = encode_status(4, "late", ORDERS)
    for wrong in (b"inf.", b"1e99", b"nan.", b"-1.0", b"much"):
        found = parse_status(whole.replace(b"3000", wrong).replace(b"3002", wrong))
        assert found is not None
        assert found.budget >= 0
        assert math.isfinite(found.elapsed)


# -- as others read and write it -----------------------------------------------------------------


def test_it_is_what_the_protos_of_google_say() -> None:
    status_pb2: Any = pytest.importorskip("google.rpc.status_pb2")
    details_pb2: Any = pytest.importorskip("google.rpc.error_details_pb2")
    status = status_pb2.Status.FromString(encode_status(4, "späť", ORDERS))
    assert (status.code, status.message) == (4, "späť")
    (detail,) = status.details
    info = details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("DEADLINE_EXCEEDED", "holdfast")
    assert dict(info.metadata) == {
        "scope": "Orders/Get",
        "hop": "orders",
        "budget_ms": "3000",
        "elapsed_ms": "3002",
        "note": "slow",
        "below": "hop=bank; scope=charge/sql; budget-ms=2000; elapsed-ms=2001",
    }
    # In whichever order a library writes it, and beside what else a server tells.
    other = status_pb2.Status(code=4, message="x")
    other.details.add().Pack(details_pb2.RetryInfo())
    other.details.add().Pack(details_pb2.ErrorInfo(reason="STOCKOUT", domain="shop.example"))
    other.details.add().Pack(info)
    found = parse_status(other.SerializeToString())
    assert found == parse_status(encode_status(4, "späť", ORDERS))
    assert status_names(other.SerializeToString()) == (
        "STOCKOUT of shop.example",
        "DEADLINE_EXCEEDED of holdfast",
    )
    assert status_pb2.Status.FromString(encode_status(-1, "", ORDERS)).code == -1


def test_grpc_status_reads_it() -> None:
    rpc_status: Any = pytest.importorskip("grpc_status.rpc_status")
    grpc = pytest.importorskip("grpc")

    class Failed:
        """What `from_call` looks at of a call."""

        def trailing_metadata(self) -> Any:
            return ((DETAILS_KEY, encode_status(4, "late", ORDERS)),)

        def code(self) -> Any:
            return grpc.StatusCode.DEADLINE_EXCEEDED

        def details(self) -> str:
            return "late"

    status = rpc_status.from_call(Failed())
    assert status.code == 4
    assert len(status.details) == 1


def test_others_are_none_of_ours() -> None:
    status_pb2: Any = pytest.importorskip("google.rpc.status_pb2")
    details_pb2: Any = pytest.importorskip("google.rpc.error_details_pb2")
    other = status_pb2.Status(code=9, message="no stock")
    info = details_pb2.ErrorInfo(reason="DEADLINE_EXCEEDED", domain="bank.example")
    other.details.add().Pack(info)
    assert parse_status(other.SerializeToString()) is None
    assert status_names(other.SerializeToString()) == ("DEADLINE_EXCEEDED of bank.example",)
