"""HTTP/2 of hypercorn and granian: two GOAWAYs, and what is on the wire is served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events
import pytest

from tests.adapters.embedding import Story, run, stopping
from tests.adapters.test_embed_asgi import SERVERS, Served

pytestmark = pytest.mark.system

HIGHEST = 2**31 - 1
_GOAWAY = 7


class Http2:
    """A client by prior knowledge that notes what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.wire = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.last: list[int] = []
        self.statuses: dict[int, str] = {}
        self.ended: set[int] = set()
        self.closed = asyncio.Event()
        self.told = asyncio.Event()
        self.wire.initiate_connection()
        self._flush()
        self.reading = asyncio.create_task(self._read())

    def ask(self, path: str) -> int:
        stream = self.wire.get_next_available_stream_id()
        headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "t")]
        self.wire.send_headers(stream, headers, end_stream=True)
        self._flush()
        return stream

    async def answered(self, streams: Iterable[int]) -> None:
        wanted = set(streams)
        while not wanted <= self.ended:
            assert not self.closed.is_set(), f"closed with {wanted - self.ended} unanswered"
            await asyncio.sleep(0.02)

    def _flush(self) -> None:
        self.writer.write(self.wire.data_to_send())

    async def _read(self) -> None:
        while frame := await self._frame():
            if frame[3] == _GOAWAY:  # `h2` would drop what comes behind the first one
                self.last.append(int.from_bytes(frame[9:13], "big") & HIGHEST)
                self.told.set()
                continue
            for event in self.wire.receive_data(frame):
                if isinstance(event, h2.events.ResponseReceived):
                    found = {_text(k): _text(v) for k, v in event.headers}
                    self.statuses[event.stream_id] = found[":status"]
                elif isinstance(event, h2.events.StreamEnded):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    self.statuses[event.stream_id] = "reset"
                    self.ended.add(event.stream_id)
            self._flush()
        self.closed.set()

    async def _frame(self) -> bytes:
        try:
            head = await self.reader.readexactly(9)
            return head + await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()


@pytest.mark.parametrize("kind", SERVERS)
def test_goaway_comes_in_two_steps_and_streams_are_served(kind: str) -> None:
    async def main() -> None:
        async with Served(kind, Story()) as served:
            idle, busy = Http2(*await served.connect()), Http2(*await served.connect())
            await idle.answered([idle.ask("/")])
            streams = [busy.ask("/wait/2") for _ in range(20)]
            first = busy.ask("/")
            await busy.answered([first])
            stop = asyncio.create_task(stopping(served.server, 10.0))
            while not busy.told.is_set():  # these were sent before the GOAWAY had come
                streams.append(busy.ask("/"))
                await asyncio.sleep(0.005)
            await busy.answered(streams)
            assert set(busy.statuses.values()) == {"200"}
            await stop
            for client in (idle, busy):
                await asyncio.wait_for(client.closed.wait(), 5)
                assert client.last[0] == HIGHEST
                assert client.last[-1] < HIGHEST
                client.writer.close()
            assert busy.last[-1] == streams[-1]

    run(None, main())
