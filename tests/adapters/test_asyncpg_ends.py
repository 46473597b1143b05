"""asyncpg: what becomes of statements, transactions and commits that are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

import holdfast
from holdfast.adapters.asyncpg import HeldConnection, connect
from holdfast.adapters.asyncpg.cancelling import left_alone, request_cancel
from holdfast.domain.errors import OutcomeUnknown
from holdfast.testing.proxy import FaultProxy
from tests.adapters.test_asyncpg import BOTH, ENDED, none_at_work, until, within
from tests.peers.postgres import Postgres


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def behind_proxy(
    server: Postgres, **options: Any
) -> AsyncGenerator[tuple[HeldConnection, FaultProxy]]:
    async with FaultProxy(server.host, server.port) as proxy:
        connection = await connect(server.dsn(port=proxy.port), **options)
        try:
            yield connection, proxy
        finally:
            proxy.heal()
            await connection.close()


async def at_work(server: Postgres, part: str) -> None:
    await until(lambda: server.at_work(part) > 0, f"{part} has not begun")


# -- cancelled -------------------------------------------------------------------------------------


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("way", ["fetch", "execute", "cursor", "copy", "many"])
async def test_a_cancellation_ends_the_statement_at_the_server(
    postgres: Postgres, how: str, way: str
) -> None:
    connection = await connect(postgres.dsn())
    slow = "SELECT pg_sleep(71)"

    async def sink(_: bytes) -> None:
        raise AssertionError

    async def work() -> None:
        if way == "fetch":
            await connection.fetch(slow)
        elif way == "execute":
            await connection.execute(slow)
        elif way == "cursor":
            async with connection.transaction():
                async for _ in connection.cursor(slow):
                    raise AssertionError
        elif way == "copy":
            await connection.copy_from_query(slow, output=sink)
        else:
            await connection.executemany("SELECT pg_sleep(70 + $1::int)", [(1,)])

    async def scoped() -> None:
        async with holdfast.scope("work") as scope:
            scopes.append(scope)
            await work()

    scopes: list[Any] = []
    task = asyncio.create_task(scoped())
    await at_work(postgres, "pg_sleep(7")
    if how == "scope":
        scopes[0].cancel()
    else:
        task.cancel()
    at = now()
    with pytest.raises(holdfast.Cancelled if how == "scope" else asyncio.CancelledError):
        await task
    assert now() - at < ENDED
    await none_at_work(postgres, "pg_sleep(7")
    assert await connection.fetchval("SELECT 7") == 7
    assert not connection.is_in_transaction()
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_a_statement_that_is_cut_gives_its_locks_back(postgres: Postgres) -> None:
    one, two = await connect(postgres.dsn()), await connect(postgres.dsn())
    await one.execute("CREATE TABLE locked AS SELECT 1 AS id")
    try:
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(0.2), one.transaction():
                await one.execute("UPDATE locked SET id = 2")
                await one.fetch("SELECT pg_sleep(72)")
        async with holdfast.timeout(ENDED), two.transaction():
            await two.execute("UPDATE locked SET id = id + 10")
        assert await one.fetchval("SELECT id FROM locked") == 11
    finally:
        await one.execute("DROP TABLE locked")
        await one.close()
        await two.close()


@pytest.mark.real_time(*BOTH)
async def test_a_cancel_request_that_is_lost_is_sent_again(postgres: Postgres) -> None:
    """The first comes before the statement does: the proxy holds that back."""
    async with behind_proxy(postgres, grace=ENDED) as (connection, proxy):
        raw: Any = connection
        raw._addr = (postgres.host, postgres.port)  # the request takes the short way
        await connection.fetchval("SELECT 1 AS one FROM pg_sleep(0)")
        proxy.to_server.delay(0.3)
        task = asyncio.create_task(connection.fetch("SELECT pg_sleep(73)"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at = now()
        assert await connection.fetchval("SELECT 2") == 2
        assert now() - at < ENDED
    await none_at_work(postgres, "pg_sleep(73)")


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 20])
async def test_a_cancel_request_that_is_sent_is_waited_for(steps: int) -> None:
    """Whoever has asked may go; who is asked is not left before the answer."""
    ends: list[str] = []

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ends.append("sent" if await reader.read(16) else "nothing")
            await asyncio.sleep(0.05)
            ends.append("left" if reader.at_eof() else "waited for")
        except ConnectionError:
            ends.append("left")
        finally:
            writer.close()

    server = await asyncio.start_server(asked, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    request = request_cancel(asyncio.get_running_loop(), address, 1, 2)
    task = asyncio.ensure_future(left_alone(request))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(ENDED):
        while len(ends) < 2:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    assert ends == ["sent", "waited for"]
    await asyncio.sleep(0.05)
    server.close()
    await server.wait_closed()


@pytest.mark.real_time
async def test_a_cancel_request_that_nobody_takes_is_an_error_for_who_waits() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(OSError, match="onnect"):
        await left_alone(request_cancel(loop, ("127.0.0.1", 9), 1, 2))


# -- a server that is frozen or gone ---------------------------------------------------------------


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("native", [False, True])
async def test_a_frozen_server_frees_the_caller(postgres: Postgres, native: bool) -> None:
    """With a transaction to roll back, and with a connection to close."""
    async with behind_proxy(postgres, grace=0.3) as (connection, proxy):

        async def work() -> None:
            async with holdfast.timeout(3600.0 if native else 0.3), connection.transaction():
                await connection.fetchval("SELECT 1")
                proxy.to_client.stall()
                proxy.to_server.stall()
                if native:
                    asyncio.get_running_loop().call_later(0.1, task.cancel)
                await connection.fetchval("SELECT 2")

        at = now()
        task = asyncio.create_task(work())
        with pytest.raises(asyncio.CancelledError if native else holdfast.DeadlineExceeded):
            await task
        assert now() - at < ENDED
        assert connection.is_closed(), "nobody knows what it would say next"
        await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_closing_a_connection_to_a_frozen_server_is_bounded(postgres: Postgres) -> None:
    async with behind_proxy(postgres, grace=0.2) as (connection, proxy):
        proxy.to_client.stall()
        proxy.to_server.stall()
        at = now()
        task = asyncio.create_task(connection.fetch("SELECT 1"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.close()
        assert now() - at < ENDED
        assert connection.is_closed()


@pytest.mark.real_time(*BOTH)
async def test_a_connect_to_a_frozen_server_is_bounded(postgres: Postgres) -> None:
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        at = now()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await connect(postgres.dsn(port=proxy.port))
        with pytest.raises(asyncpg.QueryCanceledError, match="let us in"):
            await within(0.2, lambda: connect(postgres.dsn(port=proxy.port)))
        assert now() - at < ENDED


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("block", [False, True])
async def test_a_backend_that_is_killed(postgres: Postgres, block: bool) -> None:
    """The error says that the connection has gone, not that it cannot roll back."""
    connection = await connect(postgres.dsn())
    pid = await connection.fetchval("SELECT pg_backend_pid()")

    async def work() -> None:
        if block:
            async with connection.transaction():
                await connection.fetch("SELECT pg_sleep(74)")
        else:
            await connection.fetch("SELECT pg_sleep(74)")

    async with holdfast.timeout(30.0):
        task = asyncio.create_task(work())
        await at_work(postgres, "pg_sleep(74)")
        postgres.ask("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.AdminShutdownError)):
            await task
    assert connection.is_closed()
    await connection.close()


# -- commits ---------------------------------------------------------------------------------------


@pytest.fixture
def committed(postgres: Postgres) -> Callable[[], int]:
    postgres.ask("DROP TABLE IF EXISTS kept")
    postgres.ask("CREATE TABLE kept (id int)")
    return lambda: len(postgres.ask("SELECT * FROM kept"))


@pytest.mark.real_time(*BOTH)
async def test_a_commit_that_is_answered_is_done(
    postgres: Postgres, committed: Callable[[], int]
) -> None:
    """The deadline passes while it is under way; the cancellation comes right after it."""
    after: list[str] = []
    async with behind_proxy(postgres) as (connection, proxy):
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(0.4):
                async with connection.transaction():
                    await connection.execute("INSERT INTO kept VALUES (1)")
                    proxy.to_client.delay(0.6)
                after.append("committed")
                await asyncio.sleep(ENDED)
                after.append("not cancelled")
        proxy.heal()
        assert after == ["committed"]
        assert committed() == 1
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.real_time(*BOTH)
@pytest.mark.parametrize("how", ["deadline", "native", "killed", "by hand"])
async def test_a_commit_without_an_answer_has_an_unknown_outcome(
    postgres: Postgres, committed: Callable[[], int], how: str
) -> None:
    async with behind_proxy(postgres, commit_grace=0.3) as (connection, proxy):

        async def work() -> None:
            async with holdfast.timeout(0.4 if how in ("deadline", "by hand") else 60.0):
                try:
                    await commits()
                finally:
                    await asyncio.sleep(0.01)  # clean-up, where a cancellation could come late

        async def commits() -> None:
            if how == "by hand":
                await connection.execute("BEGIN")
                await connection.execute("INSERT INTO kept VALUES (1)")
                proxy.to_client.stall()
                await connection.execute("COMMIT")
            async with connection.transaction():
                await connection.execute("INSERT INTO kept VALUES (1)")
                proxy.to_client.stall()
                if how == "native":
                    asyncio.get_running_loop().call_later(0.2, task.cancel)
                elif how == "killed":
                    asyncio.get_running_loop().call_later(0.2, proxy.reset)

        task = asyncio.create_task(work())
        at = now()
        with pytest.raises(OutcomeUnknown) as caught:
            await task
        assert now() - at < ENDED
        assert "may have been done" in str(caught.value)
        assert isinstance(caught.value, asyncpg.TransactionResolutionUnknownError)
        assert connection.is_closed()
    assert committed() == 1, "it was, and nobody tried again"


@pytest.mark.real_time
async def test_a_commit_that_the_server_refuses_is_no_unknown_one(
    postgres: Postgres, committed: Callable[[], int]
) -> None:
    connection = await connect(postgres.dsn())
    await connection.execute(
        "ALTER TABLE kept ADD CONSTRAINT one UNIQUE (id) DEFERRABLE INITIALLY DEFERRED"
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        async with holdfast.timeout(10.0), connection.transaction():
            await connection.execute("INSERT INTO kept VALUES (1), (1)")
    assert committed() == 0
    await connection.close()


@pytest.mark.real_time
async def test_a_commit_does_not_begin_after_the_deadline(
    postgres: Postgres, committed: Callable[[], int]
) -> None:
    connection = await connect(postgres.dsn())
    with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
        async with holdfast.timeout(0.2), connection.transaction():
            await connection.execute("INSERT INTO kept VALUES (1)")
            with suppress(asyncio.CancelledError):  # as somebody does who must not
                await asyncio.sleep(ENDED)
    assert committed() == 0
    assert not connection.is_in_transaction()
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.real_time(*BOTH)
async def test_a_savepoint_that_is_cut_leaves_the_transaction_usable(
    postgres: Postgres, committed: Callable[[], int]
) -> None:
    connection = await connect(postgres.dsn())
    async with holdfast.timeout(30.0), connection.transaction():
        await connection.execute("INSERT INTO kept VALUES (1)")
        with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012
            async with holdfast.timeout(0.2), connection.transaction():
                await connection.execute("INSERT INTO kept VALUES (2)")
                await connection.fetch("SELECT pg_sleep(75)")
        await connection.execute("INSERT INTO kept VALUES (3)")
    assert committed() == 2
    await connection.close()
