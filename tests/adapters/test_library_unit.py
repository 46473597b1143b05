"""Library mode without a server: what it says to one, in virtual time."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi import LifecycleMiddleware
from holdfast.runtime import lifecycle
from holdfast.runtime.chained import ChainedSignals
from holdfast.runtime.signals.note import SignalNote
from tests.adapters.embedding import Story


class Server:
    """As much of a server as a lifespan needs."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.said: list[dict[str, Any]] = []
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.answered = asyncio.Event()
        self.state: dict[str, Any] = {}

    async def _send(self, message: Any) -> None:
        self.said.append(message)
        self.answered.set()

    async def _tell(self, kind: str) -> str:
        self.answered.clear()
        self.inbox.put_nowait({"type": kind})
        await self.answered.wait()
        found: str = self.said[-1]["type"]
        return found

    async def start(self) -> str:
        scope = {"type": "lifespan", "state": self.state}
        self.task = asyncio.create_task(self.app(scope, self.inbox.get, self._send))
        return await self._tell("lifespan.startup")

    async def stop(self) -> str:
        found = await self._tell("lifespan.shutdown")
        await self.task
        return found

    async def get(self, path: str) -> int:
        status: int = (await self._ask(path))[0]["status"]
        return status

    async def page(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self._ask(path))[1]["body"])
        return found

    async def _ask(self, path: str) -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "method": "GET", "http_version": "1.1"}
        await self.app({**scope, "headers": []}, receive, send)
        return sent


@pytest.fixture
def handler() -> Iterator[list[int]]:
    """The handlers of a server."""
    heard: list[int] = []

    def handle(number: int, frame: Any) -> None:
        heard.append(number)

    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    yield heard
    for number, old in before.items():
        signal.signal(number, old)


async def test_one_middleware_lives_as_often_as_the_server_starts_it() -> None:
    story = Story()
    app = LifecycleMiddleware(story)
    for _ in range(2):
        server = Server(app)
        assert await server.start() == "lifespan.startup.complete"
        assert app.host is lifecycle.current()
        assert await server.get("/readyz") == 200
        assert await server.get("/") == 200
        assert await server.stop() == "lifespan.shutdown.complete"
        assert app.host is not None
        assert app.host.phase is lifecycle.Phase.STOPPED
    assert story.lines == ["startup", "shutdown"] * 2


async def test_where_a_host_runs_already_it_does_nothing() -> None:
    story = Story()
    outer = lifecycle.Host("serve")
    await outer.start()
    server = Server(LifecycleMiddleware(story))
    assert await server.start() == "lifespan.startup.complete"
    assert lifecycle.current() is outer
    assert await server.get("/") == 200
    assert await server.stop() == "lifespan.shutdown.complete"
    assert not outer.stopping
    outer.stop()
    await outer.ended()


async def test_without_lifespan_and_signals_requests_are_served_and_no_host_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = LifecycleMiddleware(Story())
    server = Server(app)
    assert await server.get("/") == 200
    assert await server.get("/readyz") == 200
    assert app.host is None
    assert "cannot be taken" in caplog.text


def test_under_a_test_client_that_is_said_once_and_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = LifecycleMiddleware(Story())

    async def lives() -> None:
        server = Server(app)
        await server.start()
        await server.stop()

    with caplog.at_level(logging.INFO, logger="holdfast.lifecycle"):
        for _ in range(3):
            thread = threading.Thread(target=lambda: asyncio.run(lives()))
            thread.start()
            thread.join()
    told = [r for r in caplog.records if "cannot be taken" in r.getMessage()]
    assert [r.levelname for r in told] == ["INFO"]
    assert "main thread" in told[0].getMessage()


async def test_a_server_whose_signals_cannot_be_taken_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = LifecycleMiddleware(Story())
    for _ in range(2):
        server = Server(app)
        await server.start()
        await server.stop()
    told = [r for r in caplog.records if "cannot be taken" in r.getMessage()]
    assert [r.levelname for r in told] == ["WARNING"]


@pytest.mark.parametrize(("details", "expected"), [(True, "SIGTERM"), (False, "draining")])
async def test_the_page_of_readiness_tells_nobody_who_sent_the_signal(
    handler: list[int], monkeypatch: pytest.MonkeyPatch, details: bool, expected: str
) -> None:
    note = SignalNote(15, "SIGTERM", 0.0, 812, 1000, "SI_USER", "bash", "bash -i")
    monkeypatch.setattr("holdfast.adapters.asgi.session.describe", lambda number: note)
    app = LifecycleMiddleware(Story(), details=details)
    server = Server(app)
    await server.start()
    host = lifecycle.current()
    cut: list[str] = []

    async def work() -> None:
        try:
            async with holdfast.timeout(3600, name="request"):
                await asyncio.sleep(3600)
        except holdfast.ScopeEnded as error:
            cut.append(error.cause.line())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGTERM)
    await host.stop_begun()
    await asyncio.sleep(0.1)
    assert (await server.page("/readyz"))["why"] == expected
    assert host.cause == "SIGTERM: from process 812 (bash) of user 1000"
    await server.stop()
    await task
    assert len(cut) == 1
    assert "812" not in cut[0]
    assert "bash" not in cut[0]


async def test_a_shutdown_that_fails_is_told_and_the_rest_is_done() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "the disk is full"})

    done: list[str] = []

    def make() -> lifecycle.Host:
        host = lifecycle.Host()
        host.add("pool", stop=lambda: done.append("pool"))
        return host

    server = Server(LifecycleMiddleware(app, host=make))
    await server.start()
    assert await server.stop() == "lifespan.shutdown.failed"
    assert server.said[-1]["message"] == "the disk is full"
    assert done == ["pool"]


async def test_the_first_signal_comes_later_and_the_server_hears_the_same(
    handler: list[int],
) -> None:
    loop = asyncio.get_running_loop()
    server = Server(LifecycleMiddleware(Story()))
    await server.start()
    host = lifecycle.current()
    begun = loop.time()
    signal.raise_signal(signal.SIGTERM)
    await host.stop_begun()
    assert handler == []
    assert await server.get("/readyz") == 503
    await asyncio.sleep(begun + 0.99 - loop.time())
    assert handler == []
    await asyncio.sleep(0.02)  # the quiet window is over
    assert handler == [signal.SIGTERM]
    assert await server.stop() == "lifespan.shutdown.complete"
    assert host.code is lifecycle.ExitCode.CLEAN


async def test_two_signals_are_two(handler: list[int]) -> None:
    server = Server(LifecycleMiddleware(Story()))
    await server.start()
    host = lifecycle.current()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert handler == [signal.SIGTERM, signal.SIGINT]
    await server.stop()
    assert host.code is lifecycle.ExitCode.FORCED
    signal.raise_signal(signal.SIGTERM)  # from here on the server is by itself again
    assert handler == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]


async def test_signals_of_a_loop_and_of_other_threads_are_not_taken() -> None:
    loop = asyncio.get_running_loop()
    assert "no handler" in ChainedSignals(loop, lambda _: None).take()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    try:
        assert "event loop" in ChainedSignals(loop, lambda _: None).take()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(ChainedSignals(loop, lambda _: None).take())
    )
    thread.start()
    thread.join()
    assert "main thread" in found[0]


async def test_a_server_that_stopped_reading_signals_hears_them_from_a_closed_loop(
    handler: list[int],
) -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    chained = ChainedSignals(closed, lambda _: None)
    assert chained.take() == ""
    signal.raise_signal(signal.SIGTERM)
    assert handler == [signal.SIGTERM]
    chained.give_back()
