"""aiohttp's client: what observers are told, and what sessions share."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
import pytest

import holdfast
from holdfast.adapters.aiohttp import HoldfastConnector, instrument, uninstrument
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.aiohttp_calls import ENVOY, Known, client, text
from tests.adapters.rude import Rude

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio", "uvloop")]

WHO: ContextVar[str] = ContextVar("who", default="nobody")
PROBLEM = json.dumps({"type": "about:blank", "title": "gone", "status": 404}).encode()
LARGE = gzip.compress(b"a" * 100_000)


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


class Seen:
    """An observer that keeps what it was told, and in whose context."""

    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None, str]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error, WHO.get()))


@asynccontextmanager
async def peer() -> AsyncGenerator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
            elif b"Content-Length: 1000" in head:
                await reader.readexactly(1000)
            path = head.split(b" ")[1].partition(b"?")[0]
            if path == b"/late":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                await asyncio.sleep(0.03)
                writer.write(b"hi")
            elif path == b"/broken":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello")
                await asyncio.sleep(0.03)
                break
            elif path == b"/stalls":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello")
            elif path == b"/problem":
                kind = b"Content-Type: application/problem+json\r\n"
                size = b"Content-Length: %d\r\n\r\n" % len(PROBLEM)
                writer.write(b"HTTP/1.1 404 Not Found\r\n" + kind + size + PROBLEM)
            elif path == b"/away":
                port = writer.get_extra_info("sockname")[1]
                to = b"Location: http://localhost:%d/late\r\n" % port
                writer.write(b"HTTP/1.1 302 Found\r\n" + to + b"Content-Length: 0\r\n\r\n")
            elif path == b"/gzip":
                kind = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(LARGE)
                writer.write(b"HTTP/1.1 200 OK\r\n" + kind + LARGE)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_the_observer_is_told_in_the_context_of_the_caller() -> None:
    seen = Seen()

    async def call(session: aiohttp.ClientSession, url: str, who: str) -> None:
        WHO.set(who)
        assert await text(session, url) == "hi"

    async with peer() as url, client(observer=seen) as session:
        for who in ("first", "second", "third"):
            await asyncio.create_task(call(session, url + "/late", who))
    assert [who for _, _, who in seen.calls] == ["first", "second", "third"]


@pytest.mark.parametrize("pause", [0.0, 0.15])
async def test_a_body_that_fails_is_no_success(pause: float) -> None:
    seen = Seen()
    async with peer() as url, client(observer=seen) as session:
        response = await session.get(url + "/broken")
        await asyncio.sleep(pause)
        with pytest.raises(aiohttp.ClientPayloadError) as caught:
            await response.read()
    [(trail, error, _)] = seen.calls
    assert error is caught.value
    assert trail.steps[-1].phase is Phase.BODY
    assert trail.steps[-1].ended is Ended.FAILED
    assert trail.received == 5
    [note] = caught.value.__notes__
    assert "http.body failed" in note


async def test_a_failed_body_that_nobody_reads_is_no_success() -> None:
    seen = Seen()
    async with peer() as url, client(observer=seen) as session, session.get(url + "/broken"):
        await asyncio.sleep(0.15)
    assert isinstance(seen.calls[0][1], aiohttp.ClientPayloadError)


async def test_a_time_out_of_the_library_in_a_body() -> None:
    seen = Seen()
    own = aiohttp.ClientTimeout(sock_read=0.1)
    async with peer() as url, client(observer=seen) as session:
        with pytest.raises(aiohttp.SocketTimeoutError) as caught:
            await text(session, url + "/stalls", timeout=own)
    assert "http.body.timeout" in caught.value.__notes__[0]
    assert seen.calls[0][1] is caught.value


async def test_an_answer_that_is_raised_is_told_as_its_error(rude: Rude) -> None:
    seen = Seen()
    async with client(observer=seen) as session, holdfast.timeout(5.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await text(session, rude.url("/spent"))
    assert [error for _, error, _ in seen.calls] == [caught.value]


async def test_a_problem_document_that_was_looked_into_is_still_there() -> None:
    async with peer() as url, client() as session:
        async with session.get(url + "/problem") as response:
            assert await response.content.read() == PROBLEM
        async with session.get(url + "/problem") as response:
            parts = [part async for part in response.content.iter_chunked(10)]
            assert b"".join(parts) == PROBLEM
        async with session.get(url + "/problem") as response:
            assert await response.read() == await response.read() == PROBLEM


async def test_sessions_that_share_a_connector_are_undone_one_by_one(rude: Rude) -> None:
    connector = aiohttp.TCPConnector()
    before = dict(vars(connector))
    shared: dict[str, Any] = {"connector": connector, "connector_owner": False}
    one, two = aiohttp.ClientSession(**shared), aiohttp.ClientSession(**shared)
    resolver = Resolver(Known("127.0.0.1"))
    for first, second in ((one, two), (two, one)):
        instrument(first, resolver=resolver)
        seen = Seen()
        instrument(second, resolver=resolver, observer=seen)
        uninstrument(first)
        rude.heads.clear()
        async with holdfast.timeout(5.0):
            assert await text(second, rude.url("/", "orders.internal")) == "ok"
            with pytest.raises(aiohttp.ClientConnectorDNSError):
                await text(first, rude.url("/", "does-not-exist.invalid"))
        assert ENVOY in rude.heads[0].lower()
        assert next(iter(seen.calls[0][0].took)) is Phase.POOL
        uninstrument(second)
        assert vars(connector).keys() == before.keys()
    await one.close()
    await two.close()
    await connector.close()


async def test_a_call_inside_another_has_its_own_record(rude: Rude) -> None:
    outer, inner = Seen(), Seen()
    async with (
        client(observer=outer) as session,
        aiohttp.ClientSession(connector=HoldfastConnector(observer=inner)) as other,
    ):

        async def body() -> AsyncIterator[bytes]:
            yield b"x"
            assert await text(other, rude.url("/")) == "ok"

        async with peer() as url, holdfast.timeout(5.0):
            response = await session.post(url + "/late", data=body())
            await response.read()
    assert len(outer.calls) == len(inner.calls) == 1
    phases = [step.phase for step in outer.calls[0][0].steps]
    assert phases.count(Phase.POOL) == phases.count(Phase.CONNECT) == 1
    assert [step.phase for step in inner.calls[0][0].steps][:2] == [Phase.POOL, Phase.CONNECT]


async def test_a_redirect_is_a_call_to_where_it_leads() -> None:
    seen = Seen()
    async with peer() as url, client(observer=seen) as session:
        assert await text(session, url + "/away") == "hi"
    assert seen.calls[0][0].target == f"GET {url}/late".replace("127.0.0.1", "localhost")


async def test_bytes_are_counted_as_they_are_on_the_wire() -> None:
    seen = Seen()
    async with peer() as url, client(observer=seen) as session:
        async with session.get(url + "/gzip") as response:
            assert len(await response.read()) == 100_000
        async with session.post(url + "/late", data=b"x" * 1000) as response:
            await response.read()
    got, posted = (trail for trail, _, _ in seen.calls)
    assert got.received == len(LARGE)
    assert 0 < got.sent < 1000
    assert 1000 < posted.sent < 2000
    assert Phase.TLS not in got.route
    assert Phase.PROXY not in got.route


async def test_a_closed_session_is_refused() -> None:
    session = aiohttp.ClientSession()
    await session.close()
    with pytest.raises(TypeError, match="closed"):
        instrument(session)
