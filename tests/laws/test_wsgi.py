"""WSGI under the carrier laws: httpx before, the middleware behind, a thread for each connection.

Nothing in a thread can be cancelled, and WSGI does not tell of a client that has left. So the laws
of reach hold for deadlines, with which every wait ends, and not for a cancellation that comes
before them.
"""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import httpx
import pytest

import holdfast
from holdfast.adapters.httpx import AsyncHoldfastTransport
from holdfast.adapters.wsgi import HoldfastMiddleware
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import Call, Handler
from tests.laws.kinds import NotCancelled
from tests.laws.test_http import CAP, LEAST


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None: ...


def application(handler: Handler, loop: asyncio.AbstractEventLoop) -> HoldfastMiddleware:
    """Has the handler run on the loop of the test, as frameworks run coroutines of a view."""

    async def bounded(key: str, takes: float) -> str:
        async with holdfast.scope("view"):
            return await handler(key, takes)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        takes = float(environ["QUERY_STRING"].partition("=")[2])
        # The context of this thread goes with it.
        view = asyncio.run_coroutine_threadsafe(bounded(environ["PATH_INFO"][1:], takes), loop)
        answer = view.result()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [answer.encode()]

    middleware = HoldfastMiddleware(app)
    policy = middleware.policy
    middleware.policy = replace(policy, wire=replace(policy.wire, trust_stage=True))
    return middleware


class InThreads:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        with Server(("127.0.0.1", 0), Quiet) as server:
            server.set_app(application(handler, asyncio.get_running_loop()))
            thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
            thread.start()
            base = f"http://127.0.0.1:{server.server_port}"
            limits = httpx.Limits(max_connections=100)
            transport = AsyncHoldfastTransport(
                httpx.AsyncHTTPTransport(limits=limits), refuse_below=LEAST
            )

            async def call(key: str, takes: float) -> str:
                response = await client.get(f"{base}/{key}", params={"takes": takes})
                response.raise_for_status()
                text: str = response.text
                return text

            try:
                async with httpx.AsyncClient(transport=transport, timeout=None) as client:
                    yield call
            finally:
                await asyncio.to_thread(server.shutdown)
                thread.join()


@pytest.mark.real_time
class TestWsgi(NotCancelled):
    carrier = InThreads
    unit = 0.8
    slack = 0.25
    least = LEAST
    cap = CAP

    async def test_the_carrier_is_usable_after_many_cancellations(self) -> None:
        """As everywhere, but for the far side: it goes on until its work or its limit is over."""
        async with self.crossing() as (peer, call):
            loop = asyncio.get_running_loop()
            async with tasks() as group:
                for n in range(60):
                    task = group.start(call(f"x{n}", self.unit / 2))
                    loop.call_later(n * 0.618 % 1 * self.unit / 2, task.cancel)
                    if n % 10 == 9:
                        await asyncio.sleep(self.unit / 4)
            for n in range(20):
                async with holdfast.timeout(self.unit):
                    assert await call(f"k{n}", 0.0) == f"k{n}"
            end = loop.time() + CAP + 1
            while peer.open_visits():
                assert loop.time() < end
                await asyncio.sleep(self.slack / 5)
