"""aiohttp's server: a deadline, an identity and an end for every request."""

# The block under test needs what the outer one opens.
# ruff: noqa: SIM117
from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import holdfast
from holdfast.adapters.aiohttp.carrier import AiohttpCarrier
from holdfast.adapters.aiohttp.server import AiohttpApplication
from holdfast.domain.policy import policy_from_mapping

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio", "uvloop")]

ENVOY = "x-envoy-expected-rq-timeout-ms"


class App:
    """An application, and what its handlers went through."""

    def __init__(self, carrier: AiohttpCarrier, app: web.Application | None = None) -> None:
        self.carrier = carrier
        self.ends: list[str] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.app = web.Application() if app is None else app
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
            if what == "blocks":
                time.sleep(0.15)  # noqa: ASYNC251 - that is what is under test
                return web.Response(text="late")
            if what in ("page", "excuse", "group"):
                return await self.late(what)
            if what in ("silent", "background"):
                return await self.stream(request, what)
            if what == "large":
                return web.Response(body=bytes(64 * 2**20))
            await asyncio.sleep(10)
            return web.Response(text="late")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        finally:
            self.ended.set()

    async def late(self, how: str) -> web.StreamResponse:
        try:
            async with holdfast.timeout(0.05):
                await asyncio.sleep(10)
        except holdfast.DeadlineExceeded as exc:
            if how == "page":
                raise web.HTTPBadGateway from exc
            if how == "excuse":
                return web.Response(text="from the cache")
            raise ExceptionGroup("parts", [exc]) from None
        raise AssertionError

    async def stream(self, request: web.Request, what: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        if what == "background":
            await response.write_eof()
            await asyncio.sleep(0.3)
            self.ends.append("done")
            return response
        await asyncio.sleep(10)
        return response

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
        assert app.carrier.counts["refused.expired"] == 1
        assert app.carrier.counts["refused.too_little"] == 1


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


async def test_an_event_stream_keeps_the_deadline_of_its_caller() -> None:
    async with served({"timeouts": {"request": "100ms"}}) as (app, session, url):
        async with session.get(url + "events", headers={ENVOY: "250"}) as response:
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert app.ends == ["cancelled"]


async def test_a_stream_and_a_web_socket_that_idle_are_ended() -> None:
    policy = {"timeouts": {"request": "5s", "idle": "150ms"}}
    async with served(policy) as (app, session, url):
        async with session.get(url + "events") as response:
            assert (await response.read()).count(b"data: 1") == 4
        async with session.get(url + "silent") as response:
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        async with session.ws_connect(url + "socket") as socket:
            for _ in range(4):
                await asyncio.sleep(0.08)
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello inf"
            assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1001
        assert app.ends == ["cancelled", "cancelled"]
        assert app.carrier.counts["ended.deadline"] == 2


async def test_a_complete_response_leaves_its_handler_alone() -> None:
    async with served({"timeouts": {"request": "150ms", "idle": "150ms"}}) as (app, session, url):
        async with session.get(url + "background", headers={ENVOY: "200"}) as response:
            assert await response.read() == b"data: 1\n\n"
        response.close()
        for _ in range(200):
            if app.ends:
                break
            await asyncio.sleep(0.01)
        assert app.ends == ["done"]
        assert not app.carrier.counts["ended.deadline"]


async def test_a_body_that_nobody_reads_ends_with_the_limit() -> None:
    async with served({"timeouts": {"request": "200ms"}}) as (app, session, url):
        async with session.get(url + "large") as response:
            for _ in range(200):
                if app.carrier.counts["ended.deadline"]:
                    break
                await asyncio.sleep(0.01)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        async with session.get(url + "large", headers={ENVOY: "60000"}) as response:
            assert response.status == 200


async def test_a_response_that_came_too_late_is_none() -> None:
    async with served() as (_, session, url):
        async with session.get(url + "blocks", headers={ENVOY: "100"}) as response:
            assert response.status == 504


async def test_a_page_that_was_made_of_our_error_is_a_504_and_an_excuse_stands() -> None:
    async with served() as (_, session, url):
        for what, status in (("page", 504), ("group", 504), ("excuse", 200)):
            async with session.get(url + what) as response:
                assert response.status == status, what


@pytest.mark.parametrize("first", [False, True])
async def test_with_the_gate_of_a_component(first: bool) -> None:
    app = App(AiohttpCarrier()).app if first else web.Application()
    application = AiohttpApplication(app)
    if not first:
        mine = App(AiohttpCarrier(), app)
        assert mine.app is app
    await application.start()
    await web.TCPSite(application.runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{application.runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "slow", headers={ENVOY: "100"}) as response:
            assert response.status == 504
        call = asyncio.ensure_future(session.get(url + "slow"))
        await asyncio.sleep(0.05)
        application.gate.announce(lambda: None)
        assert application.gate.cut() == ["GET /slow"]
        async with await call as response:
            assert response.status == 503
    await application.runner.cleanup()


@pytest.mark.parametrize("native", [False, True])
async def test_a_handler_ends_when_its_client_goes(
    native: bool, caplog: pytest.LogCaptureFixture
) -> None:
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
        await asyncio.sleep(0.05)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_begun_response_of_which_the_client_goes(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (app, session, url):
        async with session.get(url + "silent") as response:
            response.close()
        async with asyncio.timeout(5):
            await app.ended.wait()
        await asyncio.sleep(0.05)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


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


async def test_the_seam_is_where_it_was() -> None:
    assert web.StreamResponse._eof_sent is False
