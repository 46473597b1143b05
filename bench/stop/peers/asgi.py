"""The service as an ASGI application."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bench.stop.peers.notes import note

__all__ = ["app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TEXT = b"hello, world"


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _websocket(receive, send)
    else:
        await _http(scope["path"], receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            note("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return


async def _http(path: str, receive: Receive, send: Send) -> None:
    _, what, *rest = path.split("/")
    seconds = float(rest[0]) / 1000 if rest else 0.0
    if what == "body":
        await _answer(send, str(await _length(receive)).encode())
    elif what in ("head", "hang"):
        await _in_two(send, seconds if what == "head" else None)
    elif what == "never":
        await _for_ever()
    elif what == "pid":
        await _answer(send, str(os.getpid()).encode())
    else:
        if seconds:
            await asyncio.sleep(seconds)
        await _answer(send, TEXT)


async def _for_ever() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note("cancelled")
        raise


async def _length(receive: Receive) -> int:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    return size


async def _answer(send: Send, body: bytes) -> None:
    await _head(send, len(body))
    await send({"type": "http.response.body", "body": body})


async def _in_two(send: Send, seconds: float | None) -> None:
    await _head(send, len(TEXT))
    # A byte of the body, because some servers keep the head back until there is one.
    await send({"type": "http.response.body", "body": TEXT[:1], "more_body": True})
    if seconds is None:
        await _for_ever()
    else:
        await asyncio.sleep(seconds)
    await send({"type": "http.response.body", "body": TEXT[1:]})


async def _head(send: Send, length: int) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            note(f"disconnect {message.get('code')}")
            return
        await send({"type": "websocket.send", "text": message.get("text") or ""})
