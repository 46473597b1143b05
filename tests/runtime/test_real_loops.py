"""A few of the scenarios on the loops that people use, in real time and therefore short."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import anyio
import pytest

import holdfast

loops = pytest.mark.real_time("asyncio", "uvloop")


def counting() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.real_time("asyncio")
async def test_a_test_runs_on_the_loop_that_it_is_called_after() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("asyncio")


@pytest.mark.real_time("uvloop")
async def test_a_test_runs_on_uvloop_when_it_is_called_after_it() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")


@loops
async def test_a_connection_that_has_just_begun_is_cancelled_without_harm() -> None:
    # Cancelled in the turn in which `create_connection` begins; uvloop ended the process there.
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        for _ in range(100):
            sock = socket.create_connection(listener.getsockname())
            sock.setblocking(False)
            scopes: list[holdfast.Scope] = []

            async def work(sock: socket.socket, scopes: list[holdfast.Scope]) -> None:
                async with holdfast.timeout(5) as scope:
                    scopes.append(scope)
                    await asyncio.sleep(0)
                    try:
                        await loop.create_connection(asyncio.Protocol, sock=sock)
                    finally:
                        sock.close()

            task = asyncio.ensure_future(work(sock, scopes))
            await asyncio.sleep(0)
            scopes[0].cancel()
            with pytest.raises(holdfast.Cancelled):
                await task
            listener.accept()[0].close()


@loops
async def test_a_deadline_never_fires_early() -> None:
    for n in range(10):
        budget = 0.003 + n / 1700
        began = time.monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(budget):
                await forever()
        assert time.monotonic() - began >= budget
    assert counting() == 0


@loops
async def test_only_the_inner_converts() -> None:
    async with holdfast.timeout(5) as outer:
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.01):
                await forever()
        assert outer.reached() is None
        await asyncio.sleep(0.001)
    assert counting() == 0


@loops
async def test_the_outer_ends_a_nest_of_strangers() -> None:
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        async with holdfast.timeout(0.02, name="owner"), asyncio.timeout(5):
            with anyio.fail_after(5):
                async with asyncio.TaskGroup() as group, anyio.create_task_group() as other:
                    group.create_task(forever())
                    other.start_soon(forever)
                    async with holdfast.tasks() as own:
                        own.start(forever())
    assert caught.value.cause.scope == "owner"
    assert counting() == 0
    await asyncio.sleep(0.001)


@loops
async def test_a_foreign_cancellation_and_the_deadline_together() -> None:
    for _ in range(20):

        async def body() -> None:
            async with holdfast.timeout(0.002):
                await forever()

        task = asyncio.create_task(body())
        asyncio.get_running_loop().call_later(0.002, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), holdfast.DeadlineExceeded)
        assert task.cancelled() == (task.cancelling() == 1)


@loops
async def test_a_failed_sibling() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.001)
        raise ValueError

    with pytest.raises(ExceptionGroup):
        async with holdfast.tasks() as group:
            children = [group.start(forever()) for _ in range(2000)]
            group.start(fail())
    assert all(child.cancelled() for child in children)
    assert counting() == 0


@loops
async def test_a_shield_finishes() -> None:
    done: list[str] = []
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.01):
            try:
                await forever()
            finally:
                async with holdfast.shield(0.5):
                    await asyncio.sleep(0.01)
                    done.append("done")
    assert done == ["done"]
    assert counting() == 0


@loops
async def test_a_real_socket() -> None:
    gone = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.05):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await reader.read(1)
            finally:
                writer.close()
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.01)


@loops
async def test_a_thousand_deadlines() -> None:
    async def child(n: int) -> None:
        with contextlib.suppress(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.001 + n / 50_000):
                await forever()

    async with holdfast.tasks() as group:
        for n in range(1000):
            group.start(child(n))
    assert len(holdfast.tree()) == 0
