"""One application in many clothes, behind one middleware, on any server, as a process of its own.

`python asgi_apps.py uvicorn|h11|hypercorn|granian` prints its port. The first segment of a path
chooses the clothes: plain, star, star1, star3, fast, fast1, fast3; the digit is the number of
`BaseHTTPMiddleware` around it. What happens to a request is journalled under its `x-key` header,
and `/journal/<key>` tells.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections import defaultdict
from typing import Any

import anyio
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

import holdfast
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.policy import Limits, Policy
from holdfast.domain.policy import Route as Limit

journal: dict[str, list[str]] = defaultdict(list)


def key_of(scope: Any) -> str:
    for name, value in scope["headers"]:
        if name == b"x-key":
            return str(value.decode())
    return ""


def note(key: str, what: str) -> None:
    journal[key].append(what)


async def sleep_long(key: str, seconds: float = 30) -> None:
    note(key, "began")
    try:
        await asyncio.sleep(seconds)
        note(key, "slept")
    except asyncio.CancelledError:
        note(key, "cancelled")
        raise
    finally:
        note(key, "ended")


def digest(body: bytes) -> dict[str, Any]:
    return {"length": len(body), "sha": hashlib.sha256(body).hexdigest()}


def who() -> list[str]:
    here = holdfast.current()
    return [here.identity.request_id, here.identity.echo_id, here.stage]


def block(key: str, seconds: float) -> list[str]:
    note(key, "thread began")
    time.sleep(seconds)
    note(key, "thread ended")
    return who()


# -- plain --------------------------------------------------------------------------------------


async def plain(scope: Any, receive: Any, send: Any) -> None:
    key, what = key_of(scope), scope["path"].rpartition("/")[2]

    async def reply(answer: Any, *more: tuple[bytes, bytes]) -> None:
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *more]})
        await send({"type": "http.response.body", "body": body})

    async def read() -> bytes:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                note(key, "disconnect read")
                raise ClientDisconnect
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return body

    if what == "sleep":
        await sleep_long(key)
        await reply("slept")
    elif what == "late":
        await asyncio.sleep(0.15)
        await reply(digest(await read()))
    elif what == "slow":  # reads with pauses
        body = b""
        while True:
            await asyncio.sleep(0.03)
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await reply(digest(body))
    elif what == "told":
        note(key, "began")
        while (await receive())["type"] != "http.disconnect":
            pass
        note(key, "told")
        await asyncio.sleep(0.1)
        note(key, "grace used")
    elif what in ("drip", "chunks"):
        headers = [(b"content-length", b"100")] if what == "drip" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
        try:
            await sleep_long(key)
        except asyncio.CancelledError:
            # What some libraries do in their clean-up: it would make a part look like the whole.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
    elif what == "background":
        await reply("ok")
        note(key, "replied")
        await asyncio.sleep(0.5)
        note(key, "background done")
    elif what == "thread":
        answer = await run_in_threadpool(block, key, 0.4)
        await reply(answer)
    elif what == "who":
        await reply({"handler": who(), "thread": await asyncio.to_thread(who)})
    elif what == "sse":
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(5):
            await send(
                {"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True}
            )
            await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b""})
    elif what == "quick":
        await reply("quick")
    else:
        await reply(f"nothing called {what}")


# -- Starlette and FastAPI ----------------------------------------------------------------------


async def star_sleep(request: Request) -> Any:
    await sleep_long(key_of(request.scope))
    return PlainTextResponse("slept")


async def star_late(request: Request) -> Any:
    await asyncio.sleep(0.15)
    return JSONResponse(digest(await request.body()))


async def star_slow(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        await asyncio.sleep(0.03)
        body += part
    return JSONResponse(digest(body))


async def star_told(request: Request) -> Any:
    key = key_of(request.scope)
    note(key, "began")
    try:
        async for _ in request.stream():
            pass
    except ClientDisconnect:
        note(key, "told")
        await asyncio.sleep(0.1)
        note(key, "grace used")
    return PlainTextResponse("")


async def star_asks(request: Request) -> Any:
    key = key_of(request.scope)
    note(key, "began")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            # Servers differ in whether the body that was not read comes first.
            told = [await request.is_disconnected() for _ in range(3)]
            note(key, f"disconnected: {any(told)}")
        raise
    return PlainTextResponse("")


async def star_chunks(request: Request) -> Any:
    key = key_of(request.scope)

    async def parts() -> Any:
        yield b"x" * 10
        await sleep_long(key)

    return StreamingResponse(
        parts(), headers={"content-length": "100"} if "drip" in str(request.url) else {}
    )


async def star_background(request: Request) -> Any:
    key = key_of(request.scope)

    async def later() -> None:
        await asyncio.sleep(0.5)
        note(key, f"background done {who()[1]}")

    note(key, "replied")
    return JSONResponse("ok", background=BackgroundTask(later))


async def star_file(request: Request) -> Any:
    key = key_of(request.scope)

    async def later() -> None:
        await asyncio.sleep(0.5)
        note(key, "background done")

    return FileResponse(__file__, background=BackgroundTask(later))


def star_thread(request: Request) -> Any:
    return JSONResponse(block(key_of(request.scope), 0.4))


async def star_who(request: Request) -> Any:
    return JSONResponse({"handler": who(), "thread": await run_in_threadpool(who)})


def star_who_sync(request: Request) -> Any:
    return JSONResponse({"handler": who(), "thread": who()})


async def star_sse(request: Request) -> Any:
    async def events() -> Any:
        for number in range(5):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


async def star_boom(request: Request) -> Any:
    raise RuntimeError("boom")


async def star_inner(request: Request) -> Any:
    async with holdfast.timeout(0.02, name="inner"):
        await asyncio.sleep(30)


async def star_group(request: Request) -> Any:
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(star_inner(request))


async def star_quick(request: Request) -> Any:
    return JSONResponse("quick")


POOL = {
    name.removeprefix("star_").replace("_", "-"): function
    for name, function in list(globals().items())
    if name.startswith("star_")
}
POOL["drip"] = star_chunks


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def starlette(layers: int) -> Any:
    return Starlette(
        routes=[
            Route(f"/star{layers or ''}/{what}", call, methods=["GET", "POST", "HEAD"])
            for what, call in POOL.items()
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on) for _ in range(layers)],
    )


async def resource(request: Request) -> Any:
    key = key_of(request.scope)
    note(key, "set up")
    try:
        yield "resource"
    finally:
        note(key, "torn down")


def thread_resource(request: Request) -> Any:
    key = key_of(request.scope)
    note(key, "set up in thread")
    try:
        yield "resource"
    finally:
        note(key, "torn down in thread")


def fastapi(layers: int) -> Any:
    app = FastAPI(
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on) for _ in range(layers)]
    )
    for what, call in POOL.items():
        # FastAPI reads the annotations of a handler, and here they are texts.
        app.add_api_route(
            f"/fast{layers or ''}/{what}",
            call,
            methods=["GET", "POST", "HEAD"],
            response_model=None,
        )

    async def depends(
        request: Request, one: str = Depends(resource), two: str = Depends(thread_resource)
    ) -> Any:
        await sleep_long(key_of(request.scope))

    app.add_api_route(f"/fast{layers or ''}/depends", depends, response_model=None)

    if not layers:

        async def page(request: Request, exc: Exception) -> Any:
            return JSONResponse({"sorry": repr(exc)}, status_code=500)

        app.add_exception_handler(TimeoutError, page)
    return app


CLOTHES = {"plain": plain}
for _layers in (0, 1, 3):
    CLOTHES[f"star{_layers or ''}"] = starlette(_layers)
    CLOTHES[f"fast{_layers or ''}"] = fastapi(_layers)


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    key, what = key_of(scope), scope["path"].rpartition("/")[2]
    await receive()
    await send({"type": "websocket.accept"})
    if what == "work":
        await sleep_long(key)
        return
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await asyncio.sleep(0.1)
            note(key, f"saw {message.get('code')}")
            return
        if message.get("text") == "who":
            await send({"type": "websocket.send", "text": json.dumps(who())})
        else:
            await send({"type": "websocket.send", "text": f"echo {message.get('text')}"})


async def front(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        return await websocket(scope, receive, send)
    await CLOTHES[scope["path"].split("/")[1]](scope, receive, send)


POLICY = Policy(
    service="shop",
    defaults=Limits(request=5.0),
    routes=(
        Limit("/plain/quarter", {"request": 0.25}),
        Limit("/plain/stream*", {"idle": 0.3}, stream=True),
        Limit("/ws/idle", {"idle": 0.3}),
        Limit("/fast3/sse", {"idle": 1.0, "request": 0.25}),
        Limit("/plain/sse", {"idle": 1.0, "request": 0.25}),
        Limit("/star/sse", {"idle": 1.0, "request": 0.25}),
    ),
)
middleware = HoldfastMiddleware(front, POLICY, debug=True)


async def app(scope: Any, receive: Any, send: Any) -> None:
    path = scope.get("path", "")
    if path.startswith("/journal/"):
        answer = {
            "journal": journal[path.removeprefix("/journal/")],
            "counts": dict(middleware.counts),
            "open": [child.name for root in holdfast.tree().roots for child in root.children],
            "tasks": sum("holdfast" in task.get_name() for task in asyncio.all_tasks()),
        }
        body = json.dumps(answer).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))],
            }
        )
        await send({"type": "http.response.body", "body": body})
        return
    await middleware(scope, receive, send)


def main(server: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    if server in ("uvicorn", "h11"):
        import uvicorn

        sock.listen(2000)
        print(port, flush=True)
        fast = server == "uvicorn"
        config = uvicorn.Config(
            app,
            http="httptools" if fast else "h11",
            loop="uvloop" if fast else "asyncio",
            access_log=False,
            log_level="error",
        )
        uvicorn.Server(config).run([sock])
    elif server == "hypercorn":
        import hypercorn.asyncio
        from hypercorn.config import Config

        sock.listen(2000)
        config = Config()
        config.bind = [f"fd://{sock.fileno()}"]
        print(port, flush=True)
        asyncio.run(hypercorn.asyncio.serve(app, config))  # type: ignore[arg-type]
    else:
        from granian import Granian

        sock.close()
        print(port, flush=True)
        sys.path.insert(0, os.path.dirname(__file__))
        Granian("asgi_apps:app", "127.0.0.1", port, interface="asgi").serve()  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
