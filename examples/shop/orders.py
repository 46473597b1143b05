"""Orders: takes an order when it is paid."""

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

meter = Meter("orders")
payments = httpx.AsyncClient(base_url=os.environ.get("SHOP_PAYMENTS", "http://127.0.0.1:8002"))
if os.environ.get("SHOP_CARRIERS") != "off":
    instrument(payments, service="payments")


async def place(request: Request) -> JSONResponse:
    """Place an order."""
    number = request.path_params["number"]
    await meter.do_work(0.02)  # is it in stock
    reply = await payments.post(f"/payments/{number}", headers=meter.passed_on())
    reply.raise_for_status()
    await meter.do_work(0.03)  # write it down, print the label
    return JSONResponse({"placed": number, "payment": reply.json()})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with payments:
        yield


routes = [Route("/orders/{number:int}", place, methods=["POST"])]
app = meter.wrap(Starlette(routes=routes, lifespan=lifespan))
