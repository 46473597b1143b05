"""A connection that was good goes bad between two calls. The call ends in time, and the next works.

What is kept alive by a pool is where a time-out does most harm: the connection must not be given to
the next call, nor its place in the pool be lost.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import holdfast
from bench.net.bad import Ask
from bench.net.plain import httpx_client, requests_session, urllib3_manager
from holdfast.testing.proxy import FaultProxy

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

LIMIT = 0.3
LATE = 3.0
BODY = b"x" * 2000
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY

Call = Callable[[str], int]
ACall = Callable[[str], Awaitable[int]]


class Server:
    """Answers at once, each connection in a thread."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.socks: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.socks.append(sock)
                self.threads.append(threading.Thread(target=self._serve, args=[sock]))
                self.threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        data = b""
        with sock, suppress(OSError):
            while part := sock.recv(65_536):
                data += part
                while b"\r\n\r\n" in data:
                    _, _, data = data.partition(b"\r\n\r\n")
                    sock.sendall(REPLY)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as made:
        yield made


def stall(proxy: FaultProxy) -> None:
    proxy.to_client.stall()


def trickle_head(proxy: FaultProxy) -> None:
    proxy.to_client.trickle(20)


def stop_in_body(proxy: FaultProxy) -> None:
    (one,) = proxy.connections
    proxy.to_client.limit(one.to_client + 500, "stall")


FAULTS = {
    "stalled": (stall, "http.header"),
    "trickling": (trickle_head, "http.header"),
    "stuck in the body": (stop_in_body, "http.body"),
}


def check(error: holdfast.DeadlineExceeded, took: float, phase: str) -> None:
    assert LIMIT * 0.99 <= took < LATE
    assert error.phase == phase
    assert error.trail is not None
    assert error.trail.event == f"{phase}.timeout"


def held(proxy: FaultProxy) -> Iterator[None]:
    """While the connection that went bad is open; once healed, the proxy sees its end."""
    proxy.heal()
    limit = time.monotonic() + LATE
    while proxy.connections:
        assert time.monotonic() < limit, proxy.connections
        yield


# -- in coroutines -----------------------------------------------------------------------------


def _httpx(library: str) -> Callable[[], tuple[ACall, Callable[[], Any]]]:
    def make() -> tuple[ACall, Callable[[], Any]]:
        from holdfast.adapters.httpx import instrument

        client = instrument(httpx_client(pytest.importorskip(library), "AsyncClient", Ask("")))

        async def call(url: str) -> int:
            return len((await client.get(url)).content)

        return call, client.aclose

    return make


def _aiohttp() -> tuple[ACall, Callable[[], Any]]:
    import aiohttp

    from holdfast.adapters.aiohttp import instrument

    session = instrument(aiohttp.ClientSession())

    async def call(url: str) -> int:
        async with session.get(url) as answer:
            return len(await answer.read())

    return call, session.close


ON_LOOP = {"httpx": _httpx("httpx"), "httpx2": _httpx("httpx2"), "aiohttp": _aiohttp}


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("client", list(ON_LOOP))
async def test_on_a_loop(proxy: FaultProxy, client: str, fault: str) -> None:
    spoil, phase = FAULTS[fault]
    url = f"http://127.0.0.1:{proxy.port}/"
    call, close = ON_LOOP[client]()
    async with holdfast.timeout(30):
        assert await call(url) == len(BODY)
    spoil(proxy)
    begun = time.monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        async with holdfast.timeout(LIMIT):
            await call(url)
    check(caught.value, time.monotonic() - begun, phase)
    for _ in held(proxy):
        await asyncio.sleep(0.01)
    async with holdfast.timeout(30):
        assert await call(url) == len(BODY)
    assert proxy.opened == 2
    # A reset while nobody looks: the library finds out, or says so; the next call works anyway.
    proxy.reset()
    with suppress(Exception):
        await call(url)
    assert await call(url) == len(BODY)
    await close()
    await asyncio.sleep(0)


# -- in threads --------------------------------------------------------------------------------


def _httpx_sync(library: str) -> Callable[[], tuple[Call, Callable[[], Any]]]:
    def make() -> tuple[Call, Callable[[], Any]]:
        from holdfast.adapters.httpx import instrument

        client = instrument(httpx_client(pytest.importorskip(library), "Client", Ask("")))
        return lambda url: len(client.get(url).content), client.close

    return make


def _requests() -> tuple[Call, Callable[[], Any]]:
    from holdfast.adapters.requests import instrument

    session = instrument(requests_session(Ask("")))
    return lambda url: len(session.get(url).content), session.close


def _urllib3() -> tuple[Call, Callable[[], Any]]:
    from holdfast.adapters.requests import instrument

    manager = instrument(urllib3_manager(Ask("")))
    return lambda url: len(manager.request("GET", url).data), manager.clear


BLOCKING = {
    "httpx": _httpx_sync("httpx"),
    "httpx2": _httpx_sync("httpx2"),
    "requests": _requests,
    "urllib3": _urllib3,
}


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("client", list(BLOCKING))
def test_in_a_thread(proxy: FaultProxy, client: str, fault: str) -> None:
    spoil, phase = FAULTS[fault]
    url = f"http://127.0.0.1:{proxy.port}/"
    call, close = BLOCKING[client]()
    with holdfast.timeout(30):
        assert call(url) == len(BODY)
    spoil(proxy)
    begun = time.monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(LIMIT):
        call(url)
    check(caught.value, time.monotonic() - begun, phase)
    for _ in held(proxy):
        time.sleep(0.01)
    with holdfast.timeout(30):
        assert call(url) == len(BODY)
    assert proxy.opened == 2
    proxy.reset()
    with suppress(Exception):
        call(url)
    assert call(url) == len(BODY)
    close()
