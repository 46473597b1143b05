"""Requests whose clients leave, under the middleware that makes it hard: anyio cancels at every
await below it, the clean-up of a session included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware

from holdfast.adapters.asgi import HoldfastMiddleware
from tests.adapters.test_sqlalchemy import NAME, drivers, engine_for, until
from tests.adapters.test_sqlalchemy_cancel import pool_is_whole

pytestmark = pytest.mark.real_time

SIZE = 4


def application(engine: AsyncEngine) -> Any:
    app = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as opened:
            yield opened

    @app.get("/slow/{n}")
    async def slow(n: int, db: AsyncSession = Depends(session)) -> int:  # noqa: B008
        async with db.begin():
            await db.execute(text("SELECT * FROM sa_web FOR SHARE"))
            row = (await db.execute(text("SELECT CAST(:n AS int), pg_sleep(30)"), {"n": n})).one()
        return int(row[0])

    @app.get("/quick/{n}")
    async def quick(n: int, db: AsyncSession = Depends(session)) -> int:  # noqa: B008
        return int((await db.execute(text("SELECT CAST(:n AS int)"), {"n": n})).scalar_one())

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    return HoldfastMiddleware(app)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", loop="none", port=0)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    serving = asyncio.create_task(server.main_loop())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        await server.shutdown()


async def asked(port: int, path: str, *, leave_after: float | None = None) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    limit = "X-Envoy-Expected-Rq-Timeout-Ms: 30000"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{limit}\r\nConnection: close\r\n\r\n".encode())
    try:
        if leave_after is not None:
            await asyncio.sleep(leave_after)
            return b""
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@drivers
async def test_clients_that_leave_leak_nothing(postgres: Any, driver: str) -> None:
    postgres.ask("CREATE TABLE IF NOT EXISTS sa_web AS SELECT 1 AS id")
    async with engine_for(postgres, driver, pool_size=SIZE) as engine:
        async with served(application(engine)) as port:
            for _ in range(3):
                leaving = [
                    asked(port, f"/slow/{n}", leave_after=0.02 * (n % 6)) for n in range(3 * SIZE)
                ]
                await asyncio.gather(*leaving)
            pool: Any = engine.pool
            await until(lambda: pool.checkedout() == 0, "a place in the pool is lost")
            for n in range(2 * SIZE):
                answer = await asked(port, f"/quick/{n}")
                assert answer.startswith(b"HTTP/1.1 200")
                assert answer.endswith(str(n).encode())
        await pool_is_whole(postgres, engine, SIZE)
        assert postgres.ask("SELECT 1 FROM pg_locks WHERE relation = 'sa_web'::regclass") == []
        assert postgres.backends(NAME) <= SIZE
