"""Statements of psycopg connections of ours: what the server is told, in how many round trips."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncRawCursor, errors

import holdfast
from holdfast.adapters.psycopg import AsyncConnection, Connection
from holdfast.adapters.psycopg.bounds import SLACK_MS, milliseconds
from holdfast.adapters.psycopg.flight import _kind_of
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget

SHOW = "SELECT current_setting('statement_timeout')"
SHOW_WITH = "SELECT current_setting('statement_timeout'), %s::int"


async def shown(connection: Any, query: str = SHOW, *values: object, **how: Any) -> int:
    """The limit that the server has for this very statement, in milliseconds; 0 for none."""
    cursor = await connection.execute(query, values or None, **how)
    row = await cursor.fetchone()
    return milliseconds(row[0])


def near(limit: int, seconds: float) -> bool:
    return seconds * 1000 - 2000 < limit <= seconds * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("250ms", 250), ("5s", 5000), ("2min", 120_000), ("1h", 3_600_000), ("7", 7)],
)
def test_what_the_server_shows_is_read(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("autocommit", [False, True])
async def test_every_kind_of_statement_brings_its_limit(postgres: Any, autocommit: bool) -> None:
    async with await AsyncConnection.connect(postgres.dsn(), autocommit=autocommit) as connection:
        async with holdfast.timeout(30):
            assert near(await shown(connection), 30)
            assert near(await shown(connection, SHOW_WITH, 1), 30)
            for _ in range(7):  # prepared on the way
                assert near(await shown(connection, SHOW_WITH, 1), 30)
            assert near(await shown(connection, SHOW_WITH, 1, prepare=True), 30)
            assert near(await shown(connection, SHOW, binary=True), 30)
            assert near(await shown(connection, "  -- why\n /* so */ (" + SHOW + ")"), 30)
            assert near(await shown(connection, "WITH a AS (" + SHOW + ") TABLE a"), 30)
        await connection.commit()
        assert await shown(connection) == 0


@pytest.mark.real_time
async def test_a_transaction_follows_the_scopes_inside(postgres: Any) -> None:
    async with await AsyncConnection.connect(postgres.dsn()) as connection:
        async with holdfast.timeout(30), connection.transaction():
            assert near(await shown(connection), 30)
            for query, values in ((SHOW, ()), (SHOW_WITH, (1,))):
                async with holdfast.timeout(5):
                    assert near(await shown(connection, query, *values), 5)
                assert near(await shown(connection, query, *values), 30)
        async with connection.transaction():
            async with holdfast.timeout(30):
                assert near(await shown(connection), 30)
            assert await shown(connection) == 0


@pytest.mark.real_time
async def test_what_a_savepoint_takes_back_is_set_again(postgres: Any) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn()) as connection,
        holdfast.timeout(60),
        connection.transaction(),
    ):
        async with holdfast.timeout(5):
            assert near(await shown(connection), 5)
        async with connection.transaction(force_rollback=True):
            assert near(await shown(connection), 60)
        assert near(await shown(connection), 60)
        await connection.execute("SAVEPOINT a")
        async with holdfast.timeout(5):
            assert near(await shown(connection), 5)
        await connection.execute("ROLLBACK TO a")
        async with holdfast.timeout(5):
            assert near(await shown(connection), 5)


@pytest.mark.real_time
@pytest.mark.parametrize("autocommit", [False, True])
async def test_the_own_limit_of_the_session_is_never_loosened(
    postgres: Any, autocommit: bool
) -> None:
    options = "-c statement_timeout=4000"
    async with await AsyncConnection.connect(
        postgres.dsn(), autocommit=autocommit, options=options
    ) as connection:
        async with holdfast.timeout(30):
            assert await shown(connection) == 4000
            assert await shown(connection, SHOW_WITH, 1) == 4000
            await connection.commit()
        async with holdfast.timeout(2):
            assert near(await shown(connection), 2)
            await connection.commit()
        await connection.execute("SET statement_timeout = '3s'")
        await connection.commit()
        async with holdfast.timeout(30):
            assert await shown(connection) == 3000
            await connection.commit()


@pytest.mark.real_time
async def test_what_the_user_sets_in_a_transaction_stays(postgres: Any) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn()) as connection,
        holdfast.timeout(30),
    ):
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = '7s'")
            assert await shown(connection) == 7000
            assert await shown(connection, SHOW_WITH, 1) == 7000
        async with connection.transaction():
            assert near(await shown(connection), 30)


@pytest.mark.real_time
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("SELECT set_config('statement_timeout', '3s', false)", None),
        ("SELECT /* so */ pg_catalog.SET_CONFIG(%s, %s, false)", ("statement_timeout", "3s")),
        ("/* so */ SET \"statement_timeout\" = '3s'", None),
    ],
)
async def test_what_the_user_sets_is_never_loosened(
    postgres: Any, autocommit: bool, query: str, values: Any
) -> None:
    async with await AsyncConnection.connect(postgres.dsn(), autocommit=autocommit) as connection:
        for within in (True, False):
            async with holdfast.timeout(30):
                assert near(await shown(connection), 30)
                if within:
                    await connection.execute(query, values)
                    assert await shown(connection) == 3000
            await connection.commit()
            if not within:
                await connection.execute(query, values)
                await connection.commit()
            async with holdfast.timeout(30):
                assert await shown(connection) == 3000
                await connection.execute("RESET statement_timeout")
                await connection.commit()
                assert near(await shown(connection), 30)
            await connection.commit()


@pytest.mark.real_time
async def test_what_else_the_user_sets_costs_nothing(postgres: Any) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn()) as connection,
        holdfast.timeout(30),
    ):
        await connection.execute("SELECT set_config('app.user', 'statement', true)")
        assert connection._own == 0
        async with holdfast.timeout(5):
            assert near(await shown(connection), 5)


@pytest.mark.real_time
@pytest.mark.parametrize("end", ["COMMIT AND CHAIN", "rollback and chain", "END AND CHAIN"])
async def test_a_chained_transaction_has_its_limit_too(postgres: Any, end: str) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn(), autocommit=True) as connection,
        holdfast.timeout(30),
    ):
        await connection.execute("BEGIN")
        assert near(await shown(connection), 30)
        await connection.execute(end)
        assert near(await shown(connection), 30)
        await connection.execute("ROLLBACK")


@pytest.mark.real_time
async def test_what_cannot_run_in_a_transaction_runs(postgres: Any) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn(), autocommit=True) as connection,
        holdfast.timeout(30),
    ):
        await connection.execute("CREATE TABLE IF NOT EXISTS odd (n int)")
        await connection.execute("VACUUM odd")
        await connection.execute("CREATE INDEX CONCURRENTLY odd_n ON odd (n)")
        await connection.execute("DROP TABLE odd")
        await connection.execute("DO $$ BEGIN COMMIT; END $$")
        cursor = await connection.execute("SELECT 1; SELECT 2")
        found = [await part.fetchone() async for part in cursor.results()]
        assert found == [(1,), (2,)]


@pytest.mark.real_time
async def test_errors_are_those_of_the_statement(postgres: Any) -> None:
    async with await AsyncConnection.connect(postgres.dsn(), autocommit=True) as connection:
        async with holdfast.timeout(30):
            with pytest.raises(errors.UndefinedColumn, match="LINE 1: SELECT nope\n"):
                await connection.execute("SELECT nope")
            with pytest.raises(errors.UndefinedColumn, match="LINE 1: SELECT nope, "):
                await connection.execute("SELECT nope, %s", (1,))
            with pytest.raises(errors.DivisionByZero):
                await connection.execute("SELECT 1 / %s::int", (0,))
            with pytest.raises(errors.SyntaxError):
                await connection.execute("SELECT nope nope nope %s", (0,), prepare=True)
            assert await shown(connection, SHOW_WITH, 1, prepare=True)
        async with holdfast.timeout(30), connection.transaction():
            with pytest.raises(errors.DivisionByZero):
                await connection.execute("SELECT 1 / 0")
            async with holdfast.timeout(5):
                with pytest.raises(errors.InFailedSqlTransaction):
                    await connection.execute("SELECT %s", (1,))


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [AsyncClientCursor, AsyncRawCursor, psycopg.AsyncCursor])
async def test_cursors_of_other_classes_bring_it_too(postgres: Any, kind: Any) -> None:
    async with await AsyncConnection.connect(
        postgres.dsn(), autocommit=True, cursor_factory=kind
    ) as connection:
        assert issubclass(connection.cursor_factory, kind)
        assert connection.cursor_factory.__name__ == kind.__name__
        query = SHOW + (", $1::int" if kind is AsyncRawCursor else ", %s::int")
        async with holdfast.timeout(30):
            assert near(await shown(connection), 30)
            assert near(await shown(connection, query, 1), 30)
            assert near(await shown(connection, SHOW + ", ';'"), 30)


@pytest.mark.real_time
async def test_many_at_once_and_pipelines(postgres: Any) -> None:
    for autocommit in (False, True):
        async with (
            await AsyncConnection.connect(postgres.dsn(), autocommit=autocommit) as connection,
            holdfast.timeout(30),
        ):
            cursor = connection.cursor()
            await cursor.executemany(SHOW_WITH, [(1,), (2,), (3,)], returning=True)
            rows = [await part.fetchone() async for part in cursor.results()]
            assert [row[1] for row in rows if row] == [1, 2, 3]
            assert all(near(milliseconds(row[0]), 30) for row in rows if row)
            async with connection.pipeline() as pipeline:
                one = await connection.execute(SHOW_WITH, (1,))
                two = await connection.execute(SHOW)
                await pipeline.sync()
                three = await connection.execute(SHOW_WITH, (3,))
                for got in (one, two, three):
                    row = await got.fetchone()
                    assert row is not None
                    assert near(milliseconds(row[0]), 30)
            async with connection.pipeline(), connection.transaction():
                row = await (await connection.execute(SHOW)).fetchone()
                assert row is not None
                assert near(milliseconds(row[0]), 30)


@pytest.mark.real_time
async def test_streams_copies_and_cursors_of_the_server(postgres: Any) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn()) as connection,
        holdfast.timeout(30),
    ):
        await connection.execute("CREATE TEMP TABLE t (n int)")
        async with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for n in range(100):
                await copy.write_row((n,))
        async with connection.cursor().copy("COPY (SELECT n FROM t) TO STDOUT") as copy:
            assert len([row async for row in copy.rows()]) == 100
        found = [row async for row in connection.cursor().stream("SELECT n FROM t")]
        assert len(found) == 100
        async with holdfast.timeout(5):
            async for row in connection.cursor().stream(SHOW):
                assert near(milliseconds(row[0]), 5)
        async with connection.cursor("named") as named:
            await named.execute(SHOW + ", n FROM t")
            for row in await named.fetchmany(10):
                assert near(milliseconds(row[0]), 30)
            async with holdfast.timeout(5):
                for row in await named.fetchmany(10):
                    assert near(milliseconds(row[0]), 5)
            async for row in named:
                assert near(milliseconds(row[0]), 30)


@pytest.mark.real_time
async def test_outside_of_transactions_it_can_be_left_out(postgres: Any) -> None:
    class Sparing(AsyncConnection[Any]):
        tells_autocommit = False

    async with (
        await Sparing.connect(postgres.dsn(), autocommit=True) as connection,
        holdfast.timeout(30),
    ):
        assert await shown(connection) == 0
        assert await shown(connection, SHOW_WITH, 1) == 0
        async with connection.transaction():
            assert near(await shown(connection), 30)
        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.1):
                await connection.execute("SELECT pg_sleep(100)")
        assert postgres.at_work("pg_sleep") == 0


# -- round trips ---------------------------------------------------------------------------------


def trips(connection: Any, path: Path) -> Any:
    """Counts what is answered by a ReadyForQuery: `Query` and `Sync`."""
    with path.open("wb") as file:
        connection.pgconn.trace(file.fileno())
        connection.pgconn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
        yield
        connection.pgconn.untrace()
    lines = path.read_text().splitlines()
    yield sum(1 for line in lines if line.startswith("F") and line.split()[2] in ("Query", "Sync"))


@pytest.mark.real_time
@pytest.mark.parametrize("autocommit", [False, True])
async def test_no_statement_costs_a_round_trip_more(
    postgres: Any, tmp_path: Path, autocommit: bool
) -> None:
    async def work(connection: Any) -> None:
        for _ in range(3):
            await connection.execute("SELECT 1")
            await connection.execute("SELECT %s", (1,))
            for _ in range(7):
                await connection.execute("SELECT %s + 1", (1,))
            await connection.commit()

    counts: list[int] = []
    for kind in (psycopg.AsyncConnection, AsyncConnection):
        async with (
            await kind.connect(postgres.dsn(), autocommit=autocommit) as connection,
            holdfast.timeout(30),
        ):
            await connection.execute("SELECT 0")  # it asks for the session's own limit, once
            await connection.commit()
            count = trips(connection, tmp_path / kind.__module__)
            next(count)
            await work(connection)
            counts.append(next(count))
            count.close()
    plain, ours = counts
    # In autocommit mode what is to be prepared is prepared in the same flight.
    assert ours <= plain
    assert plain - ours <= (1 if autocommit else 0)


@pytest.mark.real_time
async def test_a_transaction_is_told_again_only_when_it_is_too_loose(
    postgres: Any, tmp_path: Path
) -> None:
    async with (
        await AsyncConnection.connect(postgres.dsn()) as connection,
        holdfast.timeout(30),
        connection.transaction(),
    ):
        first = await shown(connection)
        assert await shown(connection) == first
        async with holdfast.timeout((first - SLACK_MS / 2) / 1000):
            assert await shown(connection) == first
        await asyncio.sleep(SLACK_MS / 1000 + 0.05)
        again = await shown(connection, SHOW_WITH, 1)
        assert again < first


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_a_spent_budget_sends_nothing(postgres: Any, tmp_path: Path) -> None:
    async with await AsyncConnection.connect(postgres.dsn(), autocommit=True) as connection:
        count = trips(connection, tmp_path / "trace")
        next(count)
        refused: list[BaseException] = []

        async def late() -> None:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                for work in (
                    lambda: connection.execute("SELECT 1"),
                    lambda: connection.cursor().copy("COPY a FROM STDIN").__aenter__(),
                    lambda: connection.transaction().__aenter__(),
                    lambda: anext(connection.cursor().stream("SELECT 1")),
                ):
                    try:
                        await work()
                    except errors.QueryCanceled as error:
                        refused.append(error)
                raise

        with pytest.raises(DeadlineExceeded):
            async with holdfast.timeout(0.01):
                await late()
        assert next(count) == 0
        assert [type(error).__mro__[1] for error in refused] == [InsufficientBudget] * 4
        assert await shown(connection) == 0


def test_a_spent_budget_dials_nobody(postgres: Any) -> None:
    def late() -> None:
        asyncio.run(asyncio.sleep(0.01))
        with pytest.raises(errors.ConnectionTimeout) as caught:
            Connection.connect(postgres.dsn())
        assert isinstance(caught.value, InsufficientBudget)

    with pytest.raises(DeadlineExceeded), holdfast.timeout(0.001):
        late()


@pytest.mark.real_time
async def test_the_kernel_is_told_once_and_not_from_what_is_left(postgres: Any) -> None:
    async with holdfast.timeout(5):
        connection = await AsyncConnection.connect(postgres.dsn())
    assert connection.info.get_parameters()["tcp_user_timeout"] == "10000"
    await connection.close()
    with Connection.connect(postgres.dsn(), tcp_user_timeout=77_000) as blocking:
        assert blocking.info.get_parameters()["tcp_user_timeout"] == "77000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"SELECT 1", "work"),
        (b" /* a */ -- b\n ((select 1))", "work"),
        (b"SET x = 1", "setting"),
        (b"CREATE TABLE t (n int)", None),
        (b"selection", None),
        (b"/* never closed", None),
        (b" " * 500_000 + b"CREATE", None),
        (b"/*a*/" * 100_000 + b"1", None),
        (b"--a\n( " * 100_000 + b"1", None),
    ],
)
def test_what_a_statement_begins_with_is_found_in_no_time(text: bytes, expected: Any) -> None:
    began = time.monotonic()
    assert _kind_of(text) == expected
    assert time.monotonic() - began < 5.0
