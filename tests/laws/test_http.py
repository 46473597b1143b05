"""HTTP under the carrier laws: httpx and httpx2 before, the ASGI middleware behind.

Once in memory, where virtual time holds, and once through uvicorn and a real socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import uvicorn

from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.adapters.httpx import AsyncHoldfastTransport
from holdfast.testing.laws import Call, CarrierLaws, Handler

LEAST = 0.02
CAP = 10.0  # what the default policy grants a request


def application(handler: Handler) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        query = dict(part.split("=") for part in scope["query_string"].decode().split("&"))
        answer = await handler(scope["path"][1:], float(query["takes"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer.encode()})

    return app


def trusting(app: Any) -> HoldfastMiddleware:
    """The middleware, believing what its caller says of the stage."""
    middleware = HoldfastMiddleware(app)
    policy = middleware.policy
    middleware.policy = replace(policy, wire=replace(policy.wire, trust_stage=True))
    return middleware


def calling(client: Any) -> Call:
    async def call(key: str, takes: float) -> str:
        response = await client.get(f"http://peer/{key}", params={"takes": takes})
        response.raise_for_status()
        text: str = response.text
        return text

    return call


class InMemory:
    library = "httpx"

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        httpx = import_module(self.library)
        inner = httpx.ASGITransport(trusting(application(handler)))
        transport = AsyncHoldfastTransport(inner, refuse_below=LEAST)
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            yield calling(client)


class InMemory2(InMemory):
    library = "httpx2"


class OverASocket:
    library = "httpx"

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        httpx = import_module(self.library)
        app = trusting(application(handler))
        config = uvicorn.Config(app, log_config=None, lifespan="off", loop="none")
        server = uvicorn.Server(config)
        listening = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server._serve([listening]))
        while not server.started:  # noqa: ASYNC110 - uvicorn tells it no other way
            await asyncio.sleep(0.005)
        transport = AsyncHoldfastTransport(
            httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=100)), refuse_below=LEAST
        )
        port: int = listening.getsockname()[1]
        base = f"http://127.0.0.1:{port}"

        async def call(key: str, takes: float) -> str:
            response = await client.get(f"{base}/{key}", params={"takes": takes})
            response.raise_for_status()
            text: str = response.text
            return text

        try:
            async with httpx.AsyncClient(transport=transport, timeout=None) as client:
                yield call
        finally:
            server.should_exit = True
            await serving
            listening.close()


class OverASocket2(OverASocket):
    library = "httpx2"


class TestInMemory(CarrierLaws):
    carrier = InMemory
    least = LEAST
    cap = CAP


class TestInMemory2(TestInMemory):
    carrier = InMemory2


@pytest.mark.real_time
class TestOverASocket(CarrierLaws):
    carrier = OverASocket
    unit = 0.8
    slack = 0.25
    least = LEAST
    cap = CAP


@pytest.mark.real_time("uvloop")
class TestOverASocket2(TestOverASocket):
    carrier = OverASocket2
