"""aiohttp's server: a deadline, an identity and an end for every request."""

# The block under test needs what the outer one opens.
# ruff: noqa: SIM117
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import holdfast
from holdfast.adapters.aiohttp.carrier import AiohttpCarrier
from holdfast.domain.policy import policy_from_mapping

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio", "uvloop")]

ENVOY = "x-envoy-expected-rq-timeout-ms"


class App:
    """An application, and what its handlers went through."""

    def __init__(self, carrier: AiohttpCarrier) -> None:
        self.carrier = carrier
        self.ends: list[str] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_get("/{what:.*}", self.handle)
        carrier.install(self.app)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.begun.set()
        what = request.match_info["what"]
        try:
            if what == "left":
                return web.json_response({"left": holdfast.remaining()})
            if what == "who":
                identity = holdfast.current().identity
                return web.json_response({"id": identity.request_id, "trace": identity.trace_id})
            if what == "socket":
                return await self.socket(request)
            if what in ("begun", "events"):
                kind = "text/event-stream" if what == "events" else "text/plain"
                response = web.StreamResponse(headers={"content-type": kind})
                await response.prepare(request)
                for _ in range(4):
                    await response.write(b"data: 1\n\n")
                    await asyncio.sleep(0.1)
                return response
            if what == "fails":
                raise web.HTTPNotFound
            await asyncio.sleep(10)
            return web.Response(text="late")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        finally:
            self.ended.set()

    async def socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{message.data} {holdfast.remaining()}")
        return socket


@asynccontextmanager
async def served(
    policy: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[App, aiohttp.ClientSession, str]]:
    carrier = AiohttpCarrier(
        None if policy is None else policy_from_mapping(policy), service="shop"
    )
    app = App(carrier)
    runner = web.AppRunner(app.app, access_log=None, shutdown_timeout=0.1, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session:
        yield app, session, url
    await runner.cleanup()


async def test_the_deadline_is_what_the_caller_sent_capped_by_the_policy() -> None:
    async with served({"timeouts": {"request": "5s"}}) as (_, session, url):
        for sent, least, most in (("2000", 1.5, 2.0), ("60000", 4.5, 5.0), ("junk", 4.5, 5.0)):
            async with session.get(url + "left", headers={ENVOY: sent}) as response:
                assert least < (await response.json())["left"] <= most


async def test_a_handler_ends_with_its_deadline_and_a_problem_document_says_so() -> None:
    async with served() as (app, session, url):
        headers = {ENVOY: "100", "x-request-id": "mine"}
        async with session.get(url + "slow", headers=headers) as response:
            assert response.status == 504
            assert response.content_type == "application/problem+json"
            document = await response.json(content_type=None)
        assert document["request_id"] == "mine"
        assert response.headers["x-request-id"] == "mine"
        assert "deadline-exceeded" in response.headers
        assert response.headers["server-timing"].startswith("shop;dur=")
        assert app.ends == ["cancelled"]
        assert app.carrier.counts["ended.deadline"] == 1


async def test_the_cap_of_the_policy_is_not_the_callers_deadline() -> None:
    async with served({"timeouts": {"request": "100ms"}}) as (_, session, url):
        async with session.get(url + "slow") as response:
            assert response.status == 504
            assert "deadline-exceeded" not in response.headers


async def test_what_is_spent_on_arrival_or_too_little_is_not_begun() -> None:
    policy = {"timeouts": {"request": "5s", "refuse_below": "50ms"}}
    async with served(policy) as (app, session, url):
        for sent in ("0", "20"):
            async with session.get(url + "left", headers={ENVOY: sent}) as response:
                assert response.status == 504
        assert not app.begun.is_set()
        assert app.carrier.counts["refused.too_little"] == 2


async def test_a_begun_response_is_cut() -> None:
    async with served() as (app, session, url):
        async with session.get(url + "begun", headers={ENVOY: "150"}) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert app.ends == ["cancelled"]


async def test_an_event_stream_has_no_deadline() -> None:
    async with served({"timeouts": {"request": "150ms"}}) as (app, session, url):
        async with session.get(url + "events") as response:
            assert (await response.read()).count(b"data: 1") == 4
        assert app.ends == []


async def test_a_web_socket_has_no_deadline() -> None:
    async with served({"timeouts": {"request": "100ms"}}) as (_, session, url):
        async with session.ws_connect(url + "socket") as socket:
            await asyncio.sleep(0.2)
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello inf"


@pytest.mark.parametrize("native", [False, True])
async def test_a_handler_ends_when_its_client_goes(native: bool) -> None:
    async with served(handler_cancellation=native) as (app, session, url):
        call = asyncio.ensure_future(session.get(url + "slow"))
        await app.begun.wait()
        call.cancel()
        async with asyncio.timeout(5):
            await app.ended.wait()
        assert app.ends == ["cancelled"]
        for _ in range(100):
            if app.carrier.counts["ended.client_disconnected"]:
                break
            await asyncio.sleep(0.01)
        assert app.carrier.counts["ended.client_disconnected"] == 1


async def test_an_identity_is_kept_or_made() -> None:
    async with served() as (_, session, url):
        trace = "0af7651916cd43dd8448eb211c80319c"
        parent = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        async with session.get(url + "who", headers=parent) as response:
            assert (await response.json())["trace"] == trace
        async with session.get(url + "who") as response:
            made = await response.json()
            assert response.headers["x-request-id"] == made["id"] == made["trace"]


async def test_errors_of_a_handler_stay_what_they_are() -> None:
    async with served() as (_, session, url), session.get(url + "fails") as response:
        assert response.status == 404


async def test_off_and_observing() -> None:
    async with served({"mode": "off"}) as (_, session, url):
        async with session.get(url + "left", headers={ENVOY: "1"}) as response:
            assert (await response.json())["left"] == float("inf")
    async with served({"mode": "observe"}) as (app, session, url):
        async with session.get(url + "begun", headers={ENVOY: "50"}) as response:
            assert (await response.read()).count(b"data: 1") == 4
        assert app.carrier.counts["would_exceed"] == 1
