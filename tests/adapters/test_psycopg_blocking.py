"""psycopg connections of ours in threads: bounded, although nothing can cancel a thread."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

import holdfast
from holdfast.adapters.psycopg import Connection
from holdfast.adapters.psycopg.bounds import COMMIT_GRACE, GRACE
from holdfast.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    InsufficientBudget,
    OutcomeUnknown,
)
from holdfast.testing.proxy import FaultProxy

ENDED = 5.0


class Patient(Connection[Any]):
    """Waits until a statement has ended, on a machine that is ever so busy."""

    grace = 20.0


def connected(server: Any, port: int | None = None, **how: Any) -> Connection[Any]:
    kind = Patient if port is None else Connection
    return kind.connect(server.dsn(port=port), **how)


def one(connection: Any) -> Any:
    return connection.execute("SELECT 1").fetchone()[0]


def execute(connection: Any) -> None:
    connection.execute("SELECT pg_sleep(100)")


def execute_with(connection: Any) -> None:
    connection.execute("SELECT pg_sleep(%s)", (100,))


def many(connection: Any) -> None:
    connection.cursor().executemany("SELECT pg_sleep(%s)", [(0,), (0,), (100,)])


def stream(connection: Any) -> None:
    query = "SELECT n, pg_sleep(CASE WHEN n > 3 THEN 100 ELSE 0 END) FROM generate_series(1, 9) n"
    list(connection.cursor().stream(query))


def copy_out(connection: Any) -> None:
    query = "COPY (SELECT n, pg_sleep(n / 5000) FROM generate_series(1, 99999) n) TO STDOUT"
    with connection.cursor().copy(query) as copy:
        list(copy)


def pipeline(connection: Any) -> None:
    with connection.pipeline():
        connection.execute("SELECT 1")
        cursor = connection.execute("SELECT pg_sleep(%s)", (100,))
        connection.execute("SELECT 2")
        cursor.fetchone()


def inside(connection: Any) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_sleep(100)")


def server_cursor(connection: Any) -> None:
    with connection.transaction(), connection.cursor("named") as cursor:
        cursor.execute("SELECT pg_sleep(0.05) FROM generate_series(1, 9999)")
        cursor.fetchall()


WORK: list[Callable[[Any], None]] = [
    execute, execute_with, many, stream, copy_out, pipeline, inside, server_cursor,
]  # fmt: skip


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("work", WORK)
def test_whatever_is_under_way_ends_at_the_deadline(
    postgres: Any, work: Callable[[Any], None], autocommit: bool
) -> None:
    connection = connected(postgres, autocommit=autocommit)
    pid = connection.info.backend_pid
    with pytest.raises(DeadlineExceeded) as caught, holdfast.timeout(0.12):
        work(connection)
    assert isinstance(caught.value, errors.QueryCanceled)
    assert caught.value.sqlstate == "57014"
    assert caught.value.diag.message_primary is None
    busy = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
    assert not postgres.ask(busy)
    connection.rollback()
    with holdfast.timeout(ENDED):
        assert one(connection) == 1
        assert connection.info.backend_pid == pid
        connection.commit()
    connection.close()


@pytest.mark.parametrize("work", [execute, execute_with, stream, copy_out, pipeline, inside])
def test_a_frozen_server_frees_the_thread(
    postgres: Any, work: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = connected(postgres, proxy.port)
        proxy.to_client.stall()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded), holdfast.timeout(0.2), connection:
            work(connection)
        assert time.monotonic() - began < 0.2 + GRACE + ENDED
        assert connection.closed


def test_a_dial_that_is_not_answered_ends(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught, holdfast.timeout(0.3):
            connected(postgres, proxy.port)
        assert time.monotonic() - began < ENDED
        assert isinstance(caught.value, errors.ConnectionTimeout)


def test_a_dial_in_time_is_a_connection(postgres: Any) -> None:
    with holdfast.timeout(ENDED):
        connection = connected(postgres)
    assert one(connection) == 1
    connection.close()


def test_a_dial_that_is_refused_is_an_error_as_before(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        gone = proxy.port
    with pytest.raises(psycopg.OperationalError) as caught, holdfast.timeout(ENDED):
        connected(postgres, gone)
    assert not isinstance(caught.value, TimeoutError)


def by_hand(connection: Any, body: Callable[[], object]) -> None:
    body()
    connection.commit()


def by_block(connection: Any, body: Callable[[], object]) -> None:
    with connection:
        body()


def by_transaction(connection: Any, body: Callable[[], object]) -> None:
    with connection.transaction():
        body()


def by_pipeline(connection: Any, body: Callable[[], object]) -> None:
    with connection.pipeline():
        body()
        connection.commit()


def by_text(connection: Any, body: Callable[[], object]) -> None:
    body()
    connection.execute("COMMIT")


@pytest.mark.parametrize("commit", [by_hand, by_block, by_transaction, by_pipeline, by_text])
def test_a_commit_without_an_answer_is_of_unknown_outcome(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept_too (n int)")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = connected(postgres, proxy.port)

        def body() -> None:
            connection.execute("INSERT INTO kept_too VALUES (1) RETURNING n").fetchone()
            proxy.to_client.stall()

        began = time.monotonic()
        with pytest.raises(OutcomeUnknown) as caught, holdfast.timeout(0.3):
            commit(connection, body)
        assert time.monotonic() - began < 0.3 + COMMIT_GRACE + ENDED
        assert isinstance(caught.value, psycopg.OperationalError)
        assert connection.closed


def test_a_commit_that_is_cut_off_is_of_unknown_outcome(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = connected(postgres, proxy.port)
        one(connection)
        proxy.to_client.stall()
        threading.Timer(0.1, proxy.reset).start()
        with pytest.raises(OutcomeUnknown):
            connection.commit()
        assert connection.closed
        with pytest.raises(psycopg.OperationalError) as caught:
            connection.commit()
        assert not isinstance(caught.value, OutcomeUnknown)


@pytest.mark.parametrize("commit", [by_hand, by_transaction])
def test_a_commit_may_be_answered_a_little_late(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept_too (n int)")
    postgres.ask("TRUNCATE kept_too")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        connection = connected(postgres, proxy.port)

        def body() -> None:
            connection.execute("INSERT INTO kept_too VALUES (1)")
            proxy.to_client.delay(0.4)

        with pytest.raises(DeadlineExceeded), holdfast.timeout(0.3):  # of the block, at its end
            commit(connection, body)
        assert not connection.closed
        assert postgres.ask("SELECT count(*) FROM kept_too") == [(1,)]
        connection.close()


@pytest.mark.parametrize("commit", [by_hand, by_block, by_transaction])
def test_a_commit_that_comes_too_late_is_not_sent(postgres: Any, commit: Any) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS kept_too (n int)")
    postgres.ask("TRUNCATE kept_too")
    connection = connected(postgres)

    def body() -> None:
        connection.execute("INSERT INTO kept_too VALUES (1)")
        time.sleep(0.25)

    with pytest.raises(InsufficientBudget), holdfast.timeout(0.2):
        commit(connection, body)
    assert postgres.ask("SELECT count(*) FROM kept_too") == [(0,)]
    assert connection.closed is (commit is by_block)
    connection.close()


def test_a_late_rollback_gets_its_grace(postgres: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg")
    connection = connected(postgres)

    def late() -> None:
        one(connection)
        time.sleep(0.1)
        connection.rollback()

    with pytest.raises(DeadlineExceeded), holdfast.timeout(0.05):
        late()
    assert connection.info.transaction_status == 0
    connection.close()


@pytest.mark.real_time
async def test_a_thread_sees_that_its_scope_is_cancelled(postgres: Any) -> None:
    connection = connected(postgres, autocommit=True)
    loop = asyncio.get_running_loop()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            execute(connection)
        except errors.QueryCanceled as exc:
            caught.append(exc)

    async def cancelled() -> None:
        async with holdfast.scope("mine") as scope:
            here = contextvars.copy_context()
            loop.call_later(0.05, scope.cancel)
            await asyncio.shield(loop.run_in_executor(None, here.run, work))

    with pytest.raises(Cancelled):
        await cancelled()
    end = time.monotonic() + ENDED
    while not caught:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    assert isinstance(caught[0], Cancelled)
    assert one(connection) == 1
    connection.close()


def test_fifty_threads_end_on_time(postgres: Any) -> None:
    postgres.ask("SELECT 1")
    late: list[float] = []

    def work(n: int) -> None:
        with connected(postgres, autocommit=True) as connection:
            limit = 0.2 + n * 0.01
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded), holdfast.timeout(limit):
                execute_with(connection)
            late.append(time.monotonic() - began - limit)
            assert one(connection) == 1

    with ThreadPoolExecutor(50) as threads:
        for done in [threads.submit(work, n) for n in range(50)]:
            done.result(60)
    assert len(late) == 50
    assert max(late) < ENDED
    assert postgres.at_work("pg_sleep") == 0


def test_outside_of_scopes_all_is_as_before(postgres: Any) -> None:
    with connected(postgres) as connection:
        assert one(connection) == 1
        shown = connection.execute("SHOW statement_timeout").fetchone()
        assert shown == ("0",)
        with connection.transaction() as transaction:
            assert one(connection) == 1
        assert transaction.status is transaction.Status.COMMITTED
        threading.Timer(0.05, connection.cancel).start()
        with pytest.raises(errors.QueryCanceled) as caught:
            execute(connection)
        assert not isinstance(caught.value, TimeoutError)
