"""A service whose handler calls another through one plain httpx client with a pool of ten.

Run as a process of its own: `python asgi_soak_app.py holdfast|based|naive`. It prints its port.
`based` has a `BaseHTTPMiddleware` between ours and the handler; `naive` is what everybody writes by
hand: a watcher that cancels the handler's task when the client has gone.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections import Counter
from typing import Any

import httpx
import uvicorn

PLACES = 10
client: httpx.AsyncClient
upstream = 0
ended: Counter[str] = Counter()


async def peer(scope: Any, receive: Any, send: Any) -> None:
    query = scope["query_string"]
    await asyncio.sleep(float(query) if query else random.random() * 0.004)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def pool() -> list[str]:
    return [repr(c) for c in client._transport._pool._connections]  # type: ignore[attr-defined]


async def app(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    answer: Any = None
    if path == "/call":
        number = scope["query_string"].decode()
        try:
            for step in range(3):
                reply = await client.get(f"http://127.0.0.1:{upstream}/{number}.{step}")
                assert reply.text == f"/{number}.{step}", "the reply to another request"
        except BaseException as exc:
            ended[type(exc).__name__] += 1
            raise
        ended["done"] += 1
    elif path == "/after":
        # Ten at once, each of them slow enough that none can use the place of another.
        async def one(number: int) -> str:
            url = f"http://127.0.0.1:{upstream}/{number}?0.3"
            return (await client.get(url, timeout=httpx.Timeout(5, pool=3))).text

        replies = await asyncio.gather(*map(one, range(PLACES)), return_exceptions=True)
        tasks = sorted(task.get_name() for task in asyncio.all_tasks())
        answer = {
            "replies": [reply if isinstance(reply, str) else repr(reply) for reply in replies],
            "pool": pool(),
            "ended": dict(ended),
            "counts": dict(getattr(served, "counts", {})),
            "tasks": tasks,
        }
    elif path == "/pool":
        answer = {"pool": pool(), "ended": dict(ended)}
    body = json.dumps(answer).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Naive:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        work = asyncio.ensure_future(self.app(scope, receive, send))

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            work.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await work
        except asyncio.CancelledError:
            pass
        finally:
            watcher.cancel()


def made(which: str) -> Any:
    if which == "naive":
        return Naive(app)
    from holdfast.adapters.asgi import HoldfastMiddleware

    if which == "based":
        from starlette.middleware.base import BaseHTTPMiddleware

        async def on(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        return HoldfastMiddleware(BaseHTTPMiddleware(app, on))
    return HoldfastMiddleware(app)


served: Any = None


async def main(which: str) -> None:
    global client, upstream, served
    sockets = []
    for _ in range(2):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(2000)
        sockets.append(sock)
    upstream = sockets[0].getsockname()[1]
    served = made(which)
    limits = httpx.Limits(max_connections=PLACES)
    quiet = {"log_level": "critical", "lifespan": "off"}
    async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:  # type: ignore
        servers = [
            uvicorn.Server(uvicorn.Config(peer, **quiet)),  # type: ignore[arg-type]
            uvicorn.Server(uvicorn.Config(served, **quiet)),  # type: ignore[arg-type]
        ]
        print(sockets[1].getsockname()[1], flush=True)
        await asyncio.gather(*(s.serve([k]) for s, k in zip(servers, sockets, strict=True)))


if __name__ == "__main__":
    import uvloop

    (asyncio if sys.argv[2:] == ["asyncio"] else uvloop).run(main(sys.argv[1]))
