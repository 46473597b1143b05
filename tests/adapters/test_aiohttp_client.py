"""aiohttp's client: calls that end when they must, and say in which phase they were."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import random
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

import holdfast
from holdfast.adapters.aiohttp import instrument, uninstrument
from holdfast.adapters.aiohttp.connecting import SEAMS
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.faults import Fault, classify, is_retryable
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.aiohttp_calls import BUDGET, ENDED, ENVOY, Known, client, late, text
from tests.adapters.rude import FullQueue, Rude

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio", "uvloop")]


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ("/silent", Phase.HEADER),
        ("/header-trickle", Phase.HEADER),
        ("/interim-flood", Phase.HEADER),
        ("/body-trickle", Phase.BODY),
        ("/chunk-trickle", Phase.BODY),
    ],
)
async def test_a_call_ends_with_its_budget(rude: Rude, path: str, phase: Phase) -> None:
    async with client() as session:
        error = await late(lambda: text(session, rude.url(path)), phase)
    assert error.trail is not None
    if path == "/interim-flood":
        assert error.trail.interim == 103
    if phase is Phase.BODY:
        assert error.trail.received > 0
    assert await asyncio.to_thread(rude.settled)


async def test_a_body_ends_with_the_budget_of_its_call_wherever_it_is_read(rude: Rude) -> None:
    async with client() as session:
        async with holdfast.timeout(BUDGET):
            response = await session.get(rude.url("/body-trickle"))
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await response.read()
        assert monotonic() - began < ENDED
        assert caught.value.phase is Phase.BODY
        assert isinstance(caught.value, aiohttp.ServerTimeoutError)
        response.close()
    assert await asyncio.to_thread(rude.settled)


async def test_an_upload_that_stalls(rude: Rude) -> None:
    async with client() as session:
        body = io.BytesIO(b"x" * 32 * 2**20)
        await late(lambda: session.post(rude.url("/upload"), data=body), Phase.REQUEST)
    assert await asyncio.to_thread(rude.settled)


async def test_a_peer_that_does_not_answer_a_connection() -> None:
    with FullQueue() as full:
        async with client() as session:
            url = f"http://127.0.0.1:{full.port}/"
            error = await late(lambda: text(session, url), Phase.CONNECT)
    assert error.trail is not None
    assert [attempt.result for attempt in error.trail.attempts] == ["timeout"]


async def test_a_tls_handshake_without_an_answer() -> None:
    with Rude(silent_tls=True) as silent:
        async with client() as session:
            await late(lambda: text(session, silent.url("/")), Phase.TLS)
        assert await asyncio.to_thread(silent.settled)


async def test_a_tls_handshake_in_drops() -> None:
    with Rude(trickled_tls=True) as slow:
        async with client() as session:
            await late(lambda: text(session, slow.url("/")), Phase.TLS)
        assert await asyncio.to_thread(slow.settled)


async def test_addresses_none_of_which_answers() -> None:
    with FullQueue("") as full:
        resolver = Resolver(Known("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        async with client(resolver=resolver) as session:
            url = f"http://orders.internal:{full.port}/"
            error = await late(lambda: text(session, url), Phase.CONNECT)
    assert error.trail is not None
    assert {attempt.result for attempt in error.trail.attempts} == {"timeout"}
    assert len({attempt.address for attempt in error.trail.attempts}) >= 2


async def test_a_proxy_that_never_connects(rude: Rude) -> None:
    async with client() as session:
        await late(
            lambda: text(session, "https://orders.invalid/", proxy=rude.url("/")), Phase.PROXY
        )
    assert await asyncio.to_thread(rude.settled)


class Dead:
    """Nobody answers, as with a name server that is gone."""

    kinds = ("ADDRESS",)
    asks = "192.0.2.53"

    def start(self, name: str, kind: str, done: Done) -> Any:
        return lambda: None

    def close(self) -> None:
        """Nothing is open."""


async def test_a_name_server_that_is_dead() -> None:
    async with client(resolver=Resolver(Dead())) as session:
        error = await late(lambda: text(session, "http://orders.internal/"), Phase.DNS)
    assert "192.0.2.53" in error.__notes__[0]


async def test_redirects_share_one_budget(rude: Rude) -> None:
    async with client() as session:
        error = await late(
            lambda: text(session, rude.url("/redirect/0"), max_redirects=50), Phase.HEADER
        )
    assert error.trail is not None
    assert error.trail.redirects >= 2


async def test_waiting_for_a_place_in_the_pool(rude: Rude) -> None:
    async with client(aiohttp.TCPConnector(limit=1)) as session:
        first = asyncio.ensure_future(text(session, rude.url("/silent")))
        await asyncio.sleep(0.05)
        await late(lambda: text(session, rude.url("/")), Phase.POOL)
        first.cancel()
        await asyncio.wait([first])
        assert await text(session, rude.url("/")) == "ok"


async def test_a_share_that_is_spent_leaves_time_for_another_attempt() -> None:
    with FullQueue() as full:
        async with client(shares=Shares(floors={})) as session, holdfast.timeout(2.0):
            with pytest.raises(PhaseTimeout) as caught:
                await text(session, f"http://127.0.0.1:{full.port}/")
            assert holdfast.remaining() > 0
    assert caught.value.phase is Phase.CONNECT
    assert isinstance(caught.value, aiohttp.ConnectionTimeoutError)
    assert is_retryable(caught.value, idempotent=False)


async def test_time_outs_of_the_library_stay_its_own(rude: Rude) -> None:
    own = aiohttp.ClientTimeout(sock_read=0.2)
    async with client() as session, holdfast.timeout(30):
        with pytest.raises(aiohttp.SocketTimeoutError) as caught:
            await text(session, rude.url("/silent"), timeout=own)
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
        assert "http.header.timeout" in caught.value.__notes__[0]
        with pytest.raises(TimeoutError):
            await text(session, rude.url("/silent"), timeout=aiohttp.ClientTimeout(total=0.2))
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await text(session, "http://127.0.0.1:1/")
        assert classify(refused.value) is Fault.REFUSED
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await text(session, "http://does-not-exist.invalid/")


async def test_what_is_left_goes_out_and_is_worked_out_late(rude: Rude) -> None:
    rude.heads.clear()
    async with client() as session:
        async with holdfast.timeout(5.0):
            await text(session, rude.url("/"))
            own = {"X-Envoy-Expected-Rq-Timeout-Ms": "100"}
            await text(session, rude.url("/"), headers=own)
        await text(session, rude.url("/interim"))
    heads = [head.lower() for head in rude.heads]
    name = "x-envoy-expected-rq-timeout-ms: "
    left = int(heads[0].partition(name)[2].partition("\r\n")[0])
    assert 3000 < left < 5000
    assert heads[1].count(name) == 1
    assert name + "100" in heads[1]
    assert name not in heads[2]


async def test_too_little_is_left_to_begin(rude: Rude) -> None:
    before = len(rude.heads)
    async with client(refuse_below=1.0) as session, holdfast.timeout(0.5):
        with pytest.raises(holdfast.InsufficientBudget) as caught:
            await text(session, rude.url("/"))
    assert isinstance(caught.value, aiohttp.ServerTimeoutError)
    assert len(rude.heads) == before


async def test_a_hop_that_ran_out_of_time(rude: Rude) -> None:
    async with client() as session, holdfast.timeout(5.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await text(session, rude.url("/spent"))
        assert caught.value.cause.origin.hop == "orders"
        with pytest.raises(holdfast.DeadlineExceeded):
            await text(session, rude.url("/spent"), raise_for_status=True)
        instrument(session, raise_for_deadline=False)
        with pytest.raises(aiohttp.ClientResponseError):
            await text(session, rude.url("/spent"), raise_for_status=True)
        async with session.get(rude.url("/spent")) as response:
            assert response.status == 504


async def test_every_call_is_told_once_with_its_phases(rude: Rude) -> None:
    told: list[tuple[Trail, BaseException | None]] = []

    class Observer:
        def call_ended(self, trail: Trail, error: BaseException | None) -> None:
            told.append((trail, error))

    async with client(observer=Observer()) as session:
        async with holdfast.timeout(5.0):
            assert await text(session, rude.url("/")) == "ok"
        with contextlib.suppress(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await text(session, rude.url("/silent"))
        response = await session.get(rude.url("/body-trickle"))
        response.close()
    good, bad, dropped = told
    assert good[1] is None
    phases = [Phase.POOL, Phase.CONNECT, Phase.REQUEST, Phase.HEADER, Phase.BODY]
    assert list(good[0].took) == phases
    assert good[0].received == 2
    assert isinstance(bad[1], asyncio.CancelledError)
    assert bad[0].event == "http.header.timeout"
    assert dropped[1] is None


async def test_tls_for_real() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Rude(context) as rude:
        async with client() as session:
            url = rude.url("/", "localhost")
            async with holdfast.timeout(10):
                assert await text(session, url, ssl=trusting) == "ok"
            trickle = rude.url("/body-trickle", "localhost")
            await late(lambda: text(session, trickle, ssl=trusting), Phase.BODY)
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as untrusted:
                await text(session, url)
            assert classify(untrusted.value) is Fault.TLS


async def test_a_web_socket_outlives_the_scope_that_opened_it() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        async for message in opened:
            await opened.send_str(f"{message.data}, {request.headers.get(ENVOY)}")
        return opened

    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with client() as session:
        async with holdfast.timeout(0.4):
            opened = await session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await asyncio.sleep(0.5)
        await opened.send_str("hello")
        said = await opened.receive_str(timeout=ENDED)
        assert said.startswith("hello, ")
        assert int(said.removeprefix("hello, ")) <= 400
        await opened.close()
    await runner.cleanup()


async def test_what_is_wrong_with_a_url_is_said_by_aiohttp() -> None:
    async with client() as session:
        for url in ("http://[", "nothing", "ftp://orders/"):
            with pytest.raises(aiohttp.ClientError):
                await session.get(url)


async def test_random_cancellations_leave_a_pool_that_serves(rude: Rude) -> None:
    dice = random.Random(7)
    async with client(aiohttp.TCPConnector(limit=10)) as session:
        await text(session, rude.url("/"))
        before = len(os.listdir("/proc/self/fd"))

        async def one(number: int) -> None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                way: Any = holdfast.timeout if number % 2 else asyncio.timeout
                async with way(dice.random() * 0.004):
                    await text(session, rude.url("/"))

        for _ in range(20):
            await asyncio.gather(*[one(number) for number in range(30)])
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*[text(session, rude.url("/")) for _ in range(20)])
        assert answers == ["ok"] * 20
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 10
    assert await asyncio.to_thread(rude.settled)


async def test_undone_as_if_nothing_had_been(rude: Rude) -> None:
    async with aiohttp.ClientSession() as session:
        before = (dict(vars(session)), dict(vars(session.connector)))
        instrument(session)
        instrument(session)  # once more does no harm
        assert uninstrument(session) is session
        assert (dict(vars(session)), dict(vars(session.connector))) == before
        assert await text(session, rude.url("/")) == "ok"
    with pytest.raises(TypeError, match="ClientSession"):
        instrument(object())  # type: ignore[type-var]


async def test_the_seams_are_where_they_were() -> None:
    told = {
        "connect": ["req", "traces", "timeout"],
        "_create_proxy_connection": ["req", "traces", "timeout"],
        "_start_tls_connection": ["underlying_transport", "req", "timeout", "client_error"],
        "_wrap_create_connection": [
            "args",
            "addr_infos",
            "req",
            "timeout",
            "client_error",
            "kwargs",
        ],
    }
    assert set(told) == set(SEAMS)
    for name, parameters in told.items():
        found = list(inspect.signature(getattr(aiohttp.TCPConnector, name)).parameters)
        assert found == ["self", *parameters]
    session = aiohttp.ClientSession()
    assert {"_request_class", "_response_class", "_timeout"} <= set(vars(session))
    assert {"_resolver", "_use_dns_cache"} <= set(vars(session.connector))
    assert "_timer" in aiohttp.StreamReader.__slots__
    await session.close()
