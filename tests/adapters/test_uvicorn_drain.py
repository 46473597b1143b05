"""The drain of our server on real sockets: what a client has sent is answered, and it ends."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.adapters.draining import ASK, QUICK, answer, client_context, serving

pytestmark = [pytest.mark.real_time("asyncio", "uvloop"), pytest.mark.system]
both = pytest.mark.parametrize("protocol", ["httptools", "h11"])


@both
async def test_what_is_in_flight_finishes_and_says_that_its_connection_ends(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"wait/0.3")
        await asyncio.sleep(0.1)
        await served.stop_begins()
        status, head, body = await answer(reader)
        assert (status, body) == (200, b"oo")
        assert head.count("connection: close") == 1
        assert await reader.read() == b""
        await served.stopped()
        assert served.steps == ["announce", "lame_duck_over", "listener_closed", "farewell", "done"]
        assert served.facts["announce"] == {"connections": 1, "in_flight": 1}
        assert served.facts["done"]["finished"] == 1
        writer.close()


@both
async def test_a_late_request_on_a_kept_alive_connection_is_served(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"x")
        _, head, _ = await answer(reader)
        assert "connection: close" not in head
        await served.stop_begins()
        await asyncio.sleep(0.3)  # the lame duck is over, the quiet window is not
        assert "listener_closed" in served.steps
        writer.write(ASK % b"x")
        status, head, _ = await answer(reader)
        assert status == 200
        assert "connection: close" in head
        assert await reader.read() == b""
        writer.close()


@both
async def test_quiet_connections_are_closed_after_the_quiet_window(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        used, writer = await served.connect()
        writer.write(ASK % b"x")
        await answer(used)
        silent, other = await served.connect()  # accepted, and not a byte sent
        await asyncio.sleep(0.05)
        await served.stopped()
        assert await used.read() == b""
        assert await silent.read() == b""
        assert served.done == (0, 2, 0)
        writer.close()
        other.close()


@both
async def test_an_answer_that_began_unannounced_leaves_its_client_one_more(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"late/0.3")
        await reader.readuntil(b"\r\n\r\n")
        await served.stop_begins()
        assert await reader.readexactly(2) == b"oo"
        await asyncio.sleep(0.1)
        writer.write(ASK % b"x")
        status, head, _ = await answer(reader)
        assert status == 200
        assert "connection: close" in head
        writer.close()


@both
async def test_of_pipelined_requests_all_are_answered_and_the_last_says_so(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"wait/0.2" + ASK % b"wait/0.1")
        await asyncio.sleep(0.1)
        await served.stop_begins()
        writer.write(ASK % b"x")  # one more, behind an announcement that is not out yet
        heads = [(await answer(reader))[1] for _ in range(3)]
        assert ["connection: close" in head for head in heads] == [False, False, True]
        assert await reader.read() == b""
        writer.close()


@both
async def test_half_a_head_is_waited_for_and_served(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /x HTTP/1.1\r\nho")
        await asyncio.sleep(0.05)
        await served.stop_begins()
        await asyncio.sleep(0.8)  # longer than the quiet window
        writer.write(b"st: t\r\n\r\n")
        assert (await answer(reader))[0] == 200
        writer.close()


@both
async def test_half_a_body_is_waited_for_and_served(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        reader, writer = await served.connect()
        writer.write(b"POST /body HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n12345")
        await asyncio.sleep(0.05)
        await served.stop_begins()
        await asyncio.sleep(0.8)
        writer.write(b"67890")
        assert (await answer(reader))[0] == 200
        writer.close()


@both
async def test_half_a_head_or_body_does_not_hold_the_exit(protocol: str) -> None:
    async with serving(protocol=protocol) as served:
        head, one = await served.connect()
        one.write(b"GET /x HTTP/1.1\r\nho")
        body, two = await served.connect()
        two.write(b"POST /body HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n12345")
        await asyncio.sleep(0.05)
        await served.stop_begins(1.0)
        await served.stopped()
        assert "deadline" in served.steps
        assert await head.read() == b""
        with suppress(ConnectionResetError):
            await body.read()
        one.close()
        two.close()


async def test_new_connections_are_served_while_the_lame_duck_lasts() -> None:
    async with serving(replace(QUICK, calm=0.4)) as served:
        await served.stop_begins()
        for _ in range(5):
            await asyncio.sleep(0.1)  # each one prolongs it
            reader, writer = await served.connect()
            writer.write(ASK % b"x")
            status, head, _ = await answer(reader)
            assert (status, "connection: close" in head) == (200, True)
            writer.close()
        assert "listener_closed" not in served.steps


@pytest.mark.parametrize("unix", [False, True])
async def test_what_waits_in_the_accept_queue_is_served_and_nobody_gets_in_after(
    unix: bool, tmp_path: Path
) -> None:
    path = str(tmp_path / "s") if unix else ""
    async with serving(path=path) as served:
        await served.stop_begins()
        asked: list[asyncio.Task[int]] = []

        async def client() -> int:
            reader, writer = await served.connect()
            writer.write(ASK % b"x")
            status, _, _ = await answer(reader)
            writer.close()
            return status

        refused = 0
        while "done" not in served.steps:
            asked.append(asyncio.create_task(client()))
            await asyncio.sleep(0.005)
        for found in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(found, BaseException):
                # Refused is fine, the client may try elsewhere; a reset or an end is a loss.
                assert isinstance(found, ConnectionRefusedError), repr(found)
                refused += 1
            else:
                assert found == 200
        assert refused < len(asked)


async def test_a_listener_that_others_share_is_left_to_them() -> None:
    async with serving(shared=True) as served:
        heir = served.server._listeners[0]._sock.dup()
        await served.stopped()
        assert served.facts["listener_closed"] == {"taken": 0}
        reader, writer = await served.connect()  # the kernel still lets clients in
        heir.setblocking(False)
        connection, _ = await asyncio.get_running_loop().sock_accept(heir)
        connection.close()
        assert await reader.read() == b""
        writer.close()
        heir.close()


async def test_work_behind_a_response_is_waited_for() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"after/0.4")
        await answer(reader)
        await served.stop_begins()
        writer.close()
        await served.stopped()
        assert "done behind the response" in served.story.lines


async def test_at_the_deadline_what_is_served_is_cut_and_answered() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"wait/30")
        await asyncio.sleep(0.05)
        await served.stop_begins(0.3)
        await served.stopped()
        assert served.story.lines.count("cancelled") == 1
        assert (await reader.read()).startswith(b"HTTP/1.1 500 ")  # here nobody says why
        writer.close()


async def test_whoever_cannot_wait_cuts_at_once() -> None:
    async with serving() as served:
        _, writer = await served.connect()
        writer.write(ASK % b"wait/30")
        await asyncio.sleep(0.05)
        await served.stop_begins(30)
        served.server.hurry()
        await served.stopped()
        assert served.story.lines.count("cancelled") == 1
        writer.close()


async def test_a_client_that_reads_slowly_gets_all_of_its_answer() -> None:
    async with serving() as served:
        reader, writer = await served.connect(limit=1000)
        writer.write(ASK % b"large/8000000")
        await reader.readuntil(b"\r\n\r\n")
        await served.stop_begins(20)
        await asyncio.sleep(1.0)
        found = 0
        while data := await reader.read(65536):
            found += len(data)
        assert found == 8_000_000
        await served.stopped()
        assert "deadline" not in served.steps
        writer.close()


# -- TLS -------------------------------------------------------------------------------------------


async def test_a_tls_client_that_does_not_read_does_not_hold_the_exit() -> None:
    async with serving(tls=True) as served:
        reader, writer = await served.connect()
        writer.write(ASK % b"x")
        await answer(reader)
        writer.transport.pause_reading()  # so that it never answers the close
        await served.stop_begins(20)
        await served.stopped()
        assert served.done == (0, 1, 1)
        writer.transport.abort()
        await asyncio.sleep(0.05)


async def test_half_a_tls_handshake_is_finished_and_served() -> None:
    async with serving(tls=True) as served:
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        shake = client_context().wrap_bio(there, back, server_hostname="localhost")
        with suppress(ssl.SSLWantReadError):
            shake.do_handshake()
        hello = back.read()
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(hello[:50])
        await asyncio.sleep(0.05)
        await served.stop_begins()
        await asyncio.sleep(0.2)
        writer.write(hello[50:])
        while True:
            try:
                shake.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(back.read())
                there.write(await reader.read(65536))
        shake.write(ASK % b"x")
        writer.write(back.read())
        found = b""
        while b"\r\n\r\n" not in found:
            there.write(await reader.read(65536))
            with suppress(ssl.SSLWantReadError):
                found += shake.read(65536)
        assert found.startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()


async def test_half_a_tls_handshake_does_not_hold_the_exit() -> None:
    async with serving(tls=True) as served:
        _, writer = await asyncio.open_connection(*served.address)
        writer.write(b"\x16\x03\x01")
        await asyncio.sleep(0.05)
        await served.stop_begins(20)
        await served.stopped()
        writer.close()
