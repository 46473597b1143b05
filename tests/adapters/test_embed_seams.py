"""The seams of the embedded servers that nobody promises: each one pinned.

A red test here means: look what became of it before the pin in pyproject.toml is moved.
"""

from __future__ import annotations

import inspect
import textwrap
from importlib.metadata import version
from typing import Any

import pytest


def source(thing: Any) -> str:
    return textwrap.dedent(inspect.getsource(thing))


def parameters(thing: Any) -> list[str]:
    return list(inspect.signature(thing).parameters)


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("hypercorn", "0.18"),
        ("granian", "2.8"),
        ("aiohttp", "3.14"),
        ("gunicorn", "27.0"),
        ("uvicorn-worker", "0.4"),
    ],
)
def test_the_version_is_the_pinned_one(name: str, release: str) -> None:
    assert ".".join(version(name).split(".")[:2]) == release


# -- hypercorn -------------------------------------------------------------------------------------


def test_a_connection_of_hypercorn_is_made_and_awaited_as_in_its_own_loop() -> None:
    from hypercorn.asyncio import run
    from hypercorn.asyncio.tcp_server import TCPServer

    assert parameters(TCPServer)[-7:] == [
        "app", "loop", "config", "context", "state", "reader", "writer",
    ]  # fmt: skip
    loop = source(run.worker_serve)
    assert "await TCPServer(app, loop, config, context, lifespan_state, reader, writer)" in loop
    assert "await context.terminated.set()" in loop
    assert "context = WorkerContext(max_requests)" in loop
    # That is what we are there for: the last line of these never returns since Python 3.12.
    assert "server.close()\n            await server.wait_closed()" in loop


def test_a_connection_of_hypercorn_tells_when_it_is_idle() -> None:
    from hypercorn.asyncio.tcp_server import TCPServer
    from hypercorn.events import Updated
    from hypercorn.protocol import ProtocolWrapper, h2, h11

    sends = source(TCPServer.protocol_send)
    assert "self.writer.write(event.data)" in sends
    assert "isinstance(event, Updated)" in sends
    assert parameters(Updated) == ["idle"]
    assert "Updated(idle=True)" in source(h11.H11Protocol)
    assert "Updated(idle=idle)" in source(h2.H2Protocol)
    assert "self.protocol = ProtocolWrapper(" in source(TCPServer.run)
    assert "self.protocol = H2Protocol(" in source(ProtocolWrapper)


def test_an_idle_connection_of_hypercorn_ends_when_its_context_does() -> None:
    from hypercorn.asyncio.tcp_server import TCPServer
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.protocol.h11 import H11Protocol

    assert "self.context.terminated.wait()" in source(TCPServer._idle_timeout)
    assert "self.context.terminated.is_set()" in source(H11Protocol._maybe_recycle)
    assert isinstance(H2Protocol.idle, property)
    assert "self.connection.close_connection()" in source(H2Protocol.stream_send)
    # Frames are written whole, so a GOAWAY of ours comes between two.
    assert "RawData(data=data)" in source(H2Protocol._flush)


def test_hypercorn_takes_an_application_by_this_wrapper() -> None:
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.utils import wrap_app

    assert parameters(ASGIWrapper) == ["app"]
    assert "return ASGIWrapper(" in source(wrap_app)


# -- granian ---------------------------------------------------------------------------------------


def test_granian_is_embedded_without_signals_and_on_a_socket_that_is_given() -> None:
    from granian._granian import SocketHolder
    from granian.server import common
    from granian.server.embed import Server

    assert "self.signal_handler_interrupt()" in source(Server.stop)
    assert "signal.signal" not in source(Server)
    made = source(common.AbstractServer._init_shared_socket)
    assert "self._shd = self._ssp.build()" in made
    assert "(self._ssp, self._shd)" in source(Server._spawn_worker)
    assert "(sock[0] or sock[1]).is_uds()" in source(Server._spawn_asgi_worker)
    assert "(fd, uds, backlog)" in str(getattr(SocketHolder, "__text_signature__", ""))


def test_granian_stops_its_workers_and_waits_for_them() -> None:
    from granian.server.embed import AsyncWorker, Server

    stops = source(Server._stop_workers)
    assert "wrk.terminate()" in stops
    assert "await wrk.join(self.workers_kill_timeout)" in stops
    assert "self._task.cancel()" in source(AsyncWorker.kill)
    assert "self._stop_workers()" in source(Server.shutdown)


# -- aiohttp ---------------------------------------------------------------------------------------


def test_aiohttp_says_close_only_where_the_header_is_set() -> None:
    from aiohttp import web

    prepare = source(web.StreamResponse._start)
    headers, hook = prepare.index("_prepare_headers"), prepare.index("_prepare_hook")
    assert headers < hook < prepare.index("_write_headers")
    assert "self._keep_alive = False" in source(web.StreamResponse.force_close)


def test_aiohttp_drops_what_comes_after_it_was_told_to_close() -> None:
    from aiohttp.web_protocol import RequestHandler
    from aiohttp.web_runner import AppRunner, BaseRunner
    from aiohttp.web_server import Server

    assert "conn.close()" in source(Server.pre_shutdown)
    assert parameters(Server.shutdown) == ["self", "timeout"]
    # Twice, one after the other: hence a short one of ours, when nothing is served any more.
    assert source(RequestHandler.shutdown).count("ceil_timeout(timeout)") == 2
    assert isinstance(BaseRunner.server, property)
    assert "await self._app.startup()" in source(AppRunner._make_server)
    assert "await self._app.cleanup()" in source(AppRunner._cleanup_server)
    assert isinstance(Server.connections, property)


def test_aiohttp_wakes_the_handler_of_a_websocket_that_is_closed() -> None:
    from aiohttp import web

    close = source(web.WebSocketResponse.close)
    assert "WS_CLOSING_MESSAGE" in close
    assert {"code", "message"} <= set(parameters(web.WebSocketResponse.close))


# -- gunicorn --------------------------------------------------------------------------------------


def test_the_uvicorn_worker_makes_its_server_where_we_make_ours() -> None:
    from uvicorn_worker import _workers

    serves = source(_workers.UvicornWorker._serve)
    assert "self.config.app = self.wsgi" in serves
    assert "server = Server(config=self.config)" in serves
    assert "await server.serve(sockets=self.sockets)" in serves
    assert "sys.exit(Arbiter.WORKER_BOOT_ERROR)" in serves
    assert "await self._serve()" in source(_workers.UvicornWorker.run) or "self._serve()" in source(
        _workers.UvicornWorker.run
    )


def test_uvicorn_hears_of_signals_by_this_method_and_sends_them_on() -> None:
    from uvicorn.server import Server, ServerState

    assert parameters(Server.handle_exit) == ["self", "sig", "frame"]
    captures = source(Server.capture_signals)
    assert "signal.signal(sig, self.handle_exit)" in captures
    assert "self._captured_signals" in captures
    assert "signal.raise_signal(captured_signal)" in captures
    assert "self.config.timeout_graceful_shutdown" in source(Server.shutdown)
    assert isinstance(ServerState().tasks, set)
