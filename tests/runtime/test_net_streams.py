"""Streams in the form of asyncio's: what programs written for those rely on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import holdfast
from holdfast.domain.errors import LimitExceeded, StreamTimeout, UsageError
from holdfast.domain.instant import NEVER
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.streams import Reader, Writer, open_connection, start_server
from tests.runtime.dialling import contexts
from tests.runtime.peering import ENDED

pytestmark = pytest.mark.real_time("asyncio", "uvloop")

LARGE = 8 * 2**20

Serve = Callable[[Reader, Writer], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve, limit: int = 65_536, **options: Any) -> AsyncIterator[Any]:
    """A reader and a writer, connected to a server; it has ended when this has."""
    ended = asyncio.get_running_loop().create_future()

    async def noted(reader: Reader, writer: Writer) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            ended.set_result(None)

    server = await start_server(noted, "127.0.0.1", 0, **options)
    try:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await open_connection("127.0.0.1", port, limit=limit)
        yield reader, writer
        reader.stream.abort()
        await writer.wait_closed()
        await asyncio.wait_for(ended, ENDED)
        await asyncio.sleep(0.02)
    finally:
        server.close()
        await server.wait_closed()


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def sink(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def test_what_is_written_goes_without_a_drain() -> None:
    async with served(echo) as (reader, writer):
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), ENDED) == b"hello\n"
        writer.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        assert await asyncio.wait_for(reader.readexactly(3), ENDED) == b"abc"


async def test_a_close_delivers_what_was_written() -> None:
    got = asyncio.get_running_loop().create_future()

    async def whole(reader: Reader, writer: Writer) -> None:
        got.set_result(await reader.read())

    async with served(whole) as (_, writer):
        writer.write(bytes(LARGE))
        writer.close()
        assert writer.is_closing()
        writer.write(b"ignored, as asyncio does")
        await asyncio.wait_for(writer.wait_closed(), ENDED)
        assert len(await asyncio.wait_for(got, ENDED)) == LARGE
        with pytest.raises(ConnectionAbortedError):
            await writer.drain()


async def test_a_half_close_comes_after_what_was_written() -> None:
    async def count(reader: Reader, writer: Writer) -> None:
        writer.write(b"%d" % len(await reader.read()))

    async with served(count) as (reader, writer):
        writer.write(bytes(LARGE))
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), ENDED) == b"%d" % LARGE
        assert reader.at_eof()
        with pytest.raises(UsageError, match="write_eof"):
            writer.write(b"x")


async def test_several_tasks_may_drain_and_one_that_is_given_up_loses_nothing() -> None:
    go, got = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def late(reader: Reader, writer: Writer) -> None:
        await go.wait()
        got.set_result(await reader.read())

    async with served(late) as (_, writer):
        body = bytes(range(256)) * (LARGE // 128)
        writer.write(body)
        drains = [asyncio.ensure_future(writer.drain()) for _ in range(3)]
        writer.set_deadline(monotonic() + 0.02)
        for drain in drains:
            with pytest.raises(StreamTimeout):
                await drain
        writer.set_deadline(NEVER)
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.02):
                await writer.drain()
        go.set()
        await asyncio.wait_for(asyncio.gather(*[writer.drain() for _ in range(3)]), ENDED)
        await asyncio.wait_for(writer.wait_closed(), ENDED)
        assert await asyncio.wait_for(got, ENDED) == body


async def test_a_read_to_the_end_that_is_given_up_loses_nothing() -> None:
    async with served(echo) as (reader, writer):
        writer.write(b"first ")
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.05):
                await reader.read()
        writer.write(b"second")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), ENDED) == b"first second"


async def test_after_a_line_that_is_too_long_the_next_one_is_read() -> None:
    async with served(echo, limit=10) as (reader, writer):
        writer.write(b"x" * 25 + b"\nshort\n")
        lines: list[bytes] = []
        errors = 0
        while b"short\n" not in lines:
            try:
                lines.append(await asyncio.wait_for(reader.readline(), ENDED))
            except LimitExceeded:
                errors += 1
        assert errors == 2
        assert issubclass(LimitExceeded, ValueError)  # as asyncio has it
        assert lines == [b"xxxxx\n", b"short\n"]


async def test_a_server_goes_over_to_tls_in_the_midst() -> None:
    async def starttls(reader: Reader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(contexts()[0])
        writer.write((await reader.readline()).upper())
        await reader.read()

    async with served(starttls) as (reader, writer):
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(contexts()[1], server_hostname="orders.test")
        writer.write(b"secret\n")
        assert await asyncio.wait_for(reader.readline(), ENDED) == b"SECRET\n"
        assert not writer.can_write_eof()
        with pytest.raises(UsageError, match="one direction"):
            writer.write_eof()


async def test_a_server_takes_the_options_of_the_loop_and_whoever_speaks_no_tls_is_let_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = await start_server(sink, sock=listener.dup(), ssl=contexts()[0], backlog=7)
        with socket.create_connection(listener.getsockname()) as stranger:
            stranger.setblocking(False)
            await loop.sock_sendall(stranger, b"GET / HTTP/1.1\r\n\r\n")
            while await asyncio.wait_for(loop.sock_recv(stranger, 100), ENDED):
                pass  # an alert of TLS, and then the end
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_server_of_tls_hears_whoever_speaks_at_once() -> None:
    async def upper(reader: Reader, writer: Writer) -> None:
        async for line in reader:
            writer.write(line.upper())

    server = await start_server(upper, "127.0.0.1", 0, ssl=contexts()[0])
    port = server.sockets[0].getsockname()[1]

    async def ask(number: int) -> None:
        async with asyncio.timeout(4 * ENDED):
            reader, writer = await open_connection(
                "127.0.0.1", port, ssl=contexts()[1], server_hostname="orders.test"
            )
            writer.write(b"line %d\n" % number)
            assert await reader.readline() == b"LINE %d\n" % number
            await writer.wait_closed()

    await asyncio.gather(*[ask(number) for number in range(20)])
    await asyncio.sleep(0.05)
    server.close()
    await server.wait_closed()
