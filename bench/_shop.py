"""Three services in a row for the figure `hops`: the edge calls the middle, which calls the leaf.

Each notes when a request was due and when it ended, and tells at `/ended`. On Linux the monotonic
clock is one for all processes, so these instants can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

import httpx2

import holdfast
from holdfast.adapters.httpx import instrument

__all__ = ["edge", "leaf", "mid"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[str], Awaitable[None]]

_ended: dict[str, float] = {}
_due: dict[str, float] = {}
_clients: list[Any] = []


async def _sleep_for_ever(path: str) -> None:
    await asyncio.get_running_loop().create_future()


async def _call_next(path: str) -> None:
    if not _clients:
        _clients.append(instrument(httpx2.AsyncClient()))
    await _clients[0].get(os.environ["BENCH_NEXT"] + path)


def _service(handler: Handler) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["path"] == "/ended":
            await _answer(send, json.dumps({"ended": _ended, "due": _due}).encode())
        elif scope["path"] == "/ready":
            await _answer(send, b"ready")
        else:
            path = scope["path"]
            _due[path] = holdfast.current().deadline
            try:
                await handler(path)
            finally:
                _ended[path] = monotonic()
            await _answer(send, b"done")

    return app


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


edge = _service(_call_next)
mid = _service(_call_next)
leaf = _service(_sleep_for_ever)
