"""The edge: what the users of the shop talk to."""

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

meter = Meter("edge")
orders = httpx.AsyncClient(base_url=os.environ.get("SHOP_ORDERS", "http://127.0.0.1:8001"))
if os.environ.get("SHOP_CARRIERS") != "off":
    instrument(orders, service="orders")


async def checkout(request: Request) -> JSONResponse:
    """Buy what is in a basket."""
    number = request.path_params["number"]
    await meter.do_work(0.01)  # who is it, and what is in the basket
    reply = await orders.post(f"/orders/{number}", headers=meter.passed_on())
    reply.raise_for_status()
    await meter.do_work(0.02)  # the page that says thank you
    return JSONResponse({"bought": number, "order": reply.json()})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with orders:
        yield


routes = [Route("/checkout/{number:int}", checkout, methods=["POST"])]
app = meter.wrap(Starlette(routes=routes, lifespan=lifespan))
