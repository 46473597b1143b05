"""Hard cases over several hops, with the real carriers and in virtual time."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from itertools import pairwise
from typing import Any

import httpx
import httpx2
import pytest

import holdfast
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.adapters.httpx import instrument
from holdfast.domain.policy import Limits, Policy
from holdfast.runtime.driver import driver_of

BUDGET = "x-envoy-expected-rq-timeout-ms"
HOPS = 10


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> Any:
    return request.param


def now() -> float:
    return driver_of(asyncio.get_running_loop()).now()


def client(lib: Any, app: Any) -> Any:
    transport = lib.ASGITransport(app)
    return instrument(lib.AsyncClient(transport=transport, base_url="http://hop", timeout=None))


async def reply(send: Any, *body: bytes, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in body:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Seen:
    """What every hop of a chain saw."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.identities: list[str] = []
        self.headers: list[str] = []


def chain(lib: Any, seen: Seen, hops: int, policy: Policy, last: float) -> Any:
    """Services that call one another; each takes 10 ms, the last one `last` seconds."""

    async def leaf(scope: Any, receive: Any, send: Any) -> None:
        note(scope)
        await asyncio.sleep(last)
        await reply(send, b"done")

    def note(scope: Any) -> None:
        here = holdfast.current()
        seen.deadlines.append(here.deadline)
        seen.identities.append(here.identity.request_id)
        seen.headers += [v.decode() for name, v in scope["headers"] if name == BUDGET.encode()]

    def hop(below: Any, number: int) -> Any:
        async def handler(scope: Any, receive: Any, send: Any) -> None:
            note(scope)
            await asyncio.sleep(0.01)
            async with client(lib, below) as http:
                response = await http.get(f"/{number}")
            await reply(send, response.content)

        return handler

    app = HoldfastMiddleware(leaf, policy, service=f"hop-{hops}")
    for number in range(hops - 1, 0, -1):
        app = HoldfastMiddleware(hop(app, number), policy, service=f"hop-{number}")
    return app


async def test_over_ten_hops_the_deadline_only_comes_nearer(lib: Any) -> None:
    seen = Seen()
    policy = Policy(defaults=Limits(request=60, reserve=0.0))
    app = chain(lib, seen, HOPS, policy, last=0.5)
    async with client(lib, app) as http, holdfast.timeout(2.0) as origin:
        response = await http.get("/")
        assert response.content == b"done"
        deadlines = [origin.deadline, *seen.deadlines]
    assert len(seen.deadlines) == HOPS
    for above, below in pairwise(deadlines):
        # A hop loses less than the millisecond that is rounded off, and never gains.
        assert above - 0.001 <= below <= above
    assert [int(header) for header in seen.headers] == sorted(map(int, seen.headers), reverse=True)
    assert len(set(seen.identities)) == 1


async def test_over_ten_hops_the_origin_is_told_which_hop_ran_out(lib: Any) -> None:
    seen = Seen()
    policy = Policy(defaults=Limits(request=60, reserve=0.01))
    app = chain(lib, seen, HOPS, policy, last=1000)
    began = now()
    async with client(lib, app) as http, holdfast.timeout(2.0) as origin:
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            await http.get("/")
    assert 1.9 < now() - began <= 2.0
    assert caught.value.cause.below
    assert caught.value.cause.origin.hop == f"hop-{HOPS}"
    assert max(seen.deadlines) <= origin.deadline
    # Every hop keeps its reserve for telling the one above.
    reserves = [a - b for a, b in pairwise(seen.deadlines)]
    assert all(0.01 <= kept < 0.0121 for kept in reserves)
    assert len(holdfast.tree()) == 0


@pytest.mark.parametrize("value", [None, b"inf", b"nan", b"-inf", b"Infinity"])
async def test_no_deadline_from_outside_is_the_default_and_never_an_immediate_one(
    value: bytes | None,
) -> None:
    left: list[float] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        left.append(holdfast.remaining())
        await reply(send, b"ok")

    app = HoldfastMiddleware(handler, Policy(defaults=Limits(request=7)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://hop") as plain:
        response = await plain.get("/", headers={BUDGET: value} if value else {})
    assert response.status_code == 200
    assert left == [pytest.approx(7)]


async def test_a_call_from_within_a_stream_keeps_to_the_callers_deadline(lib: Any) -> None:
    seen = Seen()
    below = chain(lib, seen, 1, Policy(defaults=Limits(request=60)), last=0.1)

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(20)  # longer than a request may take
        async with client(lib, below) as http:
            body = (await http.get("/")).content
        await send({"type": "http.response.body", "body": body})

    app = HoldfastMiddleware(stream, Policy(defaults=Limits(request=10, idle=100)))
    async with client(lib, app) as http, holdfast.timeout(30) as origin:
        assert (await http.get("/events")).content == b"done"
        who = seen.identities
        assert origin.deadline - 0.5 < seen.deadlines[0] <= origin.deadline
    assert len(who) == 1
    assert 9_000 < int(seen.headers[0]) <= 10_000


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
@pytest.mark.parametrize("below", ["knows nothing", "has a carrier"])
async def test_what_a_handler_began_and_left_behind_is_not_cut_by_its_requests_limit(
    lib: Any, when: str, below: str
) -> None:
    """An application that was not changed: `create_task`, an answer, and the rest afterwards."""
    ends: list[tuple[float, object]] = []
    kept: set[asyncio.Task[None]] = set()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3)
        await reply(send, b"done")

    policy = Policy(defaults=Limits(request=60))
    next_hop = HoldfastMiddleware(slow, policy) if below == "has a carrier" else slow

    async def audit() -> None:
        await asyncio.sleep(0.1 if when == "after the answer" else 0)
        try:
            async with client(lib, next_hop) as http:
                response = await http.get("/audit")
            ends.append((now() - began, response.status_code))
        except holdfast.DeadlineExceeded:
            ends.append((now() - began, "cut"))

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        kept.add(asyncio.get_running_loop().create_task(audit()))
        await asyncio.sleep(0.05)
        await reply(send, b"ok")

    app = HoldfastMiddleware(handler, Policy(defaults=Limits(request=0.5, header=0.5)))
    began = now()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hop") as http:
        assert (await http.get("/")).status_code == 200
    await asyncio.wait(kept)
    if (when, below) == ("before the answer", "has a carrier"):
        # That hop was told a deadline when the request had one: it cannot be taken back.
        assert ends == [(pytest.approx(0.49, abs=0.002), "cut")]
    else:
        assert ends == [(pytest.approx(3 + 0.1 * (when == "after the answer")), 200)]


@pytest.mark.parametrize("by", [3600.0, -3600.0])
async def test_a_leap_of_the_clock_on_the_wall_moves_no_deadline_of_a_request(
    by: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = time.time

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + by)
        await asyncio.sleep(1000)

    app = HoldfastMiddleware(handler, Policy(defaults=Limits(request=7)))
    began = now()
    with caplog.at_level(logging.INFO, logger="holdfast.asgi"):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://hop") as plain:
            response = await plain.get("/", headers={BUDGET: "2000"})
    assert response.status_code == 504
    assert now() - began == pytest.approx(2)
    assert response.json()["elapsed_ms"] == pytest.approx(2000, abs=2)


@pytest.mark.real_time("asyncio")  # uvloop asks the resolver of the system past Python
async def test_a_name_that_is_being_looked_up_holds_nobody(
    lib: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that asks the resolver cannot be stopped; whoever waits for it can."""

    def never_found(*_: object, **__: object) -> Any:
        time.sleep(0.6)
        raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", never_found)
    async with instrument(lib.AsyncClient(trust_env=False)) as http:
        began = time.monotonic()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.1):
                await http.get("http://nowhere.invalid/")
        assert 0.1 <= time.monotonic() - began < 3
