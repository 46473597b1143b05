"""Synchronous clients under the carrier laws, as far as they can be: called in threads.

Nothing in a thread can be cancelled. So the laws of reach hold for deadlines, which every wait in
the thread ends with, and not for a cancellation that comes before them.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest
import requests
import urllib3
import uvicorn

from holdfast.adapters.httpx import instrument as instrument_httpx
from holdfast.adapters.requests import instrument as instrument_pools
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget
from holdfast.testing.laws import Call, Handler
from tests.laws.kinds import NotCancelled
from tests.laws.test_http import CAP, LEAST, application, trusting

THREADS = 64


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = trusting(application(handler))
    config = uvicorn.Config(app, log_config=None, lifespan="off", loop="none")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server._serve([listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it no other way
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listening.close()


def of_requests() -> tuple[Callable[[str], str], Callable[[], object]]:
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))
    instrument_pools(session, refuse_below=LEAST)

    def get(url: str) -> str:
        response = session.get(url)
        response.raise_for_status()
        return response.text

    return get, session.close


def of_urllib3() -> tuple[Callable[[str], str], Callable[[], object]]:
    manager = instrument_pools(urllib3.PoolManager(maxsize=THREADS), refuse_below=LEAST)

    def get(url: str) -> str:
        response = manager.request("GET", url)
        assert response.status == 200
        return response.data.decode()

    return get, manager.clear


def of_httpx(library: Any) -> tuple[Callable[[str], str], Callable[[], object]]:
    client = library.Client(trust_env=False, timeout=None)
    instrument_httpx(client, refuse_below=LEAST)

    def get(url: str) -> str:
        response = client.get(url)
        response.raise_for_status()
        text: str = response.text
        return text

    return get, client.close


class InThreads:
    @staticmethod
    def client() -> tuple[Callable[[str], str], Callable[[], object]]:
        return of_requests()

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        get, close = self.client()
        loop = asyncio.get_running_loop()
        async with serving(handler) as base:
            with ThreadPoolExecutor(THREADS) as threads:

                async def call(key: str, takes: float) -> str:
                    url = f"{base}/{key}?takes={takes}"
                    here = contextvars.copy_context()
                    try:
                        return await loop.run_in_executor(threads, here.run, get, url)
                    except InsufficientBudget:
                        raise
                    except DeadlineExceeded:
                        # The thread was quicker than the timer of the scope, whose end it is.
                        await asyncio.sleep(0.1)
                        raise

                yield call
            close()


class Urllib3InThreads(InThreads):
    @staticmethod
    def client() -> tuple[Callable[[str], str], Callable[[], object]]:
        return of_urllib3()


class HttpxInThreads(InThreads):
    @staticmethod
    def client() -> tuple[Callable[[str], str], Callable[[], object]]:
        return of_httpx(httpx)


class Httpx2InThreads(InThreads):
    @staticmethod
    def client() -> tuple[Callable[[str], str], Callable[[], object]]:
        return of_httpx(httpx2)


@pytest.mark.real_time
class TestRequests(NotCancelled):
    carrier = InThreads
    unit = 0.8
    slack = 0.25
    least = LEAST
    cap = CAP

    test_the_carrier_is_usable_after_many_cancellations = None  # type: ignore[assignment]


@pytest.mark.real_time
class TestUrllib3(TestRequests):
    carrier = Urllib3InThreads


@pytest.mark.real_time
class TestHttpx(TestRequests):
    carrier = HttpxInThreads


@pytest.mark.real_time
class TestHttpx2(TestRequests):
    carrier = Httpx2InThreads
