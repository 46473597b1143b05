"""asyncpg: what is sent, what is taken out of the answers, and where asyncpg must be as it is."""

from __future__ import annotations

import asyncio
import inspect
from struct import pack
from typing import Any

import asyncpg
import asyncpg.connect_utils
import asyncpg.pool
import asyncpg.transaction
import pytest
from asyncpg.protocol.protocol import Protocol
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.adapters.asyncpg import HeldConnection, HeldPool, connect
from holdfast.adapters.asyncpg.bounds import (
    LONGEST,
    fits,
    milliseconds_of,
    range_of,
    rounded,
    wish_of,
)
from holdfast.adapters.asyncpg.protocol import HeldProtocol
from holdfast.adapters.asyncpg.replies import Answer, Replies
from holdfast.adapters.asyncpg.statements import MAYBE, kind_of, sets_by
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_asyncpg import BOTH, TOLD
from tests.peers.postgres import Postgres

# -- bounds ----------------------------------------------------------------------------------------

BASES = st.sampled_from([0, 1, 50, 700, 60_000, LONGEST])


@given(st.floats(0.0001, 3e6), BASES)
def test_a_value_fits_what_it_was_made_for(left: float, base: int) -> None:
    wish = wish_of(left, base)
    value = rounded(wish, base)
    assert fits(value, wish)
    assert value == 0 or value >= wish
    assert base == 0 or 0 < value <= base
    if value != base:
        assert left * 1000 <= value <= max(100, left * 1000) * 9 / 8 + 2


@given(st.floats(0.0001, 3e6), st.floats(0.0001, 3e6), BASES)
def test_what_is_within_the_range_fits(left: float, other: float, base: int) -> None:
    value = rounded(wish_of(left, base), base)
    least, most = range_of(value, base)
    if least <= other <= most:
        assert fits(value, wish_of(other, base))


def test_no_deadline_wants_what_the_server_has() -> None:
    assert wish_of(float("inf"), 0) == 0
    assert wish_of(float("inf"), 700) == 700
    assert wish_of(LONGEST / 1000, 0) == 0
    assert not fits(5000, 0)
    assert not fits(0, 5000)
    assert fits(0, 5000, brief=True)
    assert fits(6000, 5000, brief=True)
    assert not fits(4000, 5000, brief=True)
    assert not fits(4000, 0, brief=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("0", 0),
        ("500ms", 500),
        ("2s", 2000),
        ("1min", 60_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
    ],
)
def test_settings_are_read_as_the_server_writes_them(setting: str, value: int) -> None:
    assert milliseconds_of(setting) == value


@pytest.mark.parametrize("setting", ["", "soon", "5 fortnights", "-1"])
def test_other_settings_are_not(setting: str) -> None:
    with pytest.raises(ValueError, match="not a time-out"):
        milliseconds_of(setting)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("select 1", "SELECT"),
        ("  -- a comment\n /* and\nanother */ ( ( Select 1))", "SELECT"),
        ("", "statement"),
        ("-- nothing", "statement"),
        (";;COMMIT", "COMMIT"),
        ("with a as (select 1) delete from b", "WITH"),
    ],
)
def test_the_first_word(text: str, name: str) -> None:
    assert kind_of(text).name == name


def test_kinds() -> None:
    assert kind_of("SELECT 1").data
    assert not kind_of("VACUUM").data
    assert kind_of("END").commits
    assert kind_of("ROLLBACK TO a").rolls_back
    for text in ("PREPARE TRANSACTION 'a'", "commit prepared 'a'", "ROLLBACK PREPARED 'a'"):
        assert kind_of(text).commits
        assert not kind_of(text).rolls_back
    assert not kind_of("PREPARE a AS SELECT 1").commits
    assert kind_of("SELECT pg_advisory_unlock_all();\nRESET ALL;").resets
    assert kind_of("SELECT '" + "x" * 10_000 + "'").name == "SELECT"


@pytest.mark.parametrize(
    ("text", "resets", "sets"),
    [
        ("set local statement_timeout = 5", False, 2),
        ('SET SESSION "statement_timeout" TO 5', False, 2),
        ("SELECT 1; SET statement_timeout = 5", False, 2),
        ("reset statement_timeout", False, 2),
        ("RESET ALL; SET statement_timeout = 5", False, 2),
        ("SELECT set_config( 'statement_timeout', '5', false)", False, 2),
        ("SELECT set_config(name, value, false) FROM a", False, 2),
        ("SELECT set_config($1, $2, false)", False, MAYBE),
        ("SELECT set_config('app.user', $1, true)", False, 0),
        ("DO $$BEGIN SET statement_timeout = 5; END$$", False, 2),
        ("SET statement_timeout = 5; /* not */ DISCARD ALL", True, 0),
        ("SELECT 1;\nRESET ALL;\nSET statement_timeout = 5000;", True, 0),
        ("SHOW statement_timeout", False, 0),
        ("INSERT INTO a VALUES ('RESET ALL; set statement_timeout')", False, 0),
        ("SELECT 1 -- discard all", False, 0),
        ("SELECT 'set statement_timeout = 5'", False, 0),
        ("RESET work_mem", False, 0),
        ("SET work_mem = 5", False, 0),
    ],
)
def test_what_sets_the_time_out(text: str, resets: bool, sets: int) -> None:
    assert (kind_of(text).resets, kind_of(text).sets) == (resets, sets)


def test_what_is_set_by_values() -> None:
    kind = kind_of("SELECT set_config($1, $2, false)")
    assert sets_by(kind, ("Statement_Timeout", "5")).sets
    assert not sets_by(kind, ("app.user", "5", None, 5)).sets


# -- answers ---------------------------------------------------------------------------------------


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + pack("!i", len(body) + 4) + body


DONE = message("C", b"SET\0") + message("Z", b"I")
NOTICE = message("N", b"SNOTICE\0\0")
FAILED = message("E", b"SERROR\0VERROR\0C57014\0\0")
FATAL = message("E", b"SFATAL\0VFATAL\0C57P01\0\0")
PREFIX = (
    message("3") + message("1") + message("2") + message("D", pack("!hi", 1, 1) + b"5")
    + message("C", b"SELECT 1\0") + message("3")
)  # fmt: skip
THEIRS = message("2") + message("D", pack("!hi", 1, 1) + b"1") + message("Z", b"I")


def read(replies: Replies, *parts: bytes) -> tuple[bytes, list[Answer]]:
    passed, done = b"", list[Answer]()
    for part in parts:
        if replies.awaited:
            rest, now = replies.strip(part)
            passed += rest
            done += now
        else:
            passed += part
    return passed, done


def cuts(data: bytes) -> list[tuple[bytes, ...]]:
    whole = [(data,), tuple(data[n : n + 1] for n in range(len(data)))]
    return whole + [(data[:n], data[n:]) for n in range(1, len(data))]


@pytest.mark.parametrize(
    ("kinds", "data", "passed", "failed"),
    [
        ("q", DONE + THEIRS, THEIRS, [False]),
        ("q", NOTICE + DONE + THEIRS, NOTICE + THEIRS, [False]),
        ("q", DONE[:9] + NOTICE + DONE[9:] + THEIRS, NOTICE + THEIRS, [False]),
        ("q", FAILED + message("Z", b"E") + THEIRS, THEIRS, [True]),
        ("q", FATAL, FATAL, []),
        ("qq", DONE + DONE + THEIRS, THEIRS, [False, False]),
        ("p", PREFIX + THEIRS, THEIRS, [False]),
        ("p", PREFIX, b"", [False]),
        ("p", message("3") + NOTICE + PREFIX[5:] + THEIRS, NOTICE + THEIRS, [False]),
        ("p", message("3") + FAILED + message("Z", b"E"), FAILED + message("Z", b"E"), [True]),
        ("pq", PREFIX + message("Z", b"I") + THEIRS, THEIRS, [False, False]),
    ],
)  # fmt: skip
def test_answers_are_taken_out_wherever_they_are_cut(
    kinds: str, data: bytes, passed: bytes, failed: list[bool]
) -> None:
    for parts in cuts(data):
        replies = Replies()
        for kind in kinds:
            replies.queried() if kind == "q" else replies.prefixed()
        theirs, done = read(replies, *parts)
        assert theirs == passed
        assert [answer.failed for answer in done] == failed


def test_the_values_of_an_answer() -> None:
    replies = Replies()
    answer = replies.queried()
    row = message("D", pack("!h", 2) + pack("!i", 3) + b"123" + pack("!i", 1) + b"0")
    read(replies, message("T", b"x") + row + message("Z", b"I"))
    assert answer.text == ["123", "0"]
    assert Answer().text == []


# -- on the wire -----------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_a_deadline_costs_no_round_trip(postgres: Postgres) -> None:
    """All that a statement needs is sent before anything of its answer is read."""
    connection: Any = await connect(postgres.dsn())
    protocol = connection._protocol
    await connection.fetchval("SELECT 1")
    events: list[str] = []
    write, received = protocol.wire.write, HeldProtocol.data_received

    def writing(data: Any) -> None:
        events.append("sent")
        write(data)

    def reading(self: Any, data: Any) -> None:
        events.append("read")
        received(self, data)

    vars(protocol.wire)["write"] = writing
    HeldProtocol.data_received = reading  # type: ignore[method-assign]
    try:
        for budget in (30.0, 30.0, 3.0, 0.3):
            async with holdfast.timeout(budget):
                await connection.fetchval("SELECT 1")
            turns = "".join(event[0] for event in events).replace("ss", "s").replace("rr", "r")
            # The answer to ours may come in a packet of its own, but nothing waits for it.
            assert turns in ("sr", "srr"), events
            events.clear()
    finally:
        HeldProtocol.data_received = received  # type: ignore[method-assign]
        del vars(protocol.wire)["write"]
    await connection.close()


@pytest.mark.real_time
async def test_a_value_that_fits_is_not_sent_again(postgres: Postgres) -> None:
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = await connect(postgres.dsn(port=proxy.port))
        await connection.fetchval("SELECT 1")

        async def sent(budget: float) -> int:
            before = proxy.connections[0].to_server
            async with holdfast.timeout(budget):
                await connection.fetchval("SELECT 1")
            return proxy.connections[0].to_server - before

        first = await sent(300.0)
        rest = [await sent(300.0) for _ in range(5)]
        assert all(size < first for size in rest)
        assert len({*rest}) == 1
        assert await sent(30.0) > rest[0]
        await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_answers_that_come_byte_by_byte(postgres: Postgres) -> None:
    connection: Any = await connect(postgres.dsn())
    protocol = connection._protocol

    class Drip(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            for at in range(len(data)):
                protocol.data_received(data[at : at + 1])

        def __getattribute__(self, name: str) -> Any:
            if name in ("data_received", "__class__"):
                return super().__getattribute__(name)
            return getattr(protocol, name)

    protocol.wire.set_protocol(Drip())
    for budget in (30.0, 3.0, 20.0, 2.0):
        async with holdfast.timeout(budget), connection.transaction():
            assert budget * 1000 <= await connection.fetchval(TOLD) + 1000
            assert await connection.execute("SELECT 1") == "SELECT 1"
    protocol.wire.set_protocol(protocol)
    await connection.close()


# -- seams -----------------------------------------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return [*inspect.signature(function).parameters]


def test_the_protocol_of_asyncpg_is_as_ours_expects() -> None:
    """When this fails, look at what asyncpg has changed, and at `adapters/asyncpg/protocol.py`."""
    for name in (
        "query", "bind_execute", "bind_execute_many", "bind", "execute", "close_portal",
        "close_statement", "copy_out", "copy_in",
    ):  # fmt: skip
        assert parameters(getattr(Protocol, name)) == parameters(getattr(HeldProtocol, name)), name
    assert parameters(Protocol.prepare)[:4] == ["self", "stmt_name", "query", "timeout"]
    ways = {
        name for name, value in vars(Protocol.__mro__[1]).items()
        if inspect.iscoroutinefunction(value) or "coroutine" in type(value).__name__
    }  # fmt: skip
    known = {
        "prepare", "bind_execute", "bind_execute_many", "bind", "execute", "close_portal", "query",
        "copy_out", "copy_in", "close_statement", "close", "_drain_cancels",
        "_wait_for_cancellation",
    }  # fmt: skip
    assert ways <= known, "an operation that is not bounded"
    for name in ("_is_cancelling", "_wait_for_cancellation", "is_in_transaction", "is_connected"):
        assert callable(getattr(Protocol, name)), name


def test_a_protocol_of_asyncpg_can_become_one_of_ours() -> None:
    assert Protocol.__basicsize__ == HeldProtocol.__basicsize__
    assert Protocol.__flags__ & (1 << 9), "a class of the heap"


def test_the_connection_of_asyncpg_is_as_ours_expects() -> None:
    source = inspect.getsource(asyncpg.Connection)
    assert "def _cancel_current_command(self, waiter" in source
    assert "self._cancellations" in source
    assert {"loop", "addr", "params", "backend_pid", "backend_secret"} == set(
        parameters(vars(asyncpg.connect_utils)["_cancel"])
    )
    assert "connection_class(pr, tr, loop, addr, config, params_input)" in inspect.getsource(
        asyncpg.connect_utils
    )
    assert "_managed" in asyncpg.transaction.Transaction.__slots__
    assert issubclass(HeldConnection, asyncpg.Connection)


def test_the_pool_of_asyncpg_is_as_ours_expects() -> None:
    holder = asyncpg.pool.PoolConnectionHolder
    assert {"_max_inactive_time", "_in_use", "_con"} <= set(holder.__slots__)
    assert parameters(holder.release) == ["self", "timeout"]
    assert parameters(vars(asyncpg.pool.Pool)["_acquire"]) == ["self", "timeout"]
    assert {"_holders", "_minsize"} <= set(asyncpg.pool.Pool.__slots__)
    assert {"_con", "_holder"} <= set(asyncpg.pool.PoolConnectionProxy.__slots__)
    assert "self.pool._acquire(self.timeout)" in inspect.getsource(asyncpg.pool.PoolAcquireContext)
    assert issubclass(HeldPool, asyncpg.pool.Pool)
