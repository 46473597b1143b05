"""aiohttp.web as two components: what a stop loses, and what it says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from holdfast.adapters.aiohttp.server import AiohttpApplication, AiohttpServer
from holdfast.runtime.gated import GatedDrain
from tests.adapters.embedding import (
    LOOPS,
    TERMS,
    Load,
    bound,
    exchange,
    once_up,
    request,
    run,
    sockets_closed_with,
    stopping,
)

pytestmark = pytest.mark.system


class Served:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[str] = []
        self.released = asyncio.Event()
        self.sock = bound()
        self.port: int = self.sock.getsockname()[1]
        app = web.Application()
        app.router.add_get("/", self._wait)
        app.router.add_get("/wait/{seconds}", self._wait)
        app.router.add_get("/late/{seconds}", self._late)
        app.router.add_post("/body", self._body)
        app.router.add_get("/ws", self._socket)
        app.on_startup.append(self._noting("startup"))
        app.on_shutdown.append(self._noting("shutdown"))
        app.on_cleanup.append(self._noting("cleanup"))
        self.application = AiohttpApplication(app, access_log=None)
        self.drain = GatedDrain(
            self.application.gate, lambda: TERMS, self._tell, listeners=[self.sock]
        )
        self.server = AiohttpServer(self.application, [self.sock], self.drain)

    def _tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        self.steps.append(subject)
        if subject == "listener_closed":
            self.released.set()

    def _noting(self, line: str) -> Any:
        async def note(_: web.Application) -> None:
            self.lines.append(line)

        return note

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.sleep(float(request.match_info.get("seconds", 0)))
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise
        return web.Response(body=b"ok")

    async def _late(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "2"})
        await response.prepare(request)
        await asyncio.sleep(float(request.match_info["seconds"]))
        await response.write(b"ok")
        return response

    async def _body(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        self.lines.append("left")
        return socket

    async def __aenter__(self) -> Served:
        await self.application.start()
        await self.server.start()
        await once_up(self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if "done" not in self.steps:
            self.drain.begin(0.0)
            self.drain.hurry()
            await self.server.stop(0.0)
        await self.application.stop(0.0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", ["/", "/late/0.1"])
def test_nothing_is_lost_on_connections_that_are_kept(path: str, loop: Any) -> None:
    async def main() -> None:
        async with Served() as served:
            load = Load(served.port, path)
            await load.warm()
            await stopping(served.server)
            await load.ended()
            assert (load.lost, load.fresh) == (0, 0)
            assert load.announced >= 20
            with pytest.raises(ConnectionRefusedError):
                await served.connect()
        assert served.lines == ["startup", "shutdown", "cleanup"]

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_websockets_get_1012_and_their_handlers_are_told(loop: Any) -> None:
    async def main() -> None:
        async with Served() as served:
            _opened, codes = await sockets_closed_with(served.port, 20)
            await stopping(served.server)
            assert await asyncio.gather(*codes) == [1012] * 20
            assert served.lines.count("left") == 20

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_that_never_ends_is_cut_once_and_not_twice_as_late(loop: Any) -> None:
    async def main() -> None:
        async with Served() as served:
            reader, writer = await served.connect()
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await stopping(served.server, 2.0)
            assert time.monotonic() - began < 6
            status, head, _ = await exchange(reader)
            assert status == 503
            assert "retry-after: 1" in head
            writer.close()
        assert served.lines == ["startup", "shutdown", "cancelled", "cleanup"]

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_an_upload_that_is_half_received_is_received_whole(loop: Any) -> None:
    async def main() -> None:
        async with Served() as served:
            reader, writer = await served.connect()
            writer.write(request("/body", "content-length: 4", method="POST") + b"ab")
            await asyncio.sleep(0.1)
            stop = asyncio.create_task(stopping(served.server, 10.0))
            await served.released.wait()
            writer.write(b"cd")
            status, head, body = await exchange(reader)
            assert (status, body) == (200, b"4")
            assert "connection: close" in head
            await stop
            writer.close()

    run(loop, main())


def test_an_upload_that_never_ends_holds_nobody_up() -> None:
    async def main() -> None:
        async with Served() as served:
            _, writer = await served.connect()
            writer.write(request("/body", "content-length: 4", method="POST") + b"ab")
            _, silent = await served.connect()
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await stopping(served.server, 2.0)
            assert time.monotonic() - began < 6
            writer.close()
            silent.close()

    run(None, main())


def test_who_cannot_wait_is_done_at_once() -> None:
    async def main() -> None:
        async with Served() as served:
            _, writer = await served.connect()
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.1)
            asyncio.get_running_loop().call_later(0.1, served.server.hurry)
            began = time.monotonic()
            await stopping(served.server, 20.0)
            assert time.monotonic() - began < 6
            assert "cancelled" in served.lines
            writer.close()

    run(None, main())
