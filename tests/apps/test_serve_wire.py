"""Arrival instants and the limit on headers, for both protocols, on both loops, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from holdfast.adapters.uvicorn import Settings, UvicornApplication, UvicornServer
from holdfast.adapters.uvicorn.wire_h11 import GuardedH11
from holdfast.adapters.uvicorn.wire_httptools import GuardedHttpTools
from holdfast.apps.serve.hosted import Hosted
from holdfast.apps.serve.listen import bind
from holdfast.apps.serve.plan import Plan
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.runtime.driver import driver_of

LIMIT = 0.25
REQUEST = b"GET /x HTTP/1.1\r\nhost: t\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    if scope["path"] == "/wait":
        await asyncio.sleep(2 * LIMIT)
    body = json.dumps(scope.get("holdfast.arrival")).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Bare:
    """In the place of the middleware, whose tests are elsewhere."""

    def __init__(self, app: Any, policy: Any) -> None:
        self.app, self.policy = app, policy
        self.counts: Counter[str] = Counter()

    def __call__(self, *words: Any) -> Any:
        return self.app(*words)


@dataclass
class Running:
    server: UvicornServer
    hosted: Hosted
    port: int
    timers: Callable[[], int] = field(default=lambda: 0)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def running(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch, mode: str = "enforce"
) -> AsyncIterator[Running]:
    monkeypatch.setattr("holdfast.apps.serve.hosted.HoldfastMiddleware", Bare)
    data = {"mode": mode, "timeouts": {"header": LIMIT}}
    plan = Plan("x:app", data=data)
    hosted = Hosted(echo, plan.policy())
    settings = Settings(hosted, hosted, access_log=False)
    settings.load()
    settings.http_protocol_class = protocol
    application = UvicornApplication(settings)
    sock = bind("127.0.0.1", 0, "")
    terms = DrainTerms(calm=0.0, quiet=0.0)
    server = UvicornServer(settings, application, [sock], lambda: terms, lambda *_, **__: None)
    await application.start()
    await server.start()
    driver = driver_of(asyncio.get_running_loop())
    before = len(driver.timers)  # the one that keeps the date
    try:
        yield Running(server, hosted, sock.getsockname()[1], lambda: len(driver.timers) - before)
    finally:
        await server.stop(driver.now() + 5)
        await application.stop(0.0)


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


Test = Callable[[Running], Coroutine[Any, Any, None]]


@pytest.fixture(params=["httptools on uvloop", "httptools on asyncio", "h11 on asyncio"])
def parts(request: pytest.FixtureRequest) -> list[str]:
    return request.param.split(" on ")


@pytest.fixture
def protocol(parts: list[str]) -> type[asyncio.Protocol]:
    return GuardedHttpTools if parts[0] == "httptools" else GuardedH11


@pytest.fixture
def play(
    parts: list[str], protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    factory = uvloop.new_event_loop if parts[1] == "uvloop" else asyncio.new_event_loop

    def run(test: Test, mode: str = "enforce") -> None:
        async def main() -> None:
            async with running(protocol, monkeypatch, mode) as server:
                await asyncio.wait_for(test(server), 20)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run


def test_each_request_has_the_instant_of_its_own_first_byte(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            began = time.monotonic()
            writer.write(REQUEST[:1])
            await asyncio.sleep(0.1)
            writer.write(REQUEST[1:])
            status, first = await answer(reader)
            assert status == 200
            assert first is not None
            assert began <= first < began + 0.08
            await asyncio.sleep(0.1)
            writer.write(REQUEST)
            _, second = await answer(reader)
            assert second - first > 0.15

    play(test)


def test_pipelined_requests_have_their_own_instants(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            writer.write(REQUEST.replace(b"/x", b"/wait") + REQUEST + REQUEST[:5])
            await asyncio.sleep(0.15)
            (_, first), (_, second) = await answer(reader), await answer(reader)
            assert first == second
            writer.write(REQUEST[5:])
            status, third = await answer(reader)
            assert (status, third) == (200, first)
            began = time.monotonic()
            writer.write(REQUEST)
            assert (await answer(reader))[1] >= began

    play(test)


@pytest.mark.parametrize("said", [b"", b"GET /x HT", b"GET /x HTTP/1.1\r\nhost: t\r\n", b"\r\n"])
def test_headers_that_do_not_come_are_answered_with_408(
    play: Callable[..., None], protocol: type[asyncio.Protocol], said: bytes
) -> None:
    if said == b"\r\n" and protocol is GuardedH11:
        said = b""  # h11 answers an empty line with 400 at once

    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            began = time.monotonic()
            writer.write(said)
            status, problem = await answer(reader)
            assert LIMIT - 0.05 < time.monotonic() - began < 20 * LIMIT
            assert status == 408
            assert problem["budget_ms"] == LIMIT * 1000
            assert await reader.read() == b""
        assert server.hosted.guarded.counts["header_timeout"] == 1

    play(test)


def test_a_byte_at_a_time_does_not_help(
    play: Callable[..., None], protocol: type[asyncio.Protocol]
) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            writer.write(REQUEST)
            assert (await answer(reader))[0] == 200  # also on a connection that behaved before
            began = time.monotonic()
            reading = asyncio.ensure_future(answer(reader))
            empty = b"" if protocol is GuardedH11 else b"\r\n"
            for byte in empty + REQUEST * 4:
                if reading.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.03)
                if time.monotonic() - began > 4 * LIMIT:
                    break
            status, _ = await reading
            assert status == 408
            assert LIMIT - 0.05 < time.monotonic() - began < 20 * LIMIT

    play(test)


def test_a_slow_body_and_a_slow_answer_are_another_matter(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            writer.write(b"POST /wait HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\n")
            for byte in b"body":
                await asyncio.sleep(LIMIT / 2)
                writer.write(bytes([byte]))
            assert (await answer(reader))[0] == 200
            writer.write(REQUEST)
            assert (await answer(reader))[0] == 200
        assert not server.hosted.guarded.counts

    play(test)


def test_behind_a_request_under_way_the_connection_closes_after_its_answer(
    play: Callable[..., None],
) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            writer.write(REQUEST.replace(b"/x", b"/wait"))
            await asyncio.sleep(0.05)
            writer.write(REQUEST[:9])
            assert (await answer(reader))[0] == 200
            rest = b""
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(4 * LIMIT):
                    for byte in b"HTTP/1.1" * 9:
                        if reader.at_eof() or writer.is_closing():
                            break
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0.02)
                rest = await reader.read()
            # Either closed right after the answer, or with a 408 of its own; never served.
            assert rest == b"" or rest.startswith(b"HTTP/1.1 408")

    play(test)


def test_observing_counts_once_and_lets_it_pass(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            for part in (REQUEST[:3], REQUEST[3:9], b"", REQUEST[9:20], REQUEST[20:]):
                await asyncio.sleep(LIMIT / 3)
                writer.write(part)
            assert (await answer(reader))[0] == 200
        assert server.hosted.guarded.counts["would_exceed_header"] == 1

    play(test, "observe")


def test_an_upgraded_connection_is_left_alone(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            writer.write(
                b"GET /socket HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\n"
                b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert server.timers() == 0
            await asyncio.sleep(2 * LIMIT)
            assert not reader.at_eof()

    play(test)


def test_off_is_off(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            await asyncio.sleep(2 * LIMIT)
            writer.write(REQUEST)
            assert (await answer(reader))[0] == 200
        assert not server.hosted.guarded.counts

    play(test, "off")


def test_no_timer_is_left_and_whole_headers_need_none(play: Callable[..., None]) -> None:
    async def test(server: Running) -> None:
        async with server.client() as (reader, writer):
            for _ in range(3):
                writer.write(REQUEST)
                assert (await answer(reader))[0] == 200
                assert server.timers() == 0
            writer.write(b"GET")
            await asyncio.sleep(0.05)
            assert server.timers() == 1
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not server.timers():
                break
        assert server.timers() == 0

    play(test)
