"""Payments: has the bank charge a card."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from meter import Meter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from holdfast.adapters.httpx import instrument

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]

meter = Meter("payments")
bank = httpx.AsyncClient(base_url=os.environ.get("SHOP_BANK", "http://127.0.0.1:8003"))
if os.environ.get("SHOP_CARRIERS") != "off":
    instrument(bank, service="bank")


async def pay(request: Request) -> JSONResponse:
    """Pay for an order."""
    number = request.path_params["number"]
    await meter.do_work(0.01)  # does it look like fraud
    reply = await bank.post(f"/charges/{number}", headers=meter.passed_on())
    reply.raise_for_status()
    await meter.do_work(0.02)  # the receipt
    return JSONResponse({"paid": number, "charge": reply.json()})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with bank:
        yield


routes = [Route("/payments/{number:int}", pay, methods=["POST"])]
app = meter.wrap(Starlette(routes=routes, lifespan=lifespan))
