"""A connector of ours, in sessions of all kinds, and connectors for Unix sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

import holdfast
from holdfast.adapters.aiohttp import HoldfastConnector, instrument
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.aiohttp_calls import ENVOY, Known, Told, client, late, text
from tests.adapters.rude import OK, FullQueue, Rude

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio", "uvloop")]


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"silent" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)
            await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with client(aiohttp.UnixConnector(path)) as session:
        told: list[Trail] = []
        instrument(session, observer=Told(told))
        assert await text(session, "http://orders/") == "ok"
        assert list(told[0].took)[:2] == [Phase.POOL, Phase.CONNECT]
        await late(lambda: text(session, "http://orders/silent"), Phase.HEADER)
    server.close()
    await server.wait_closed()


async def test_a_connector_in_a_session_that_others_made(rude: Rude) -> None:
    rude.heads.clear()
    told: list[Trail] = []
    connector = HoldfastConnector(observer=Told(told), refuse_below=0.01)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with holdfast.timeout(5.0):
            assert await text(session, rude.url("/")) == "ok"
        assert ENVOY in rude.heads[0].lower()
        assert list(told[0].took) == [Phase.POOL, Phase.CONNECT, Phase.REQUEST]
        with FullQueue() as full:
            await late(lambda: text(session, f"http://127.0.0.1:{full.port}/"), Phase.CONNECT)
        with pytest.raises(aiohttp.ServerTimeoutError) as refused:
            async with holdfast.timeout(0.005):
                await text(session, rude.url("/"))
        assert isinstance(refused.value.__cause__, holdfast.InsufficientBudget)
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await text(session, "http://127.0.0.1:1/")
        assert "tcp.connect" in caught.value.__notes__[0]
        assert len(told) == 4


async def test_a_share_that_a_connector_has_spent() -> None:
    connector = HoldfastConnector(shares=Shares(floors={}))
    async with aiohttp.ClientSession(connector=connector) as session, holdfast.timeout(2.0):
        with FullQueue() as full, pytest.raises(aiohttp.ConnectionTimeoutError) as caught:
            await text(session, f"http://127.0.0.1:{full.port}/")
        assert holdfast.remaining() > 0
    assert isinstance(caught.value.__cause__, PhaseTimeout)


async def test_an_instrumented_session_on_a_connector_of_ours(rude: Rude) -> None:
    told: list[Trail] = []
    connector = HoldfastConnector(resolver=Resolver(Known("127.0.0.1")))
    async with client(connector, observer=Told(told)) as session:
        async with holdfast.timeout(5.0):
            assert await text(session, rude.url("/", "orders.internal")) == "ok"
        await late(lambda: text(session, rude.url("/body-trickle")), Phase.BODY)
    phases = [Phase.POOL, Phase.DNS, Phase.CONNECT, Phase.REQUEST, Phase.HEADER, Phase.BODY]
    assert list(told[0].took) == phases
    assert len(told) == 2
