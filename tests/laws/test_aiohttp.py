"""aiohttp under the carrier laws: its client before, its server behind, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from holdfast.adapters.aiohttp import instrument
from holdfast.adapters.aiohttp.carrier import AiohttpCarrier
from holdfast.testing.laws import Call, CarrierLaws, Handler

LEAST = 0.02
CAP = 10.0  # what the default policy grants a request


class Aiohttp:
    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        async def answer(request: web.Request) -> web.Response:
            takes = float(request.query["takes"])
            return web.Response(text=await handler(request.match_info["key"], takes))

        app = web.Application()
        app.router.add_get("/{key}", answer)
        carrier = AiohttpCarrier()
        policy = carrier.policy
        carrier.policy = replace(policy, wire=replace(policy.wire, trust_stage=True))
        carrier.install(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        session = instrument(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)), refuse_below=LEAST
        )

        async def call(key: str, takes: float) -> str:
            url = f"http://127.0.0.1:{port}/{key}"
            async with session.get(url, params={"takes": takes}) as response:
                response.raise_for_status()
                return await response.text()

        try:
            yield call
        finally:
            await session.close()
            await runner.cleanup()


@pytest.mark.real_time("asyncio", "uvloop")
class TestAiohttp(CarrierLaws):
    carrier = Aiohttp
    unit = 0.8
    slack = 0.25
    least = LEAST
    cap = CAP
