"""The gate and its drain, in virtual time and without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi import Gate, HoldfastMiddleware
from holdfast.adapters.asgi.gate import ClientDisconnected
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.runtime import lifecycle
from holdfast.runtime.gated import GatedDrain

TERMS = DrainTerms(calm=0.5, most=3.0, quiet=1.0, farewell=0.5, unwinding=1.0)


def now() -> float:
    return asyncio.get_running_loop().time()


class Client:
    """One request or WebSocket, with what came back."""

    def __init__(self, kind: str = "http", path: str = "/", version: str = "1.1") -> None:
        self.scope: dict[str, Any] = {
            "type": kind,
            "path": path,
            "method": "GET",
            "http_version": version,
            "headers": [],
        }
        if kind == "websocket":
            del self.scope["method"]
        self.sent: list[dict[str, Any]] = []
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def call(self, app: Any) -> asyncio.Task[None]:
        if self.scope["type"] == "websocket":
            self.inbox.put_nowait({"type": "websocket.connect"})
        else:
            self.inbox.put_nowait({"type": "http.request", "body": b""})
        return asyncio.create_task(app(self.scope, self.inbox.get, self.send))

    @property
    def status(self) -> int:
        found: int = self.sent[0]["status"]
        return found

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = self.sent[0]["headers"]
        return found

    @property
    def codes(self) -> list[int]:
        return [each["code"] for each in self.sent if each["type"] == "websocket.close"]


class App:
    """An application that does as the path says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self.socket(receive, send)
            return
        what, _, seconds = scope["path"][1:].partition("/")
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"Connection", b"keep-alive"), (b"x-own", b"1")],
        }
        if what == "late":
            await send(start)
        try:
            await asyncio.sleep(float(seconds or 0))
        except asyncio.CancelledError:
            self.lines.append("cancelled")
            raise
        finally:
            self.lines.append("cleaned up")
        if what != "late":
            await send(start)
        await send({"type": "http.response.body", "body": b"ok"})

    async def socket(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.lines.append(f"disconnect {message['code']}")
                return
            await send({"type": "websocket.send", "text": message["text"]})


def told() -> tuple[list[str], Callable[..., None]]:
    steps: list[str] = []

    def tell(kind: str, subject: str, detail: str = "", **data: object) -> None:
        assert kind == "drain.step"
        steps.append(subject)

    return steps, tell


async def test_before_the_announcement_nothing_is_changed() -> None:
    gate = Gate(App())
    client = Client()
    await client.call(gate)
    assert client.headers == [(b"Connection", b"keep-alive"), (b"x-own", b"1")]
    assert gate.look()[:2] == (0, 0)
    assert gate.served == 1


async def test_whoever_is_answered_after_the_announcement_is_told() -> None:
    gate = Gate(App())
    before = Client(path="/wait/1")
    task = before.call(gate)
    await asyncio.sleep(0.5)
    assert gate.look().requests == 1
    gate.announce(lambda: None)
    after, two = Client(), Client(version="2")
    await after.call(gate)
    await two.call(gate)
    await task
    for client in (before, after):
        assert client.headers == [(b"x-own", b"1"), (b"connection", b"close")]
    assert (b"connection", b"close") not in two.headers


async def test_an_answer_that_announced_nothing_has_its_turn_again() -> None:
    gate = Gate(App())
    task = Client(path="/late/1").call(gate)
    await asyncio.sleep(0.1)
    gate.announce(lambda: None)
    assert gate.look().latest == now()
    await asyncio.sleep(0.4)
    assert gate.look().latest == now()
    await task
    ended = now()
    await asyncio.sleep(1)
    assert gate.look().latest == ended


async def test_a_handler_that_never_ends_is_cancelled_and_answered_for() -> None:
    app = App()
    gate = Gate(app, retry_after=2.0)
    client, begun = Client(path="/wait/1000"), Client(path="/late/1000")
    tasks = [client.call(gate), begun.call(gate)]
    await asyncio.sleep(0.1)
    gate.announce(lambda: None)
    assert sorted(gate.cut()) == ["GET /late/1000", "GET /wait/1000"]
    await tasks[0]
    assert client.status == 503
    assert dict(client.headers)[b"retry-after"] == b"2"
    assert dict(client.headers)[b"connection"] == b"close"
    assert json.loads(client.sent[1]["body"])["type"] == "urn:holdfast:problem:shutting-down"
    with pytest.raises(asyncio.CancelledError):  # it is the server that cuts the connection
        await tasks[1]
    assert app.lines == ["cancelled", "cleaned up"] * 2
    late = Client()
    await late.call(gate)
    assert late.status == 503
    assert app.lines == ["cancelled", "cleaned up"] * 2


async def test_a_request_in_a_scope_is_cut_through_it() -> None:
    causes: list[holdfast.Cause | None] = []
    lines: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        lifecycle.at_end(lambda outcome, cause: causes.append(cause))
        try:
            await asyncio.sleep(1000)
        finally:
            async with holdfast.shield(grace=0.5):
                await asyncio.sleep(0.1)
                lines.append("cleaned up")

    gate = Gate(HoldfastMiddleware(app))
    client = Client()
    task = client.call(gate)
    await asyncio.sleep(0.1)
    gate.announce(lambda: None)
    gate.cut()
    await task
    assert client.status == 503
    assert lines == ["cleaned up"]
    assert causes[0] is not None
    assert causes[0].kind is holdfast.CauseKind.SHUTDOWN


@pytest.mark.parametrize(("returning", "code"), [(True, 1012), (False, 1001)])
@pytest.mark.parametrize("carried", [False, True])
async def test_websockets_are_told_and_so_are_their_handlers(
    carried: bool, returning: bool, code: int
) -> None:
    app = App()
    gate = Gate(HoldfastMiddleware(app) if carried else app, returning=returning)
    clients = [Client("websocket") for _ in range(20)]
    tasks = [client.call(gate) for client in clients]
    clients[0].inbox.put_nowait({"type": "websocket.receive", "text": "hi"})
    await asyncio.sleep(0.1)
    assert {"type": "websocket.send", "text": "hi"} in clients[0].sent
    gate.announce(lambda: None)
    assert gate.look().sockets == 20
    assert gate.farewell() == 20
    await asyncio.wait_for(asyncio.gather(*tasks), 1)
    assert [client.codes for client in clients] == [[code]] * 20
    assert app.lines == [f"disconnect {code}"] * 20
    assert gate.look().sockets == 0


async def test_a_websocket_that_comes_late_is_turned_away() -> None:
    gate = Gate(App())
    gate.announce(lambda: None)
    early = Client("websocket")
    task = early.call(gate)  # while the lame duck lasts it is welcome
    await asyncio.sleep(0)
    gate.farewell()
    await task
    assert early.codes == [1012]
    late, able = Client("websocket"), Client("websocket")
    able.scope["extensions"] = {"websocket.http.response": {}}
    await late.call(gate)
    await able.call(gate)
    assert [message["type"] for message in late.sent] == ["websocket.close"]
    assert able.status == 503


async def test_one_that_is_not_yet_accepted_is_closed_once_it_is() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(1)
        await send({"type": "websocket.accept"})
        assert (await receive())["code"] == 1012
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "too late"})
        await send({"type": "websocket.close"})  # what it says itself is too late, and no error

    gate = Gate(app)
    client = Client("websocket")
    task = client.call(gate)
    await asyncio.sleep(0.1)
    gate.announce(lambda: None)
    gate.farewell()
    await task
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.close"]


async def test_somebody_elses_cancellation_is_not_taken_for_the_farewell() -> None:
    gate = Gate(App())
    client = Client("websocket")
    task = client.call(gate)
    await asyncio.sleep(0.1)
    task.cancel()
    gate.announce(lambda: None)
    gate.farewell()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- the drain -------------------------------------------------------------------------------------


async def test_the_lame_duck_lasts_for_the_quiet_window_and_until_it_is_calm() -> None:
    gate = Gate(App())
    steps, tell = told()
    drain = GatedDrain(gate, lambda: TERMS, tell)
    begun = now()
    stopped: list[float] = []

    async def clients() -> None:
        for _ in range(10):
            await asyncio.sleep(0.2)
            await Client().call(gate)

    busy = asyncio.create_task(clients())
    drain.begin(begun + 10)
    assert await drain.finish(lambda: stopped.append(now())) == 0
    await busy
    assert stopped == [pytest.approx(begun + 2.0 + 0.5)]
    assert steps == ["announce", "lame_duck_over", "listener_closed", "done"]


async def test_without_requests_it_is_over_after_the_quiet_window() -> None:
    drain = GatedDrain(Gate(App()), lambda: TERMS)
    begun = now()
    drain.begin(begun + 10)
    await drain.finish(lambda: None)
    assert now() == pytest.approx(begun + 1.05)


async def test_the_share_of_the_lame_duck_has_an_end() -> None:
    gate = Gate(App())
    drain = GatedDrain(gate, lambda: TERMS)
    stopped: list[float] = []

    async def clients() -> None:
        while not stopped:
            await asyncio.sleep(0.1)
            await Client().call(gate)

    busy = asyncio.create_task(clients())
    begun = now()
    drain.begin(begun + 10)
    await drain.finish(lambda: stopped.append(now()))
    await busy
    assert stopped == [pytest.approx(begun + 3.0)]


async def test_what_is_in_flight_is_waited_for_and_cut_at_the_deadline() -> None:
    app = App()
    gate = Gate(app)
    steps, tell = told()
    drain = GatedDrain(gate, lambda: TERMS, tell)
    short, endless = Client(path="/wait/4"), Client(path="/wait/1000")
    tasks = [short.call(gate), endless.call(gate)]
    await asyncio.sleep(0)
    begun = now()
    drain.begin(begun + 6)
    assert await drain.finish(lambda: None) == 0
    assert now() == pytest.approx(begun + 6, abs=0.05)
    await asyncio.gather(*tasks)
    assert (short.status, endless.status) == (200, 503)
    assert steps[-2:] == ["deadline", "done"]


async def test_what_does_not_end_when_it_is_cut_is_left_over() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(20)

    gate = Gate(app)
    task = Client().call(gate)
    await asyncio.sleep(0)
    drain = GatedDrain(gate, lambda: TERMS)
    begun = now()
    drain.begin(begun + 5)
    assert await drain.finish(lambda: None) == 1
    assert now() == pytest.approx(begun + 5 + 1, abs=0.05)
    await task


async def test_websockets_are_told_before_the_server_is() -> None:
    gate = Gate(App())
    drain = GatedDrain(gate, lambda: TERMS)
    clients = [Client("websocket") for _ in range(20)]
    tasks = [client.call(gate) for client in clients]
    await asyncio.sleep(0)
    codes: list[list[int]] = []
    drain.begin(now() + 10)
    await drain.finish(lambda: codes.extend(client.codes for client in clients))
    assert codes == [[1012]] * 20
    await asyncio.gather(*tasks)


async def test_whoever_cannot_wait_has_it_cut_at_once() -> None:
    app = App()
    gate = Gate(app)
    steps, tell = told()
    drain = GatedDrain(gate, lambda: TERMS, tell)
    client = Client(path="/wait/1000")
    task = client.call(gate)
    await asyncio.sleep(0)
    begun = now()
    drain.begin(begun + 100)
    asyncio.get_running_loop().call_later(0.3, drain.hurry)
    assert await drain.finish(lambda: None) == 0
    assert now() == pytest.approx(begun + 0.3, abs=0.05)
    await task
    assert client.status == 503
    assert steps == ["announce", "lame_duck_over", "listener_closed", "deadline", "done"]


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_server_that_has_ended_by_itself_is_not_waited_for(stuck: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(20)

    gate = Gate(app)
    tasks = [Client().call(gate)] if stuck else []
    await asyncio.sleep(0)
    drain = GatedDrain(gate, lambda: TERMS)
    begun = now()
    drain.begin(begun + 100)
    asyncio.get_running_loop().call_later(0.1, drain.server_ended)
    assert await drain.finish(lambda: None) == len(tasks)
    assert now() == pytest.approx(begun + (1.1 if stuck else 0.1), abs=0.05)
    await asyncio.gather(*tasks)


async def test_a_drain_that_was_not_begun_cannot_be_finished() -> None:
    with pytest.raises(RuntimeError):
        await GatedDrain(Gate(App())).finish(lambda: None)
