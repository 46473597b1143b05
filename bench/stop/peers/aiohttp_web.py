"""The service on aiohttp.web: `python -m bench.stop.peers.aiohttp_web PORT [TIMEOUT]`."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from aiohttp import web

from bench.stop.peers.notes import note

__all__ = ["build"]

TEXT = b"hello, world"


async def hello(request: web.Request) -> web.StreamResponse:
    return web.Response(body=TEXT)


async def pid(request: web.Request) -> web.StreamResponse:
    return web.Response(text=str(os.getpid()))


async def wait(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(float(request.match_info["ms"]) / 1000)
    return web.Response(body=TEXT)


async def head(request: web.Request) -> web.StreamResponse:
    response = await _begun(request)
    await asyncio.sleep(float(request.match_info["ms"]) / 1000)
    await response.write(TEXT[1:])
    return response


async def hang(request: web.Request) -> web.StreamResponse:
    await _begun(request)
    return await never(request)


async def never(request: web.Request) -> web.StreamResponse:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return web.Response()


async def body(request: web.Request) -> web.StreamResponse:
    return web.Response(text=str(len(await request.read())))


async def websocket(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    note(f"disconnect {socket.close_code}")
    return socket


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": str(len(TEXT))})
    await response.prepare(request)
    await response.write(TEXT[:1])
    return response


async def _shutdown(app: web.Application) -> None:
    note("shutdown")


def build() -> web.Application:
    app = web.Application()
    app.add_routes(
        [
            web.get("/hello", hello),
            web.get("/pid", pid),
            web.get("/wait/{ms}", wait),
            web.get("/head/{ms}", head),
            web.get("/hang", hang),
            web.get("/never", never),
            web.post("/body", body),
            web.get("/ws", websocket),
        ]
    )
    app.on_cleanup.append(_shutdown)
    return app


def main(port: str, timeout: str = "60") -> None:
    web.run_app(
        build(),
        host="127.0.0.1",
        port=int(port),
        loop=uvloop.new_event_loop(),
        shutdown_timeout=float(timeout),
        access_log=None,
        print=None,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
