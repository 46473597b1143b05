"""Our requests on httptools against uvicorn's own: the same messages, the same bytes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    HttpToolsProtocol,
)
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn import Settings, head
from holdfast.adapters.uvicorn.head import Defaults, fields
from holdfast.adapters.uvicorn.idling import Idling
from holdfast.adapters.uvicorn.wire_httptools import GuardedHttpTools
from holdfast.domain.instant import NEVER

Message = dict[str, Any]
Script = list[Message]
App = Callable[[Any, Any, Any], Awaitable[Any]]

DEFAULTS = [(b"date", b"Wed, 25 Nov 2026 17:21:38 GMT"), (b"server", b"uvicorn")]


class Terms:
    header = NEVER
    observed = False
    service = ""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and what comes to it after its end."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.1", 4000), "sockname": ("10.0.0.2", 80)})
        self.written: list[bytes] = []
        self.closed = False
        self.paused = 0
        self.protocol: Any = None

    @property
    def content(self) -> bytes:
        return b"".join(self.written)

    def write(self, data: Any) -> None:
        assert not self.closed, "nobody would read this"
        if data:
            self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_protocol(self) -> Any:
        return self.protocol

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % size


TURN: Message = {"type": "(a turn of the loop)"}
SCRIPTS: dict[str, Script] = {
    "one part": [start(length(2)), body(b"ok")],
    "no fields in the messages": [
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body"},
    ],
    "in turns": [start(length(4)), TURN, body(b"ok", True), TURN, body(b"ok")],
    "chunks": [start(), body(b"one", True), body(b"", True), TURN, body(b"three")],
    "an empty end": [start(), body(b"one", True), body()],
    "said to be in chunks": [start((b"Transfer-Encoding", b"Chunked")), body(b"x")],
    "a length and chunks": [start(length(9), (b"transfer-encoding", b"chunked")), body(b"x")],
    "chunks and a length": [start((b"transfer-encoding", b"chunked"), length(9)), body(b"x")],
    "another encoding": [start((b"transfer-encoding", b"gzip")), body(b"x")],
    "a large body": [start(length(100_000)), body(b"x" * 100_000)],
    "a large chunk": [start(), body(b"x" * 100_000)],
    "no content": [start(status=204), body()],
    "not modified": [start((b"etag", b'"x"'), status=304), body()],
    "a status without a name": [start(length(0), status=299), body()],
    "a status that is none": [start(status=99), body()],
    "it closes": [start(length(0), (b"Connection", b"Upgrade, CLOSE")), body()],
    "it says something else": [start(length(0), (b"connection", b"x")), body()],
    "names in capitals": [start((b"X-Custom", b"A\tb"), (b"Content-Length", b"0")), body()],
    "bytes beyond ASCII": [start((b"x", bytes(range(0x80, 0x100))), length(0)), body()],
    "nothing in a value": [start((b"x", b""), length(0)), body()],
    "the same twice": [start((b"set-cookie", b"a"), (b"set-cookie", b"b"), length(0)), body()],
    "a break in a value": [start((b"x", b"a\r\nb: c"), length(0)), body()],
    "a line feed in a value": [start((b"x", b"a\nb"), length(0)), body()],
    "a zero in a value": [start((b"x", b"a\0b"), length(0)), body()],
    "a space in a name": [start((b"a b", b"c"), length(0)), body()],
    "a colon in a name": [start((b"a:", b"c"), length(0)), body()],
    "no number": [start((b"content-length", b"many")), body()],
    "longer than it says": [start(length(1)), body(b"ok")],
    "shorter than it says": [start(length(3)), body(b"ok")],
    "longer in the second part": [start(length(2)), body(b"ok", True), body(b"!")],
    "a body first": [body(b"ok")],
    "a start twice": [start(length(2)), start(length(2))],
    "a start in the body": [start(), body(b"x", True), start()],
    "more than all": [start(length(0)), body(), body()],
    "a start and no more": [start(length(2))],
    "a start, later no more": [start(length(2)), TURN],
    "half a body": [start(length(4)), body(b"ok", True)],
    "nothing": [],
}
REQUESTS = {
    "GET": b"GET /a%20b/c?d=e HTTP/1.1\r\nHost: x\r\n\r\n",
    "HEAD": b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    "1.0": b"GET / HTTP/1.0\r\n\r\n",
    "1.0 that asks to be kept": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "that closes": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "100-continue": b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n",
    "with a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok",
}


def connected(
    app: App, ours: bool, defaults: list[tuple[bytes, bytes]] = DEFAULTS, **options: Any
) -> tuple[Any, Wire]:
    options = {"log_config": None, "access_log": False, **options}
    config = Settings(app, Terms(), **options) if ours else Config(app, **options)
    config.load()
    state = ServerState()
    state.default_headers = defaults
    kind = GuardedHttpTools if ours else HttpToolsProtocol
    protocol = kind(config, state, {"seen": 1}, asyncio.get_running_loop())
    wire = Wire()
    wire.protocol = protocol
    protocol.connection_made(wire)
    return protocol, wire


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def played(request: bytes, script: Script, ours: bool, **options: Any) -> dict[str, Any]:
    """What a client sees of it, and what an application."""
    seen: dict[str, Any] = {"errors": []}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["scope"] = {k: v for k, v in scope.items() if not k.startswith("holdfast.")}
        for message in script:
            if message is TURN:
                await asyncio.sleep(0)
                continue
            try:
                await send(message)
            except Exception as error:
                seen["errors"].append(f"{type(error).__name__}: {error}")
                raise

    protocol, wire = connected(app, ours, **options)
    protocol.data_received(request)
    await turns()
    seen |= {
        "written": wire.content,
        "closed": wire.closed,
        "complete": protocol.cycle.response_complete,
        "tasks": len(protocol.tasks),
        "total": protocol.server_state.total_requests,
    }
    protocol.connection_lost(None)
    return seen


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_it_answers_as_uvicorn_does(
    script: Script, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(ours: bool) -> dict[str, Any]:
        caplog.clear()
        seen = await played(request_, script, ours)
        return seen | {"log": [record.getMessage() for record in caplog.records]}

    assert asyncio.run(main(True)) == asyncio.run(main(False))


@pytest.mark.parametrize(
    "defaults",
    [
        [],
        [(b"X-Named", b"In Capitals")],
        [(b"connection", b"close")],
        [(b"content-length", b"2")],
        [(b"a b", b"c")],
        [(b"a", b"b\r\nc")],
    ],
)
def test_default_headers_are_those_of_uvicorn(defaults: list[tuple[bytes, bytes]]) -> None:
    for script in (SCRIPTS["one part"], SCRIPTS["chunks"]):
        both = [
            asyncio.run(played(REQUESTS["GET"], script, ours, defaults=defaults))
            for ours in (True, False)
        ]
        assert both[0] == both[1]


def test_every_byte_in_a_name_and_in_a_value_is_judged_as_by_uvicorn() -> None:
    for number in range(256):
        byte = bytes([number])
        for header, wrong in (
            ((b"n" + byte, b"v"), HEADER_RE.search(byte)),
            ((b"n", b"v" + byte), HEADER_VALUE_RE.search(byte)),
        ):
            if wrong:
                with pytest.raises(RuntimeError, match="Invalid HTTP header"):
                    fields([header])
            else:
                assert fields([header])[0] == header[0].lower() + b": " + header[1] + b"\r\n"


def test_names_are_kept_in_bounds() -> None:
    for number in range(2000):
        fields([(b"x-%d" % number, b"")])
    kept = head._names  # pyright: ignore[reportPrivateUsage]
    assert len(kept) <= 512
    fields([(b"x" * 1000, b"")])
    assert b"x" * 1000 not in kept


def test_default_headers_are_written_anew_when_they_change() -> None:
    defaults = Defaults()
    first, second = [(b"date", b"1")], [(b"date", b"2")]
    for headers in (first, second, first):
        defaults.take(headers)
        assert defaults.block == b"date: " + headers[0][1] + b"\r\n"


def test_a_short_answer_is_one_write() -> None:
    async def main() -> list[bytes]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            for message in SCRIPTS["one part"]:
                await send(message)

        protocol, wire = connected(app, True)
        protocol.data_received(REQUESTS["GET"])
        await turns()
        protocol.connection_lost(None)
        return wire.written

    (written,) = asyncio.run(main())
    assert written.endswith(b"\r\n\r\nok")


def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    async def main() -> None:
        told = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start(length(2)))
            await told.wait()
            await send(body(b"ok"))

        ends = [connected(app, True) for _ in range(3)]
        for protocol, _ in ends:
            protocol.data_received(REQUESTS["GET"])
        await asyncio.sleep(0)  # the tasks take their first step
        await asyncio.sleep(0)
        assert [wire.content.count(b"\r\n\r\n") for _, wire in ends] == [1, 1, 1]
        told.set()
        await turns()
        assert all(wire.content.endswith(b"\r\n\r\nok") for _, wire in ends)
        for protocol, _ in ends:
            protocol.connection_lost(None)

    asyncio.run(main())


def test_a_head_whose_client_has_gone_is_dropped() -> None:
    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start(length(2)))
            wire.closed = True  # from now on a write is an error
            protocol.connection_lost(None)
            await asyncio.sleep(0)
            await send(body(b"ok"))

        protocol, wire = connected(app, True)
        protocol.data_received(REQUESTS["GET"])
        await turns()
        assert wire.written == []

    asyncio.run(main())


def test_an_error_of_the_parser_comes_behind_a_head_that_was_sent() -> None:
    async def main(ours: bool) -> bytes:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(start(length(2)))
            protocol.data_received(b"\0\r\n\r\n")

        protocol, wire = connected(app, ours)
        protocol.data_received(REQUESTS["GET"])
        await turns()
        protocol.connection_lost(None)
        return wire.content

    assert asyncio.run(main(True)) == asyncio.run(main(False))


@pytest.mark.parametrize("ours", [True, False])
def test_what_is_received(ours: bool) -> None:
    async def main() -> None:
        got: list[Message] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while not got or got[-1].get("more_body"):
                got.append(await receive())
            await send(start(length(0)))
            await send(body())
            got.append(await receive())

        protocol, wire = connected(app, ours)
        protocol.data_received(
            b"POST / HTTP/1.1\r\nExpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        )
        await turns()
        assert wire.content == b"HTTP/1.1 100 Continue\r\n\r\n"
        protocol.data_received(b"one")
        await turns()
        protocol.data_received(b"two")
        protocol.data_received(b"end")
        await turns()
        assert got == [
            {"type": "http.request", "body": b"one", "more_body": True},
            {"type": "http.request", "body": b"twoend", "more_body": False},
            {"type": "http.disconnect"},
        ]
        protocol.connection_lost(None)

    asyncio.run(main())


@pytest.mark.parametrize("ours", [True, False])
def test_whoever_waits_for_a_message_hears_that_the_client_has_gone(ours: bool) -> None:
    async def main() -> None:
        got: list[Message] = []

        async def app(scope: Any, receive: Callable[[], Any], send: Any) -> None:
            await receive()
            both: list[Any] = [asyncio.ensure_future(receive()) for _ in range(2)]
            await asyncio.wait(both)
            got.extend(task.result() for task in both)

        protocol, _ = connected(app, ours)
        protocol.data_received(REQUESTS["GET"])
        await turns()
        protocol.connection_lost(None)
        await turns()
        assert got == [{"type": "http.disconnect"}] * 2

    asyncio.run(main())


def test_a_large_upload_is_held_back_and_let_on() -> None:
    async def main(ours: bool) -> list[int]:
        paused: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0)
            paused.append(wire.paused)
            await receive()
            paused.append(wire.paused)

        protocol, wire = connected(app, ours)
        protocol.data_received(b"POST / HTTP/1.1\r\ncontent-length: 99999\r\n\r\n" + b"x" * 70_000)
        await turns()
        protocol.connection_lost(None)
        return paused

    assert asyncio.run(main(True)) == asyncio.run(main(False)) == [1, 0]


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"X-Forwarded-For: 1.2.3.4\r\n",
        b"X-Forwarded-Proto: https\r\n",
        b"x-forwarded-for: 1.2.3.4, 10.0.0.1\r\nX-FORWARDED-PROTO: https\r\n",
        b"X-Forwarded-Host: 1.2.3.4\r\n",
    ],
)
@pytest.mark.parametrize("trusted", ["*", "10.0.0.1", "127.0.0.1"])
def test_what_a_proxy_says_is_believed_as_by_uvicorn(headers: bytes, trusted: str) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
    both = [
        asyncio.run(played(request, SCRIPTS["one part"], ours, forwarded_allow_ips=trusted))
        for ours in (True, False)
    ]
    assert both[0] == both[1]


def test_a_proxy_is_not_asked_for_the_headers_of_the_request_before() -> None:
    clients: list[Any] = []

    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            clients.append(scope["client"][0])
            for message in SCRIPTS["one part"]:
                await send(message)

        protocol, _ = connected(app, True, forwarded_allow_ips="*")
        assert type(protocol.config.loaded_app) is ProxyHeadersMiddleware
        for headers in (b"", b"x-forwarded-for: 1.2.3.4\r\n", b""):
            protocol.data_received(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            await turns()
        protocol.connection_lost(None)

    asyncio.run(main())
    assert clients == ["10.0.0.1", "1.2.3.4", "10.0.0.1"]


@pytest.mark.parametrize(
    "url",
    [b"/", b"/a?b=c", b"/a?", b"/%C3%A4", b"//a/b", b"/a#b", b"http://x/y?z", b"/" + b"a" * 999],
)
@pytest.mark.parametrize("root", ["", "/root"])
def test_addresses_are_taken_apart_as_by_uvicorn(url: bytes, root: str) -> None:
    request = b"GET " + url + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    one = SCRIPTS["one part"]
    both = [asyncio.run(played(request, one, o, root_path=root)) for o in (True, True, False)]
    assert both[0] == both[1] == both[2]


def test_too_many_at_once_are_refused_as_by_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    one = SCRIPTS["one part"]
    both = [
        asyncio.run(played(REQUESTS["GET"], one, ours, limit_concurrency=1))
        for ours in (True, False)
    ]
    assert both[0] == both[1]
    assert b" 503 " in both[0]["written"]


def test_the_access_log_is_that_of_uvicorn(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[list[str]] = []
    for ours in (True, False):
        caplog.clear()
        with caplog.at_level(logging.INFO, "uvicorn.access"):
            asyncio.run(played(REQUESTS["GET"], SCRIPTS["one part"], ours, access_log=True))
        lines.append([r.getMessage() for r in caplog.records if r.name == "uvicorn.access"])
    assert lines[0] == lines[1] == ['10.0.0.1:4000 - "GET /a%20b/c?d=e HTTP/1.1" 200']


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_the_tasks_of_the_server_are_those_that_run(ours: bool, reset: bool) -> None:
    mark: ContextVar[str] = ContextVar("mark", default="unset")
    seen: list[str] = []

    async def main() -> None:
        mark.set("set")
        may_end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(mark.get())
            for message in SCRIPTS["one part"]:
                await send(message)
            await may_end.wait()

        protocol, wire = connected(app, ours, reset_contextvars=reset)
        protocol.data_received(REQUESTS["GET"])
        assert len(protocol.tasks) == 1
        await turns()
        assert wire.content.endswith(b"ok")
        (task,) = protocol.tasks
        assert not task.done()
        may_end.set()
        await turns()
        assert protocol.tasks == set()
        assert task.done()
        protocol.connection_lost(None)

    asyncio.run(main())
    assert seen == ["unset" if reset else "set"]


def test_a_task_that_has_ended_when_it_was_made_is_not_kept() -> None:
    def eager(loop: asyncio.AbstractEventLoop, coro: Any, **_: Any) -> Any:
        """As `asyncio.eager_task_factory` does, of later versions, for what never waits."""
        with pytest.raises(StopIteration):
            coro.send(None)
        return SimpleNamespace(done=lambda: True, set_name=bool)

    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            for message in SCRIPTS["one part"]:
                await send(message)

        protocol, wire = connected(app, True)
        asyncio.get_running_loop().set_task_factory(eager)
        protocol.data_received(REQUESTS["GET"])
        asyncio.get_running_loop().set_task_factory(None)
        assert wire.content.endswith(b"ok")
        assert protocol.tasks == set()
        protocol.connection_lost(None)

    asyncio.run(main())


class Timers:
    """A loop as far as timers go."""

    def __init__(self) -> None:
        self.at = 0.0
        self.set: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.at

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        entry = (self.at + delay, call)
        self.set.append(entry)

        return SimpleNamespace(cancel=lambda: self.set.remove(entry))

    def run(self, until: float) -> None:
        while self.set and min(self.set)[0] <= until:
            entry = min(self.set)
            self.set.remove(entry)
            self.at = entry[0]
            entry[1]()
        self.at = until


def test_idling_is_counted_from_the_last_response() -> None:
    loop, ends = Timers(), list[float]()
    loops: Any = loop
    idling = Idling(loops, loop.now, 5.0, lambda: ends.append(loop.at))
    for at in (0.0, 1.0, 2.0):
        loop.run(at)
        idling.since = NEVER
        idling.begin()
        assert len(loop.set) == 1
    loop.run(20.0)
    assert ends == [7.0]
    assert loop.set == []


def test_idling_does_not_end_what_is_served_nor_what_is_gone() -> None:
    loop, ends = Timers(), list[float]()
    loops: Any = loop
    idling = Idling(loops, loop.now, 5.0, lambda: ends.append(loop.at))
    idling.begin()
    idling.since = NEVER  # a request that takes its time
    loop.run(12.0)
    assert (ends, loop.set) == ([], [])
    idling.begin()
    idling.drop()
    loop.run(20.0)
    assert (ends, loop.set) == ([], [])
