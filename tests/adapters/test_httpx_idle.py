"""Idle connections of HTTP clients in a stop of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import httpx2
import pytest

from holdfast.adapters.httpx import instrument, pool_of
from holdfast.runtime.lifecycle import Host

pytestmark = [pytest.mark.real_time("asyncio")]
libraries = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


class Server:
    """Answers, and counts what is connected."""

    def __init__(self) -> None:
        self.url = ""
        self.connected = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"/slow" in head:
                    await asyncio.sleep(0.3)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            pass  # the client has closed it
        finally:
            self.connected -= 1
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    made = Server()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield made
    finally:
        server.close()
        await asyncio.sleep(0.05)


@libraries
@pytest.mark.parametrize("instrumented", [True, False])
async def test_idle_ones_are_closed_and_those_in_use_are_not(
    library: Any, instrumented: bool
) -> None:
    async with serving() as server, library.AsyncClient(base_url=server.url) as client:
        if instrumented:
            instrument(client)
        both = [client.get("/slow"), client.get("/slow")]
        await asyncio.gather(*both)
        assert server.connected == 2
        under_way = asyncio.create_task(client.get("/slow"))
        await asyncio.sleep(0.1)
        assert await pool_of(client).preclean(0.1) == 1
        await asyncio.sleep(0.05)
        assert server.connected == 1
        assert (await under_way).text == "ok"
        await asyncio.sleep(0.2)  # longer than it may be idle now
        assert (await client.get("/")).text == "ok"
        await asyncio.sleep(0.05)
        assert server.connected == 1
        assert await pool_of(client).preclean(0.1) == 1


@libraries
async def test_a_host_cleans_its_pools_when_the_stop_begins(library: Any) -> None:
    async with serving() as server, library.AsyncClient(base_url=server.url) as client:
        await client.get("/")
        host = Host("test")
        host.pool("peer", pool_of(client))
        await host.start()
        assert server.connected == 1
        host.stop()
        await host.ended()
        await asyncio.sleep(0.05)
        assert server.connected == 0
        (record,) = [record for record in host.journal.records if record.kind == "pool.cleaned"]
        assert record.subject == "peer"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Nobody wants to read it."""


@libraries
async def test_synchronous_clients_as_well(library: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with library.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            assert (await asyncio.to_thread(client.get, "/")).text == "ok"
            assert await pool_of(client).preclean(0.1) == 1
            assert await pool_of(client).preclean(0.1) == 0
            assert (await asyncio.to_thread(client.get, "/")).text == "ok"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(TypeError, match="is not a client of httpx or httpx2"):
        pool_of(object())
