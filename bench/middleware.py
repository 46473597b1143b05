"""Figure 4: what a layer adds to one request, parser and writer of the server included.

uvicorn's httptools protocol is fed the bytes of a request and writes to a transport that goes
nowhere: all of the server runs except the sockets. Sixteen connections are served at a time. The
request carries a deadline, a traceparent and a request id, which the bare application ignores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any, Final

import holdfast
from bench._harness import LOOPS, Case, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "One request through the server"
APPS: Final = {"at once": 0, "suspending twice": 2}
VARIANTS: Final = [{"loop": loop, "app": app} for loop in reversed(LOOPS) for app in APPS]
BARE: Final = "bare application"
OURS: Final = "HoldfastMiddleware, nobody asks who the request is"
ASKED: Final = "HoldfastMiddleware, the application asks for the identity"
GOAL: Final = 1.5
OTEL: Final = "opentelemetry.instrumentation.asgi"

CONNECTIONS: Final = 16
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
REQUEST: Final = (
    b"GET /orders/42 HTTP/1.1\r\nhost: orders.local\r\nuser-agent: bench\r\naccept: */*\r\n"
    b"x-envoy-expected-rq-timeout-ms: 30000\r\nx-request-id: 4bf92f3577b34da6a3ce929d0e0e4736\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"2")],
}
_BODY: Final[Message] = {"type": "http.response.body", "body": b"ok"}


class Nowhere(asyncio.Transport):
    """A transport that counts what is written and drops it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.1", 4000), "sockname": ("10.0.0.2", 80)})
        self.answers = 0

    def write(self, data: Any) -> None:
        self.answers += data.startswith(b"HTTP/1.1 200")

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Server:
    """One application behind sixteen connections."""

    def __init__(self, app: App) -> None:
        from uvicorn import Config
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        config = Config(app, log_config=None, access_log=False, lifespan="off", proxy_headers=False)
        config.load()
        self.state = ServerState()
        self.ends: list[tuple[HttpToolsProtocol, Nowhere]] = []
        for _ in range(CONNECTIONS):
            protocol = HttpToolsProtocol(config, self.state, {}, asyncio.get_running_loop())
            transport = Nowhere()
            protocol.connection_made(transport)
            self.ends.append((protocol, transport))

    async def run(self, batches: int) -> None:
        tasks = self.state.tasks
        before = sum(transport.answers for _, transport in self.ends)
        for _ in range(batches):
            for protocol, _ in self.ends:
                protocol.data_received(REQUEST)
            while tasks:  # noqa: ASYNC110 - the cost of an event for each would be measured too
                await asyncio.sleep(0)
        answered = sum(transport.answers for _, transport in self.ends) - before
        if answered != batches * CONNECTIONS:
            raise RuntimeError(f"{answered} answers to {batches * CONNECTIONS} requests")


def bare(suspensions: int) -> App:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in range(suspensions):
            await asyncio.sleep(0)
        await send(_START)
        await send(_BODY)

    return app


def asking(app: App) -> App:
    """What logs or calls others must know who the request is; headers are read no sooner."""

    async def layer(scope: Message, receive: Receive, send: Send) -> None:
        if holdfast.current().identity.trace_id != TRACE_ID:
            raise RuntimeError("the identity got lost")
        await app(scope, receive, send)

    return layer


def with_timeout(app: App) -> App:
    async def layer(scope: Message, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(30):
            await app(scope, receive, send)

    return layer


def with_anyio_watcher(app: App) -> App:
    import anyio

    async def layer(scope: Message, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await app(scope, receive, send)
            group.cancel_scope.cancel()

    return layer


def layers() -> dict[str, Callable[[App], Any]]:
    from holdfast.adapters.asgi import HoldfastMiddleware

    found: dict[str, Callable[[App], Any]] = {
        OURS: HoldfastMiddleware,
        "asyncio.timeout": with_timeout,
    }
    if not absent("anyio"):
        found["anyio task group that watches for disconnect"] = with_anyio_watcher
    if not absent("starlette"):
        from starlette.middleware.base import BaseHTTPMiddleware

        async def dispatch(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        found["Starlette BaseHTTPMiddleware"] = lambda app: BaseHTTPMiddleware(app, dispatch)
    if not _otel_absent():
        otel = import_module(OTEL)
        found["OpenTelemetry ASGI, no provider"] = otel.OpenTelemetryMiddleware
    return found


def _otel_absent() -> list[str]:
    try:
        return absent(OTEL)
    except ModuleNotFoundError:
        return [OTEL]


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    logging.disable(logging.CRITICAL)
    suspensions = APPS[variant["app"]]
    title = f"{TITLE}: {variant['loop']}, application answers {variant['app']}"
    table = Table(title, "us", ["request"])
    table.notes = [f"absent: {name}" for name in [*absent("anyio", "starlette"), *_otel_absent()]]

    async def run() -> None:
        app = bare(suspensions)
        servers = {BARE: Server(app)}
        servers |= {name: Server(layer(app)) for name, layer in layers().items()}
        servers[ASKED] = Server(layers()[OURS](asking(app)))
        cases = [Case(name, server.run) for name, server in servers.items()]
        cells = await duel(cases, rounds(quick, 60), tell)
        compare(table, "request", {name: cell.per(CONNECTIONS) for name, cell in cells.items()})

    with asyncio.Runner(loop_factory=lambda: new_loop(variant["loop"])) as runner:
        runner.run(run())
    for name in (OURS, ASKED):
        table.goal(name, "request", GOAL)
    return [table]
