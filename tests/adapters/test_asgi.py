"""The ASGI carrier, driven by hand in virtual time: its rules where a server adds nothing."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.policy import Limits, Policy, Route
from holdfast.domain.wire.settings import WireSettings
from holdfast.runtime import ambient
from holdfast.runtime.driver import driver_of

App = Callable[[Any, Any, Any], Awaitable[None]]
Header = tuple[bytes, bytes]
DEADLINE = b"x-envoy-expected-rq-timeout-ms"


def now() -> float:
    return driver_of(asyncio.get_running_loop()).now()


class Call:
    """One request, as a server would make it."""

    def __init__(
        self,
        app: App,
        *headers: Header,
        path: str = "/",
        body: tuple[Any, ...] = ({"type": "http.request", "body": b"", "more_body": False},),
        kind: str = "http",
        **scope: Any,
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": kind,
            "path": path,
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            **({"method": "GET"} if kind == "http" else {}),
            **scope,
        }
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self.reads = 0
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        for message in body:
            self.incoming.put_nowait(message)
        self.begun = self.answered = 0.0
        self.slow = 0.0

    async def receive(self) -> Any:
        message = await self.incoming.get()
        self.reads += 1
        if message["type"].endswith("disconnect"):
            self.incoming.put_nowait(message)
        return message

    async def send(self, message: Any) -> None:
        if self.slow:
            await asyncio.sleep(self.slow)
        if not self.answered:
            self.answered = now()
        self.sent.append(dict(message))

    def leave(self) -> None:
        kind = "http" if self.scope["type"] == "http" else "websocket"
        self.incoming.put_nowait({"type": f"{kind}.disconnect", "code": 1006})

    async def run(self) -> Call:
        self.begun = now()
        await self.app(self.scope, self.receive, self.send)
        return self

    def start(self) -> asyncio.Task[Call]:
        return asyncio.get_running_loop().create_task(self.run())

    @property
    def status(self) -> int:
        starts = [message for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) == 1, f"not exactly one start: {self.sent}"
        return int(starts[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def problem(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def whole(self) -> bool:
        return self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")

    @property
    def took(self) -> float:
        return self.answered - self.begun


def within(request: float = 10.0, *routes: Route, **more: Any) -> Policy:
    limits = Limits(request=request, header=min(5.0, request), **more)
    return Policy(defaults=limits, routes=routes, service="shop")


async def reply(send: Any, body: bytes = b"ok", *headers: Header, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def quick(scope: Any, receive: Any, send: Any) -> None:
    await reply(send)


class Sleeper:
    """Sleeps for a long time and remembers what happened to it."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds
        self.began = self.left = 0.0
        self.remaining = 0.0
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.began, self.remaining = now(), holdfast.remaining()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.left = now()
        await reply(send)


# -- the deadline -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "left"),
    [
        ((DEADLINE, b"1500"), 1.5),
        ((b"grpc-timeout", b"1500m"), 1.5),
        ((b"grpc-timeout", b"2S"), 2.0),
        ((b"connect-timeout-ms", b"700"), 0.7),
        ((DEADLINE, b" 250 "), 0.25),
    ],
)
async def test_the_deadline_is_what_the_caller_sent(header: Header, left: float) -> None:
    handler = Sleeper()
    call = await Call(HoldfastMiddleware(handler, within(10)), header).run()
    assert call.status == 504
    assert handler.remaining == pytest.approx(left)
    assert handler.left - handler.began == pytest.approx(left, abs=0.02)


async def test_the_policy_caps_what_the_caller_sent() -> None:
    handler = Sleeper()
    await Call(HoldfastMiddleware(handler, within(3)), (DEADLINE, b"60000")).run()
    assert handler.remaining == pytest.approx(3)


async def test_of_several_headers_the_tightest_holds() -> None:
    handler = Sleeper()
    headers = ((DEADLINE, b"900"), (b"grpc-timeout", b"400m"), (b"connect-timeout-ms", b"2000"))
    await Call(HoldfastMiddleware(handler, within(3)), *headers).run()
    assert handler.remaining == pytest.approx(0.4)


async def test_a_route_has_limits_of_its_own() -> None:
    handler = Sleeper()
    policy = within(
        10, Route("/api/v2/payment*", {"request": 2}), Route("/reports*", {"request": 30})
    )
    for path, limit in (("/api/v2/payments/7", 2), ("/reports", 30), ("/", 10)):
        await Call(HoldfastMiddleware(handler, policy), path=path).run()
        assert handler.remaining == pytest.approx(limit)


@pytest.mark.parametrize("value", [b"", b"abc", b"1e9", b"9" * 20, "١٢".encode(), b"1.5", b"\xff"])
async def test_garbage_means_the_limit_of_the_policy_and_is_counted(value: bytes) -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(handler, within(3))
    await Call(app, (DEADLINE, value)).run()
    assert handler.remaining == pytest.approx(3)
    assert app.counts["malformed_header"] == 1


async def test_every_malformed_header_is_counted_once() -> None:
    app = HoldfastMiddleware(quick, within(3))
    await Call(app, (DEADLINE, b"x"), (b"traceparent", b"nonsense"), (b"grpc-timeout", b"-")).run()
    assert app.counts["malformed_header"] == 3


@pytest.mark.parametrize("value", [b"0", b"-5"])
async def test_what_is_expired_on_arrival_does_not_run(value: bytes) -> None:
    handler = Sleeper()
    call = await Call(HoldfastMiddleware(handler, within(3)), (DEADLINE, value)).run()
    assert call.status == 504
    assert handler.began == 0
    assert "deadline-exceeded" in call.headers
    assert call.reads == 0


async def test_too_little_is_refused() -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(handler, within(3, refuse_below=0.5))
    call = await Call(app, (DEADLINE, b"400")).run()
    assert call.status == 504
    assert handler.began == 0
    assert call.problem["note"] == "not begun: 400 ms left"
    await Call(app, (DEADLINE, b"600")).run()
    assert handler.began > 0


async def test_time_spent_before_the_handler_began_counts() -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(handler, within(3))
    call = await Call(app, **{"holdfast.arrival": now() - 1}).run()
    assert handler.remaining == pytest.approx(2)
    assert call.problem["elapsed_ms"] >= 2000
    assert float(call.headers["server-timing"].partition("dur=")[2]) >= 3000
    handler.began = 0
    call = await Call(app, **{"holdfast.arrival": now() - 3}).run()
    assert (call.status, handler.began) == (504, 0)


async def test_an_arrival_in_the_future_gives_no_time() -> None:
    handler = Sleeper()
    await Call(HoldfastMiddleware(handler, within(3)), **{"holdfast.arrival": now() + 9}).run()
    assert handler.remaining == pytest.approx(3)


async def test_grace_is_carved_out_of_the_limit() -> None:
    ended: list[float] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        begun = now()
        try:
            await asyncio.sleep(100)
        finally:
            async with holdfast.shield(grace=1):
                await asyncio.sleep(0.5)
            ended.append(now() - begun)

    call = await Call(HoldfastMiddleware(handler, within(3, grace=1.0))).run()
    assert call.status == 504
    assert ended == [pytest.approx(2.5, abs=0.1)]


# -- the answer ---------------------------------------------------------------------------------


async def test_the_problem_document_says_everything() -> None:
    app = HoldfastMiddleware(Sleeper(), within(3))
    headers = ((DEADLINE, b"2000"), (b"x-request-id", b"mine"))
    call = await Call(app, *headers, path="/orders/7", method="POST").run()
    assert call.status == 504
    assert call.headers["content-type"] == "application/problem+json"
    assert int(call.headers["content-length"]) == len(call.body)
    assert call.headers["cache-control"] == "no-store"
    assert call.headers["x-request-id"] == "mine"
    assert call.headers["server-timing"].startswith("shop;dur=20")
    assert "hop=shop; scope=POST%20/orders/7; budget-ms=2000" in call.headers["deadline-exceeded"]
    problem = call.problem
    assert problem["type"] == "urn:holdfast:problem:deadline-exceeded"
    assert problem["status"] == 504
    assert problem["kind"] == "deadline"
    assert problem["scope"] == "POST /orders/7"
    assert problem["hop"] == "shop"
    assert problem["budget_ms"] == 2000
    assert problem["request_id"] == "mine"
    assert app.counts["ended.deadline"] == 1


async def test_the_problem_names_the_hops_below_that_were_heard_of() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        ledger = ambient.ledger()
        assert ledger is not None
        ledger.note("payments", 0.5)
        ledger.blame(Cause(CauseKind.DEADLINE, "GET /pay", "payments", budget=0.5, elapsed=0.5))
        await asyncio.sleep(100)

    call = await Call(HoldfastMiddleware(handler, within(3)), (DEADLINE, b"1000")).run()
    assert [below["hop"] for below in call.problem["below"]] == ["payments"]
    assert "hop=payments" in call.headers["deadline-exceeded"]
    assert "shop.payments;dur=500" in call.headers["server-timing"]


@pytest.mark.parametrize(
    "evil", [b"a\r\nset-cookie: x=1", b"a\nb", b"\x00", b"\xc3\xa4", b"x" * 200]
)
async def test_a_request_id_that_is_no_header_value_is_not_echoed(evil: bytes) -> None:
    for handler in (quick, Sleeper()):
        call = await Call(HoldfastMiddleware(handler, within(1)), (b"x-request-id", evil)).run()
        echoed = call.headers["x-request-id"]
        assert len(echoed) == 32
        assert all(c in "0123456789abcdef" for c in echoed)


async def test_a_path_cannot_forge_lines_of_the_log_or_headers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = "/a\nholdfast.asgi: forged\r\nset-cookie: x\x1b[31m"
    with caplog.at_level(logging.INFO, "holdfast.asgi"):
        call = await Call(HoldfastMiddleware(Sleeper(), within(1)), path=path).run()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].isprintable()
    for name, value in call.sent[0]["headers"]:
        assert b"\n" not in name + value
        assert b"\r" not in name + value


async def test_responses_of_the_handler_get_name_and_timing_and_keep_the_rest() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"ok", (b"x-own", b"1"), status=201)

    call = await Call(HoldfastMiddleware(handler, within(1))).run()
    assert call.status == 201
    assert call.headers["x-own"] == "1"
    assert len(call.headers["x-request-id"]) == 32
    assert "shop;dur=" in call.headers["server-timing"]


async def test_a_request_id_that_the_handler_sets_stays() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"", (b"x-request-id", b"own"))

    call = await Call(HoldfastMiddleware(handler, within(1))).run()
    assert [v for n, v in call.sent[0]["headers"] if n == b"x-request-id"] == [b"own"]


async def test_messages_of_the_handler_are_not_changed_in_place() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send({"type": "http.response.body"})

    await Call(HoldfastMiddleware(handler, within(1))).run()
    assert start["headers"] == [(b"a", b"b")]


# -- handlers that behave badly -----------------------------------------------------------------


async def test_a_handler_that_swallows_its_cancellation_is_answered_for() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                continue
        await reply(send, b"late")

    app = HoldfastMiddleware(handler, within(1))
    call = await Call(app).run()
    assert call.status == 504
    assert call.took == pytest.approx(1, abs=0.05)
    assert b"late" not in call.body
    assert app.counts["overdue"] == 1
    assert holdfast.tree().counts["swallowed"] >= 1


async def test_a_handler_that_answers_late_without_ever_waiting_is_too_late() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        loop: Any = asyncio.get_running_loop()
        loop.jump(2)  # blocks the loop for two seconds
        await reply(send, b"late")

    call = await Call(HoldfastMiddleware(handler, within(1))).run()
    assert call.status == 504
    assert b"late" not in call.body


async def test_what_a_clean_up_raises_goes_to_the_server_and_the_client_gets_its_504() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raise ValueError("clean-up failed")

    app = HoldfastMiddleware(handler, within(1))
    call = Call(app)
    with pytest.raises(ValueError, match="clean-up failed"):
        await call.run()
    assert call.status == 504
    assert call.whole
    assert app.counts["ended.deadline"] == 1


async def test_what_a_handler_raises_in_time_goes_to_the_server_untouched() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("boom")

    call = Call(HoldfastMiddleware(handler, within(1)))
    with pytest.raises(ValueError, match="boom"):
        await call.run()
    assert call.sent == []


@pytest.mark.parametrize("wrap", [0, 1, 2])
async def test_an_error_of_ours_that_leaves_the_handler_is_the_504(wrap: int) -> None:
    async def fails() -> None:
        async with holdfast.timeout(0.5, name="inner"):
            await asyncio.sleep(9)

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        if not wrap:
            return await fails()
        async with asyncio.TaskGroup() as group:
            for _ in range(wrap):
                group.create_task(fails())

    # In a task of its own, as on a server: TaskGroup of 3.11 leaves a cancellation on its task.
    call = await Call(HoldfastMiddleware(handler, within(5))).start()
    assert call.status == 504
    assert call.problem["scope"] == "GET //inner"


async def test_a_group_with_an_error_of_another_kind_is_no_504() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        late = holdfast.DeadlineExceeded(Cause(CauseKind.DEADLINE, "x"))
        raise ExceptionGroup("both", [late, ValueError()])

    with pytest.raises(ExceptionGroup):
        await Call(HoldfastMiddleware(handler, within(5))).run()


async def test_an_error_page_for_an_error_of_ours_becomes_the_504() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            async with holdfast.timeout(0.5, name="inner"):
                await asyncio.sleep(9)
        except TimeoutError:
            await reply(send, b"internal error", status=500)

    app = HoldfastMiddleware(handler, within(5))
    call = await Call(app).run()
    assert call.status == 504
    assert call.problem["scope"].endswith("/inner")
    assert app.counts["ended.deadline"] == 1


async def test_an_answer_below_500_for_an_error_of_ours_is_the_handlers_choice() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            async with holdfast.timeout(0.5, name="inner"):
                await asyncio.sleep(9)
        except TimeoutError:
            await reply(send, b"partial", status=206)

    call = await Call(HoldfastMiddleware(handler, within(5))).run()
    assert (call.status, call.body) == (206, b"partial")


async def test_an_answer_under_way_is_finished_before_the_application_returns() -> None:
    # A server takes the return of its application for the end of the response.
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.03)

    call = Call(HoldfastMiddleware(handler, within(1)))
    call.slow = 0.5
    await call.run()
    assert call.status == 504
    assert call.whole


@pytest.mark.real_time  # virtual time stands still while somebody is busy
async def test_a_handler_that_only_sends_can_still_be_stopped() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)  # until it was answered for
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})

    call = await Call(HoldfastMiddleware(handler, within(0.05))).run()
    assert call.status == 504


async def test_a_foreign_cancellation_is_no_affair_of_ours() -> None:
    task = Call(HoldfastMiddleware(Sleeper(), within(5))).start()
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- a response that has begun ------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
async def test_a_begun_response_is_never_made_to_look_whole(ends: bool) -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        try:
            await asyncio.sleep(100)
        finally:
            if ends:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b""})

    app = HoldfastMiddleware(handler, within(1))
    call = await Call(app).run()
    assert call.status == 200
    assert not call.whole
    assert app.counts["ended.deadline"] == 1


@pytest.mark.parametrize("kind", ["http.response.body", "http.response.pathsend"])
async def test_after_the_response_neither_deadline_nor_disconnect_ends_the_handler(
    kind: str,
) -> None:
    done: list[str] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": kind})
        await asyncio.sleep(50)
        done.append(holdfast.current().identity.echo_id)

    call = Call(HoldfastMiddleware(handler, within(1)), (b"x-request-id", b"me"))
    task = call.start()
    await asyncio.sleep(0.5)
    call.leave()
    await task
    assert done == ["me"]
    assert call.status == 200


async def test_an_event_stream_is_cut_when_it_idles() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for pause in (1, 1, 1, 5):
            await send({"type": "http.response.body", "body": b"data\n\n", "more_body": True})
            await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b"end"})

    call = await Call(HoldfastMiddleware(handler, within(2, idle=1.5))).run()
    assert call.body == b"data\n\n" * 4
    assert not call.whole


async def test_a_stream_by_route_idles_even_before_it_has_begun() -> None:
    handler = Sleeper()
    policy = within(2, Route("/s", {"idle": 7}, stream=True))
    call = await Call(HoldfastMiddleware(handler, policy), path="/s").run()
    assert call.status == 504
    assert handler.left - handler.began == pytest.approx(7, abs=0.1)
    assert "nothing was sent or read for 7 s" in call.problem["note"]


async def test_a_stream_keeps_to_what_its_caller_set() -> None:
    handler = Sleeper()
    policy = within(2, Route("/s", {"idle": 7}, stream=True))
    await Call(HoldfastMiddleware(handler, policy), (DEADLINE, b"4000"), path="/s").run()
    assert handler.left - handler.began == pytest.approx(4, abs=0.1)


# -- a client that leaves -----------------------------------------------------------------------


async def test_nothing_is_sent_to_a_client_that_left(caplog: pytest.LogCaptureFixture) -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(handler, within(10))
    call = Call(app, (b"x-request-id", b"me"), path="/x")
    task = call.start()
    await asyncio.sleep(1)
    with caplog.at_level(logging.INFO, "holdfast.asgi"):
        call.leave()
        await task
    assert handler.cancelled
    assert call.sent == []
    assert app.counts["disconnected"] == app.counts["ended.client_disconnected"] == 1
    assert caplog.messages[0].startswith("499 GET /x request_id=me: the client disconnected")


async def test_a_handler_that_is_told_has_a_second_to_end_by_itself() -> None:
    ends: list[object] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told = now()
        try:
            await asyncio.sleep(scope["wait"])
        finally:
            ends.append(round(now() - told, 1))

    for wait in (0.5, 30):
        call = Call(HoldfastMiddleware(handler, within(10)), wait=wait)
        task = call.start()
        await asyncio.sleep(0.2)
        call.leave()
        await task
        assert call.sent == []
    assert ends == [0.5, 1.0]


@pytest.mark.parametrize("pause", [0.0, 0.005, 0.05])
async def test_no_part_of_a_body_is_lost_or_turned_around(pause: float) -> None:
    parts = [bytes([65 + n]) * (n * 3000 + 1) for n in range(26)]
    found: list[bytes] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            await asyncio.sleep(pause)
            message = await receive()
            found.append(message["body"])
            more = message["more_body"]
        await reply(send)

    call = Call(HoldfastMiddleware(handler, within(100)), body=())
    task = call.start()
    for number, part in enumerate(parts):
        await asyncio.sleep(0.013)
        more = number < len(parts) - 1
        call.incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
    await task
    assert found == parts
    assert call.status == 200


async def test_a_read_that_is_given_up_loses_nothing() -> None:
    found: list[bytes] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        while len(found) < 5:
            try:
                async with asyncio.timeout(0.007):
                    found.append((await receive())["body"])
            except TimeoutError:
                continue
        await reply(send)

    call = Call(HoldfastMiddleware(handler, within(100)), body=())
    task = call.start()
    for number in range(5):
        await asyncio.sleep(0.05)
        call.incoming.put_nowait(
            {"type": "http.request", "body": b"%d" % number, "more_body": True}
        )
    await task
    assert found == [b"0", b"1", b"2", b"3", b"4"]


async def test_reading_ahead_stops_at_a_bound() -> None:
    part = {"type": "http.request", "body": b"x" * 20_000, "more_body": True}
    call = Call(HoldfastMiddleware(Sleeper(5), within(10)), body=(part,) * 100)
    await call.run()
    assert call.reads * 20_000 < 200_000


async def test_messages_without_a_body_count_too() -> None:
    part = {"type": "http.request", "body": b"", "more_body": True}
    call = Call(HoldfastMiddleware(Sleeper(5), within(10)), body=(part,) * 5000)
    await call.run()
    assert call.reads < 2000


async def test_a_quick_request_is_never_read_ahead() -> None:
    call = await Call(HoldfastMiddleware(quick, within(10))).run()
    assert call.reads == 0


async def test_a_server_whose_receive_raises_takes_nothing_down() -> None:
    call = Call(HoldfastMiddleware(Sleeper(1), within(10)))

    async def broken() -> Any:
        raise RuntimeError("the server is broken")

    await call.app(call.scope, broken, call.send)
    assert call.status == 200


# -- WebSockets ---------------------------------------------------------------------------------

CONNECT = {"type": "websocket.connect"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def test_a_websocket_outlives_the_limit_of_requests() -> None:
    call = Call(HoldfastMiddleware(echo, within(2, idle=10)), kind="websocket", body=(CONNECT,))
    task = call.start()
    for number in range(5):
        await asyncio.sleep(4)
        call.incoming.put_nowait({"type": "websocket.receive", "text": str(number)})
    await asyncio.sleep(1)
    call.leave()
    await task
    assert [m["text"] for m in call.sent[1:]] == ["0", "1", "2", "3", "4"]


async def test_a_websocket_that_idles_is_closed_with_1001() -> None:
    app = HoldfastMiddleware(echo, within(2, idle=10))
    call = await Call(app, kind="websocket", body=(CONNECT,)).run()
    assert call.sent[-1]["type"] == "websocket.close"
    assert call.sent[-1]["code"] == 1001
    assert len(call.sent[-1]["reason"].encode()) <= 123
    assert now() - call.begun == pytest.approx(10, abs=0.1)


async def test_a_client_that_leaves_is_seen_while_another_cancellation_is_under_way() -> None:
    scopes: list[holdfast.Scope] = []

    async def lingers() -> None:
        with suppress(holdfast.Cancelled):
            async with holdfast.scope("lingers") as scope:
                scopes.append(scope)
                try:
                    await asyncio.sleep(100)
                finally:
                    async with holdfast.shield(30):
                        await asyncio.sleep(20)

    other = asyncio.ensure_future(lingers())
    await asyncio.sleep(0)
    scopes[0].cancel("and it takes its time")
    handler = Sleeper()
    call = Call(HoldfastMiddleware(handler, within(10)))
    task = call.start()
    await asyncio.sleep(1)
    call.leave()
    await task
    assert handler.cancelled
    assert now() - call.begun == pytest.approx(1, abs=0.1)
    await other


async def test_a_websocket_handler_at_work_is_cancelled_when_its_client_leaves() -> None:
    handler = Sleeper()
    call = Call(HoldfastMiddleware(handler, within(2)), kind="websocket", body=(CONNECT,))
    task = call.start()
    await asyncio.sleep(1)
    call.leave()
    await task
    assert handler.cancelled
    assert call.sent == []


async def test_a_websocket_handler_that_reads_the_disconnect_is_not_cancelled() -> None:
    done: list[bool] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        await asyncio.sleep(20)
        done.append(True)

    call = Call(HoldfastMiddleware(handler, within(2)), kind="websocket", body=(CONNECT,))
    task = call.start()
    await asyncio.sleep(1)
    call.leave()
    await task
    assert done == [True]


async def test_an_expired_websocket_is_closed_before_it_is_accepted() -> None:
    call = await Call(
        HoldfastMiddleware(echo, within(2)), (DEADLINE, b"0"), kind="websocket", body=(CONNECT,)
    ).run()
    assert [m["type"] for m in call.sent] == ["websocket.close"]


# -- the policy ---------------------------------------------------------------------------------


async def test_a_new_policy_is_for_new_requests() -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(handler, within(4))
    old = Call(app)
    task = old.start()
    await asyncio.sleep(1)
    app.policy = within(1)
    new = await Call(app).run()
    await task
    assert new.took == pytest.approx(1, abs=0.05)
    assert old.took == pytest.approx(4, abs=0.05)


async def test_mode_off_touches_nothing() -> None:
    seen: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))
        await reply(send)

    call = await Call(HoldfastMiddleware(handler, Policy(mode="off")), (DEADLINE, b"0")).run()
    assert seen == [call.scope, call.receive, call.send]
    assert set(call.headers) == set()


async def test_mode_observe_counts_and_cuts_nothing() -> None:
    handler = Sleeper(5)
    app = HoldfastMiddleware(handler, Policy(mode="observe", defaults=Limits(request=3, header=3)))
    call = await Call(app, (b"x-request-id", b"me")).run()
    assert call.status == 200
    assert call.headers["x-request-id"] == "me"
    assert handler.remaining == float("inf")
    assert app.counts["would_exceed"] == 1
    await Call(app, (DEADLINE, b"0")).run()
    assert app.counts["would_exceed"] == 2
    gone = Call(app)
    task = gone.start()
    await asyncio.sleep(0.5)
    gone.leave()
    await task
    assert not handler.cancelled
    assert app.counts["disconnected"] == 1
    quiet = HoldfastMiddleware(quick, Policy(mode="observe"))
    await Call(quiet).run()
    assert quiet.counts["would_exceed"] == 0


@pytest.mark.parametrize("kind", ["lifespan", "something.new"])
async def test_other_kinds_of_scope_pass_through_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def handler(*given: Any) -> None:
        seen.extend(given)

    given = ({"type": kind}, object(), object())
    await HoldfastMiddleware(handler)(*given)  # type: ignore[arg-type]
    assert seen == list(given)


# -- the debug page -----------------------------------------------------------------------------


async def test_the_debug_page_is_off_unless_asked_for() -> None:
    call = await Call(HoldfastMiddleware(quick), path="/debug/holdfast/tree").run()
    assert call.body == b"ok"


@pytest.mark.parametrize(
    ("client", "status"),
    [
        (("127.0.0.1", 1), 200),
        (("::1", 1), 200),
        (("10.0.0.9", 1), 403),
        (("testclient", 1), 403),
        (None, 403),
    ],
)
async def test_the_debug_page_is_for_this_machine_only(client: Any, status: int) -> None:
    app = HoldfastMiddleware(quick, debug=True)
    call = await Call(app, path="/debug/holdfast/tree", client=client).run()
    assert call.status == status


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"])
async def test_who_comes_through_a_proxy_is_not_of_this_machine(name: bytes) -> None:
    app = HoldfastMiddleware(quick, debug=True)
    call = await Call(app, (name, b"203.0.113.9"), path="/debug/holdfast/tree").run()
    assert call.status == 403


async def test_the_debug_page_shows_open_requests() -> None:
    app = HoldfastMiddleware(Sleeper(5), within(10), debug=True)
    task = Call(app, (b"x-request-id", b"me"), path="/open").start()
    await asyncio.sleep(0.1)
    assert b"GET /open" in (await Call(app, path="/debug/holdfast/tree").run()).body
    page = await Call(app, path="/debug/holdfast/tree.json").run()
    assert page.problem["roots"][0]["children"][0]["name"] == "GET /open"
    assert (await Call(app, path="/debug/holdfast/else").run()).status == 404
    await task


# -- identity -----------------------------------------------------------------------------------

TRACE = b"0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("header", "echo_id"),
    [
        ((b"traceparent", b"00-" + TRACE + b"-b7ad6b7169203331-01"), TRACE),
        ((b"b3", TRACE + b"-b7ad6b7169203331-1"), TRACE),
        ((b"x-request-id", TRACE), TRACE),
        ((b"x-request-id", b"0af76519-16cd-43dd-8448-eb211c80319c"), None),
    ],
)
async def test_one_number_is_request_id_and_trace_id(header: Header, echo_id: bytes | None) -> None:
    seen: list[Any] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen.append(holdfast.current().identity)
        await reply(send)

    call = await Call(HoldfastMiddleware(handler), header).run()
    assert seen[0].request_id == seen[0].trace_id == TRACE.decode()
    assert call.headers["x-request-id"] == (echo_id or header[1]).decode()


@pytest.mark.parametrize("trusted", [False, True])
async def test_the_stage_is_believed_only_where_it_is_trusted(trusted: bool) -> None:
    seen: list[str] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen.append(holdfast.current().stage)
        await reply(send)

    policy = Policy(wire=WireSettings(trust_stage=trusted))
    await Call(HoldfastMiddleware(handler, policy), (b"x-release-stage", b"canary")).run()
    assert seen == ["canary" if trusted else ""]


async def test_a_websocket_has_an_identity_for_all_that_it_starts() -> None:
    seen: list[str] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        async def work() -> None:
            seen.append(holdfast.current().identity.echo_id)

        await asyncio.create_task(work())
        seen.append(await asyncio.to_thread(lambda: holdfast.current().identity.echo_id))
        seen.append(holdfast.current().identity.echo_id)

    app = HoldfastMiddleware(handler)
    await Call(app, (b"x-request-id", b"me"), kind="websocket", body=(CONNECT,)).run()
    assert seen == ["me"] * 3


async def test_two_hundred_requests_at_once_are_never_mixed_up() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen = set()
        for _ in range(5):
            await asyncio.sleep(0.01 * (hash(scope["path"]) % 7))
            async with holdfast.timeout(5), holdfast.tasks() as group:
                task = group.start(who())
            seen |= {holdfast.current().identity.echo_id, task.result()}
        await reply(send, json.dumps(sorted(seen)).encode())

    async def who() -> str:
        await asyncio.sleep(0.001)
        return holdfast.current().identity.echo_id

    app = HoldfastMiddleware(handler, within(50))
    calls = [Call(app, (b"x-request-id", b"r%d" % n), path=f"/{n}") for n in range(200)]
    await asyncio.gather(*(call.run() for call in calls))
    for number, call in enumerate(calls):
        assert json.loads(call.body) == [f"r{number}"]
        assert call.headers["x-request-id"] == f"r{number}"


# -- where a request begins ---------------------------------------------------------------------


async def test_a_pipelined_request_is_no_part_of_the_one_before() -> None:
    # uvicorn starts it from within the last `send` of the one before, and so in its context.
    second: list[Call] = []
    tasks: list[asyncio.Task[Any]] = []
    handler = Sleeper(3)

    async def first(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/second":
            return await handler(scope, receive, send)
        await reply(send)
        await asyncio.sleep(0.5)

    app = HoldfastMiddleware(first, within(2))

    class Pipelined(Call):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                second.append(Call(app, (DEADLINE, b"1000"), path="/second"))
                tasks.append(second[0].start())

    await Pipelined(app).run()
    tree = str(holdfast.tree())
    assert "GET /second" in tree
    assert "from" not in tree
    await asyncio.gather(*tasks)
    assert handler.remaining == pytest.approx(1)
    assert "escaped" not in holdfast.tree().counts


async def test_requests_of_one_connection_do_not_chain_up() -> None:
    # A transport that was paused goes on in the context of the request that resumed it.
    contexts: list[contextvars.Context] = []
    outers: list[object] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        contexts.append(contextvars.copy_context())
        outers.append(ambient.AMBIENT.get().outer)  # type: ignore[union-attr]
        await reply(send)

    app = HoldfastMiddleware(handler)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        context = contexts[-1] if contexts else contextvars.Context()
        await loop.create_task(Call(app).run(), context=context)
    assert outers == [None] * 5


async def test_a_middleware_within_a_middleware_nests() -> None:
    handler = Sleeper()
    app = HoldfastMiddleware(HoldfastMiddleware(handler, within(9)), within(2))
    call = await Call(app).run()
    assert call.status == 504
    assert handler.remaining == pytest.approx(2)


# -- nothing is left ----------------------------------------------------------------------------


async def test_of_two_thousand_requests_nothing_is_left() -> None:
    handler = Sleeper(2)
    app = HoldfastMiddleware(handler, within(10))
    calls = [Call(app) for _ in range(2000)]
    tasks = [call.start() for call in calls]
    await asyncio.sleep(1)
    assert len(holdfast.tree()) == 2000
    for call in calls[::2]:
        call.leave()
    await asyncio.gather(*tasks)
    assert [call.sent == [] for call in calls] == [n % 2 == 0 for n in range(2000)]
    assert app.counts["disconnected"] == 1000
    assert len(holdfast.tree()) == 0
    assert len(asyncio.all_tasks()) == 1
