"""From the edge to the last statement: HTTP, gRPC, PostgreSQL and Redis, and nothing is left.

The edge gets a request, calls a service over gRPC, and that one asks PostgreSQL and Redis for more
than anybody will wait for. Each is a process of its own, and the servers are the real ones.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.apps.serving import PATIENCE, SOURCE, Home, Served
from tests.peers.process import answers, free_port

pytestmark = pytest.mark.system

EDGE = """
import os

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from holdfast.adapters.grpc_client import open_channel

channel = open_channel(os.environ["STOCK"], service="stock")
reserve = channel.unary_unary("/shop.Stock/Reserve")


async def order(request):
    what = request.path_params["what"].encode()
    return Response(await reserve(what))


app = Starlette(routes=[Route("/order/{what}", order)])
"""

STOCK = """
import asyncio, json, os, sys

import grpc.aio
import redis.asyncio

import holdfast
from holdfast.adapters import asyncpg
from holdfast.adapters.grpc_server import GrpcCarrier
from holdfast.adapters.redis import instrument


async def main():
    pool = await asyncpg.create_pool(os.environ["DATABASE"], min_size=2, max_size=4,
                                     server_settings={"application_name": "stock"})
    cache = instrument(redis.asyncio.Redis.from_url(os.environ["CACHE"], client_name="stock"))

    async def reserve(request, context):
        who = holdfast.current().identity.echo_id
        print(json.dumps([who, holdfast.remaining()]), flush=True)
        if request == b"sql":
            await pool.fetchval("SELECT pg_sleep(3600)")
        elif request == b"locked":
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("UPDATE goods SET left_over = left_over - 1")
                await connection.fetchval("SELECT pg_sleep(3600)")
        elif request == b"redis":
            await cache.blpop("nothing", 0)
        return b"done"

    server = grpc.aio.server(interceptors=[GrpcCarrier(service="stock")])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
        "shop.Stock", {"Reserve": grpc.unary_unary_rpc_method_handler(reserve)})])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
"""


class Line:
    """The edge, the service behind it, and what that one has seen."""

    def __init__(self, edge: Served, stock: subprocess.Popen[str], database: Any, cache: Any):
        self.edge = edge
        self._stock = stock
        self.database = database
        self.cache = cache

    def seen(self) -> tuple[str, float]:
        """Name of the next request that came to the service, and what it had left there."""
        assert self._stock.stdout is not None
        who, left = json.loads(self._stock.stdout.readline())
        return who, left

    def statements(self) -> int:
        return self.database.at_work("pg_sleep(3600)")

    def blocked(self) -> int:
        return sum(
            1 for client in self.cache.client_list()
            if client["name"] == "stock" and "b" in client["flags"]
        )  # fmt: skip

    def locks(self) -> int:
        return len(
            self.database.ask(
                "SELECT 1 FROM pg_locks WHERE relation = 'goods'::regclass AND mode LIKE 'Row%'"
            )
        )


@pytest.fixture(scope="module")
def line(
    tmp_path_factory: pytest.TempPathFactory, postgres: Any, redis_server: Any
) -> Iterator[Line]:
    postgres.ask("CREATE TABLE goods AS SELECT 10 AS left_over")
    place = tmp_path_factory.mktemp("line")
    port = free_port()
    home = Home(place / "edge")
    home.write("edge.py", EDGE)
    home.write("holdfast.toml", 'service = "edge"\n[timeouts]\nrequest = "700ms"\n')
    script = place / "stock.py"
    script.write_text(STOCK)
    env = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "DATABASE": postgres.dsn(),
        "CACHE": redis_server.url(),
    }
    command = [sys.executable, str(script), f"127.0.0.1:{port}"]
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as stock,
        redis.Redis(port=redis_server.port, decode_responses=True) as cache,
    ):
        monkeypatch.setenv("STOCK", f"127.0.0.1:{port}")
        try:
            until(lambda: answers(port))
            with home.serve("edge:app") as edge:
                yield Line(edge, stock, postgres, cache)
        finally:
            stock.kill()
    home.close()
    postgres.ask("DROP TABLE goods")


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def test_the_deadline_of_the_edge_ends_the_statement(line: Line) -> None:
    for number in range(3):
        status, _, body = line.edge.get("/order/sql", f"x-request-id: order-{number}")
        assert status == 504
        assert json.loads(body)["hop"] == "edge"
        who, left = line.seen()
        assert who == f"order-{number}", "one name from the edge to the service before the database"
        assert left <= 0.7
        until(lambda: not line.statements())


def test_a_client_that_leaves_ends_the_statement_and_frees_its_locks(line: Line) -> None:
    for what in ("sql", "locked"):
        with socket.create_connection(("127.0.0.1", line.edge.port)) as client:
            client.sendall(f"GET /order/{what} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            line.seen()
            until(line.statements)
        until(lambda: not line.statements())
        until(lambda: not line.locks())
    assert line.database.ask("SELECT left_over FROM goods") == [(10,)]


def test_a_client_that_leaves_frees_the_connection_that_blocks_in_redis(line: Line) -> None:
    with socket.create_connection(("127.0.0.1", line.edge.port)) as client:
        client.sendall(b"GET /order/redis HTTP/1.1\r\nhost: t\r\n\r\n")
        line.seen()
        until(line.blocked)
    until(lambda: not line.blocked())


def test_the_service_is_as_good_as_new_afterwards(line: Line) -> None:
    for what in ("sql", "redis", "locked"):
        assert line.edge.get(f"/order/{what}")[0] == 504
        line.seen()
    status, _, body = line.edge.get("/order/nothing")
    assert (status, body) == (200, b"done")
    until(lambda: line.database.backends("stock") <= 4)
