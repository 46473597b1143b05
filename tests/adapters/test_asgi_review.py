"""The ASGI carrier: who is told what of an end, and ends that nobody seems to notice."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import litestar
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as Path
from starlette.websockets import WebSocketDisconnect

import holdfast
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.cause import CauseKind
from holdfast.domain.policy import Limits, Policy, Route, policy_from_mapping
from holdfast.domain.wire.problem import parse_cause_header, parse_problem
from holdfast.domain.wire.settings import WireSettings
from holdfast.runtime import ambient
from tests.adapters.test_asgi import CONNECT, DEADLINE, Call, Sleeper, now, quick, reply, within

HEADER = "deadline-exceeded"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage()[:4] for record in caplog.records if record.name == "holdfast.asgi"]


# -- a reader that is slow ----------------------------------------------------------------------


class SlowReader(Call):
    """A server that waits, with the last message in its hands, for a client that does not read."""

    patience = 1e9

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await asyncio.sleep(self.patience)
        await super().send(message)


async def in_parts(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def test_the_limit_holds_while_the_server_waits_for_a_slow_reader(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = HoldfastMiddleware(in_parts, within(1))
    call = SlowReader(app)
    with caplog.at_level(logging.INFO, "holdfast.asgi"):
        await call.run()
    assert now() - call.begun == pytest.approx(1, abs=0.05)
    assert not call.whole
    assert app.counts["ended.deadline"] == 1
    assert logged(caplog) == ["504 "]
    assert len(holdfast.tree()) == 0


async def test_a_reader_that_is_slow_within_the_limit_gets_it_all() -> None:
    app = HoldfastMiddleware(in_parts, within(3))
    call = SlowReader(app)
    call.patience = 2
    await call.run()
    assert call.whole
    assert not app.counts


async def test_a_disconnect_that_the_last_message_brings_about_is_no_499() -> None:
    # hypercorn: its `send` of the last message tells `receive` first, and then returns.
    class Hypercorn(Call):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if self.whole:
                self.leave()
                await asyncio.sleep(0.1)

    done: list[str] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)  # so that it is watched
        await in_parts(scope, receive, send)
        await asyncio.sleep(5)
        done.append("background")

    app = HoldfastMiddleware(handler, within(1))
    await Hypercorn(app).run()
    assert done == ["background"]
    assert not app.counts


@pytest.mark.real_time
@pytest.mark.system
async def test_uvicorn_cuts_a_response_that_nobody_reads() -> None:
    parted = asyncio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000), "more_body": True})
        parted.set()
        await send({"type": "http.response.body", "body": b""})

    app: Any = HoldfastMiddleware(handler, within(0.4))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve([listener]))
    client = socket.socket()
    client.setblocking(False)
    try:
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, b"GET /x HTTP/1.1\r\nhost: t\r\n\r\n")
        await asyncio.wait_for(parted.wait(), 5)
        assert "GET /x" in str(holdfast.tree())
        for _ in range(500):
            if app.counts["ended.deadline"]:
                break
            await asyncio.sleep(0.01)
        assert app.counts == {"ended.deadline": 1}
        assert len(holdfast.tree()) == 0
        found = b""
        while data := await loop.sock_recv(client, 1_000_000):
            found = found[-10:] + data
        assert not found.endswith(b"0\r\n\r\n")
    finally:
        client.close()
        server.should_exit = True
        await serving
        listener.close()


# -- a handler that has seen for itself that its client has gone ----------------------------------


async def reads_it(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def left_after(
    app: HoldfastMiddleware, caplog: pytest.LogCaptureFixture, seconds: float = 0.2, **scope: Any
) -> Call:
    call = Call(app, **scope)
    with caplog.at_level(logging.INFO, "holdfast.asgi"):
        task = call.start()
        await asyncio.sleep(seconds)
        call.leave()
        await task
    return call


@pytest.mark.parametrize("at", [0.0, 0.01, 0.2])  # before and after the watch begins
async def test_a_client_that_left_is_in_the_log_when_the_handler_read_it(
    at: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reads_it(receive)
        await reply(send)

    app = HoldfastMiddleware(handler, within(5))
    call = await left_after(app, caplog, at)
    assert call.sent == []
    assert app.counts == {"disconnected": 1, "ended.client_disconnected": 1}
    assert logged(caplog) == ["499 "]
    assert "the handler has read it" in caplog.text


async def test_a_handler_that_takes_longer_than_its_grace_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reads_it(receive)
        await asyncio.sleep(100)

    app = HoldfastMiddleware(handler, within(5))
    call = await left_after(app, caplog)
    assert call.sent == []
    assert app.counts == {"disconnected": 1, "ended.client_disconnected": 1}
    assert logged(caplog) == ["499 "]


@pytest.mark.parametrize("own", [False, True])
async def test_a_limit_that_is_spent_afterwards_is_told_to_nobody(
    own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reads_it(receive)
        async with holdfast.timeout(0.1 if own else 50):
            await asyncio.sleep(100)

    app = HoldfastMiddleware(handler, within(0.5))
    call = await left_after(app, caplog)
    assert call.sent == []
    assert app.counts == {"disconnected": 1, "ended.client_disconnected": 1}
    assert logged(caplog) == ["499 "]


async def parts() -> Any:
    while True:
        yield b"part"
        await asyncio.sleep(0.05)


async def stream(request: Request) -> Response:
    return StreamingResponse(parts())


async def upload(request: Request) -> Response:
    await request.body()
    return Response("")


STARLETTE = Starlette(
    routes=[Path("/stream", stream), Path("/upload", upload, methods=["POST"])],
)


@pytest.mark.parametrize(
    ("path", "method", "version"),
    [("/stream", "GET", "2.3"), ("/stream", "GET", "2.4"), ("/upload", "POST", "2.3")],
)
async def test_starlette_leaves_a_499_and_no_error(
    path: str, method: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = HoldfastMiddleware(STARLETTE, within(5))
    first = {"type": "http.request", "body": b"half", "more_body": method == "POST"}
    call = await left_after(
        app,
        caplog,
        path=path,
        method=method,
        body=(first,),
        query_string=b"",
        asgi={"spec_version": version, "version": "3.0"},
    )
    assert not call.sent or not call.whole
    assert app.counts == {"disconnected": 1, "ended.client_disconnected": 1}
    assert logged(caplog) == ["499 "]


@pytest.mark.parametrize(
    "error",
    [
        ClientDisconnect(),
        ExceptionGroup("", [ClientDisconnect(), ClientDisconnect()]),
        ValueError("boom"),
        ExceptionGroup("", [ClientDisconnect(), ValueError()]),
    ],
)
async def test_only_an_error_that_says_no_more_than_that_is_kept_from_the_server(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reads_it(receive)
        raise error

    app = HoldfastMiddleware(handler, within(5))
    if "ValueError" in repr(error):
        with pytest.raises(type(error)):
            await left_after(app, caplog)
    else:
        await left_after(app, caplog)
    assert app.counts == {"disconnected": 1, "ended.client_disconnected": 1}
    assert logged(caplog) == ["499 "]


async def test_such_an_error_while_the_client_is_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    app = HoldfastMiddleware(handler, within(5))
    with pytest.raises(ClientDisconnect):
        await Call(app).run()
    assert not app.counts


async def test_a_websocket_that_its_client_closes_is_neither_error_nor_499(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "websocket.disconnect":
            pass
        raise WebSocketDisconnect(1000)

    app = HoldfastMiddleware(handler, within(5))
    await left_after(app, caplog, kind="websocket", body=(CONNECT,))
    assert app.counts == {"disconnected": 1}
    assert logged(caplog) == []


async def test_mode_observe_leaves_it_all_to_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reads_it(receive)
        raise ClientDisconnect

    app = HoldfastMiddleware(handler, Policy(mode="observe"))
    with pytest.raises(ClientDisconnect):
        await left_after(app, caplog)
    assert app.counts == {"disconnected": 1}


# -- whose limit it was -------------------------------------------------------------------------


async def inner(scope: Any, receive: Any, send: Any) -> None:
    async with holdfast.timeout(0.05, name="inner"):
        await asyncio.sleep(100)


@pytest.mark.parametrize(
    ("policy", "left", "told"),
    [
        (within(3), None, False),
        (within(3), b"60000", False),
        (within(3), b"2000", True),
        (within(3), b"0", True),
        (within(3, grace=0.5), b"2000", True),
        (within(3, grace=1.0), b"2800", True),  # its own, less what is kept for clean-up
        (within(3, grace=0.5), b"3200", False),
        (within(3, refuse_below=0.5), b"400", True),
        (within(3, refuse_below=0.5), b"600", True),
        (within(3, Route("/", {"idle": 1}, stream=True)), b"60000", False),
        (within(3, Route("/", {"idle": 1}, stream=True)), b"900", True),
    ],
)
async def test_another_try_is_in_vain_only_if_the_callers_own_budget_is_spent(
    policy: Policy, left: bytes | None, told: bool
) -> None:
    headers = () if left is None else ((DEADLINE, left),)
    call = await Call(HoldfastMiddleware(Sleeper(), policy), *headers).run()
    assert call.status == 504
    assert call.headers["content-type"] == "application/problem+json"
    assert (HEADER in call.headers) is told


@pytest.mark.parametrize("left", [None, b"60000"])
async def test_a_scope_of_the_handler_is_not_the_callers_budget(left: bytes | None) -> None:
    headers = () if left is None else ((DEADLINE, left),)
    call = await Call(HoldfastMiddleware(inner, within(100)), *headers).run()
    assert (call.status, call.problem["scope"]) == (504, "GET //inner")
    assert HEADER not in call.headers


@pytest.mark.parametrize(("left", "told"), [(b"1000", True), (b"60000", False)])
async def test_a_hop_below_that_has_spent_its_share_of_the_callers_budget_counts(
    left: bytes, told: bool
) -> None:
    # It is given a little less, so that its answer comes before the time of the caller is over.
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.9)
        here = ambient.ambient()
        assert here is not None
        cause = here.cause_of(CauseKind.DEADLINE, now(), "payments answered that it is spent")
        raise holdfast.DeadlineExceeded(cause)

    call = await Call(HoldfastMiddleware(handler, within(3)), (DEADLINE, left)).run()
    assert call.took == pytest.approx(0.9, abs=0.05)
    assert (HEADER in call.headers) is told


async def test_a_cap_that_was_spent_in_a_queue_is_not_the_callers_budget() -> None:
    app = HoldfastMiddleware(quick, within(3, refuse_below=0.5))
    late = {"holdfast.arrival": now() - 2.8}
    assert HEADER not in (await Call(app, (DEADLINE, b"60000"), **late).run()).headers
    assert HEADER in (await Call(app, (DEADLINE, b"3200"), **late).run()).headers


# -- refused ------------------------------------------------------------------------------------


async def test_what_is_refused_is_counted_by_reason() -> None:
    app = HoldfastMiddleware(quick, within(3, refuse_below=0.5))
    for left, reason in ((b"0", "expired"), (b"400", "too_little")):
        app.counts.clear()
        assert (await Call(app, (DEADLINE, left)).run()).status == 504
        assert app.counts == {f"refused.{reason}": 1, "ended.deadline": 1}
    app = HoldfastMiddleware(quick, within(3))
    await Call(app, (DEADLINE, b"0")).run()
    assert app.counts["refused.expired"] == 1
    await Call(app, (DEADLINE, b"0"), kind="websocket", body=(CONNECT,)).run()
    assert app.counts["refused.expired"] == 2


# -- what an edge keeps to itself ---------------------------------------------------------------

SECRETIVE = Policy(
    service="shop",
    defaults=Limits(request=3.0, header=3.0, idle=3.0),
    wire=WireSettings(details=False),
)


async def test_without_details_an_answer_says_that_it_ended_and_no_more() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        ledger = ambient.ledger()
        assert ledger is not None
        ledger.note("payments", 0.5)
        await asyncio.sleep(100)

    headers = ((DEADLINE, b"1000"), (b"x-request-id", b"mine"))
    call = await Call(HoldfastMiddleware(handler, SECRETIVE), *headers, path="/secret").run()
    assert call.status == 504
    assert call.problem == {
        "type": "urn:holdfast:problem:deadline-exceeded",
        "title": "The deadline of the request is spent",
        "status": 504,
        "detail": "It was not done in the time that there was.",
        "request_id": "mine",
    }
    assert int(call.headers["content-length"]) == len(call.body)
    assert call.headers[HEADER] == "1"
    assert "server-timing" not in call.headers
    for word in (b"shop", b"secret", b"payments"):
        assert word not in repr(call.sent).encode()
    assert parse_problem(call.body) is None
    assert parse_cause_header(call.headers[HEADER]) is None
    assert HEADER not in (await Call(HoldfastMiddleware(handler, SECRETIVE)).run()).headers


async def test_without_details_a_response_has_no_timing() -> None:
    call = await Call(HoldfastMiddleware(quick, SECRETIVE)).run()
    assert set(call.headers) == {"x-request-id"}


async def test_without_details_a_websocket_is_closed_with_a_plain_reason() -> None:
    app = HoldfastMiddleware(Sleeper(), SECRETIVE)
    call = await Call(app, kind="websocket", body=(CONNECT,), path="/secret").run()
    assert call.sent[-1]["reason"] == "The deadline of the request is spent"


# -- Litestar -----------------------------------------------------------------------------------


async def test_litestar_gets_its_504_and_is_cancelled_when_its_client_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends: list[float] = []

    @litestar.get("/slow")
    async def slow() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            ends.append(now())
            raise
        return "slept"

    @litestar.get("/quick")
    async def at_once() -> str:
        return holdfast.current().identity.echo_id

    app: Any = HoldfastMiddleware(
        litestar.Litestar([slow, at_once], logging_config=None), within(5)
    )
    more = {"path": "/slow", "query_string": b"", "root_path": "", "http_version": "1.1"}
    who = await Call(app, (b"x-request-id", b"me"), **{**more, "path": "/quick"}).run()
    assert who.body == b"me"
    call = await Call(app, (DEADLINE, b"1000"), **more).start()
    assert call.status == 504
    assert ends == [pytest.approx(call.begun + 1, abs=0.05)]
    assert call.problem["scope"] == "GET /slow"
    gone = await left_after(app, caplog, 2.0, **more)
    assert gone.sent == []
    assert ends[1] == pytest.approx(gone.begun + 2, abs=0.05)
    assert logged(caplog) == ["499 "]


# -- what is no policy --------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{}, {"timeouts": {"request": "3s"}}, "policy.toml"])
def test_a_policy_is_a_policy(wrong: Any) -> None:
    with pytest.raises(TypeError, match="policy_from_mapping"):
        HoldfastMiddleware(quick, wrong)
    app = HoldfastMiddleware(quick)
    with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
        app.policy = wrong
    if isinstance(wrong, dict):
        app.policy = policy_from_mapping(wrong)
