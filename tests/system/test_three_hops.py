"""One deadline over three processes: the leaf always stops, because of the limit of the edge."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.serving import PATIENCE, Home, Served, operator

pytestmark = pytest.mark.system

# The middle and the edge have no time-out of their own, the leaf works for ever: what ends them all
# is the policy of the edge, and the clients that leave it.
HOP = """
import asyncio, json, os

import holdfast
import httpx2
from holdfast.adapters.httpx import instrument
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

NEXT = os.environ.get("NEXT", "")
client = instrument(httpx2.AsyncClient(base_url=NEXT, timeout=None)) if NEXT else None
ends = []


async def work(request):
    try:
        if client is not None:
            response = await client.get("/work")
            return JSONResponse({"status": response.status_code})
        await asyncio.sleep(3600)
    except asyncio.CancelledError as error:
        scope = error.args[0] if error.args else None
        ends.append([holdfast.current().identity.request_id, str(getattr(scope, "kind", "native"))])
        raise
    except holdfast.DeadlineExceeded as error:
        ends.append([holdfast.current().identity.request_id, str(error.cause.kind)])
        raise


async def seen(request):
    return JSONResponse(ends)


app = Starlette(routes=[Route("/work", work), Route("/seen", seen)])
"""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Home, Served]]]:
    """Leaf, middle and edge."""
    homes = [Home(tmp_path / name) for name in ("leaf", "middle", "edge")]
    policies = ("1h", "1h", "400ms")
    stack: list[tuple[Home, Served]] = []
    monkeypatch.delenv("NEXT", raising=False)
    with ExitStack() as running:
        for home, limit in zip(homes, policies, strict=True):
            home.write("hop.py", HOP)
            home.write(
                "holdfast.toml", f'service = "{home.path.name}"\n[timeouts]\nrequest = "{limit}"\n'
            )
            served = running.enter_context(home.serve("hop:app"))
            monkeypatch.setenv("NEXT", served.url)
            stack.append((home, served))
        yield stack
    for home in homes:
        home.close()


def ends(served: Served) -> list[list[str]]:
    found: list[list[str]] = json.loads(served.get("/seen")[2])
    return found


def wait_for(served: Served, count: int) -> list[list[str]]:
    until = time.monotonic() + PATIENCE
    while len(found := ends(served)) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} ended"
        time.sleep(0.02)
    return found


def open_scopes(home: Home) -> int:
    (path,) = home.sockets.glob("*.sock")
    live = operator(path, "/tree.json")
    return sum(len(root["children"]) for root in live["roots"])


def test_the_leaf_stops_because_of_the_limit_of_the_edge(chain: list[tuple[Home, Served]]) -> None:
    (_, leaf), (_, middle), (_, edge) = chain
    for number in range(5):
        status, head, body = edge.get("/work", f"x-request-id: call-{number}")
        assert status == 504
        assert f"x-request-id: call-{number}" in head
        problem = json.loads(body)
        hops = [problem["hop"]]
        while problem.get("below"):
            problem = problem["below"][0]
            hops.append(problem["hop"])
        assert hops[0] == "edge"
        assert problem["budget_ms"] <= 400
    leaves, middles = wait_for(leaf, 5), wait_for(middle, 5)
    assert {kind for _, kind in leaves} == {"deadline"}
    assert {name for name, _ in leaves} == {name for name, _ in middles}
    assert len({name for name, _ in leaves}) == 5, "one identity for each request, on every hop"


def test_the_leaf_stops_when_the_client_of_the_edge_leaves(
    chain: list[tuple[Home, Served]],
) -> None:
    (_, leaf), _, (_, edge) = chain
    assert edge.get("/work")[0] == 504  # the first call opens the connections
    for number in range(5):
        with socket.create_connection(("127.0.0.1", edge.port)) as sock:
            sock.sendall(b"GET /work HTTP/1.1\r\nhost: t\r\n\r\n")
            time.sleep(0.25)
        wait_for(leaf, 2 + number)
    until = time.monotonic() + PATIENCE
    while any(open_scopes(home) for home, _ in chain):
        assert time.monotonic() < until, "scopes are still open"
        time.sleep(0.02)
