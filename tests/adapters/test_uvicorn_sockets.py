"""WebSockets and HTTP/2 in a drain of our server."""

from __future__ import annotations

import asyncio
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.adapters.draining import Served, client_context, serving

pytestmark = [pytest.mark.real_time("asyncio", "uvloop"), pytest.mark.system]


def url(served: Served) -> str:
    return f"ws://{served.address[0]}:{served.address[1]}/ws"


@pytest.mark.parametrize("code", [1012, 1001])
async def test_websockets_are_told_why_they_end(code: int) -> None:
    async with serving() as served:
        served.server.config.watch.code = code
        async with connect(url(served)) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"
            await served.stop_begins()
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert (socket.close_code, socket.close_reason) == (code, "service restart")
            await served.stopped()
        assert f"disconnect {code}" in served.story.lines
        assert served.done == (0, 0, 0)


async def test_a_websocket_that_does_not_answer_does_not_hold_the_exit() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        writer.write(
            b"GET /ws HTTP/1.1\r\nhost: t\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        await served.stop_begins(20)
        await served.stopped()
        frame = await reader.read()
        assert frame[:4] == b"\x88\x11" + (1012).to_bytes(2, "big")
        assert served.done == (0, 0, 1)
        writer.close()


async def test_a_thousand_websockets() -> None:
    async with serving() as served:
        sockets = [
            await connect(url(served), compression=None, ping_interval=None) for _ in range(1000)
        ]
        await served.stop_begins(20)
        await served.stopped()
        for socket in sockets:
            await socket.wait_closed()
        assert {socket.close_code for socket in sockets} == {1012}
        assert served.story.lines.count("disconnect 1012") == 1000


# -- HTTP/2 ----------------------------------------------------------------------------------------


class Http2Client:
    """As much of a client as these tests need."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.flush()
        self.answers: dict[int, str] = {}
        self.ended: set[int] = set()
        self.goaways: list[int] = []
        self.closed = False

    def flush(self) -> None:
        self.writer.write(self.connection.data_to_send())

    def ask(self, path: str) -> int:
        stream = self.connection.get_next_available_stream_id()
        headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "t")]
        self.connection.send_headers(stream, headers, end_stream=True)
        self.flush()
        return stream

    async def read(self) -> None:
        data = await self.reader.read(65536)
        if not data:
            self.closed = True
            return
        for chunk in goaway_apart(data, self.goaways):
            for event in self.connection.receive_data(chunk):
                self.take(event)
        self.flush()

    def take(self, event: Any) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id] = dict(event.headers)[b":status"].decode()
            case h2.events.DataReceived():
                size = event.flow_controlled_length
                self.connection.acknowledge_received_data(size, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case _:
                pass

    async def until(self, count: int) -> None:
        while len(self.ended) < count:
            assert not self.closed
            await self.read()

    async def until_closed(self) -> None:
        while not self.closed:
            await self.read()


def goaway_apart(data: bytes, goaways: list[int]) -> list[bytes]:
    """The data without GOAWAY frames, which end every use of h2's own machine."""
    kept = []
    while data:
        size = 9 + int.from_bytes(data[:3], "big")
        assert size <= len(data), "a frame came in two parts; read more at once"
        if data[3] == 0x07:
            goaways.append(int.from_bytes(data[9:13], "big"))
        else:
            kept.append(data[:size])
        data = data[size:]
    return kept


async def test_a_hundred_streams_in_flight_finish_behind_two_goaways() -> None:
    async with serving(http2=True) as served:
        client = Http2Client(*await served.connect())
        for _ in range(100):
            client.ask("/wait/0.3")
        await asyncio.sleep(0.1)
        await served.stop_begins()
        await client.until(100)
        assert set(client.answers.values()) == {"200"}
        assert client.goaways == [2**31 - 1]
        await client.until_closed()
        assert client.goaways == [2**31 - 1, 199]
        client.writer.close()


async def test_a_stream_that_was_on_the_wire_is_served() -> None:
    async with serving(http2=True) as served:
        client = Http2Client(*await served.connect())
        client.ask("/x")
        await client.until(1)
        await served.stop_begins()
        await asyncio.sleep(0.2)
        late = client.ask("/x")
        await client.until(2)
        assert client.answers[late] == "200"
        await client.until_closed()
        assert client.goaways == [2**31 - 1, late]
        client.writer.close()


async def test_over_tls_the_client_chooses_and_both_end() -> None:
    async with serving(http2=True, tls=True) as served:
        context = client_context("h2")
        reader, writer = await served.connect(ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        client = Http2Client(reader, writer)
        client.ask("/x")
        await client.until(1)
        plain, other = await served.connect(ssl=client_context("http/1.1"))
        other.write(b"GET /x HTTP/1.1\r\nhost: t\r\n\r\n")
        assert b" 200 " in await plain.readuntil(b"\r\n\r\n")
        await served.stop_begins(20)
        await client.until_closed()
        await served.stopped()
        writer.transport.abort()
        other.transport.abort()
