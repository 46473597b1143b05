"""The seams of uvicorn that `adapters.uvicorn` uses and nobody promises: each one pinned.

A red test here means: look what became of it before the pin in pyproject.toml is moved.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from importlib.metadata import version
from typing import Any

import pytest
from uvicorn import config, server
from uvicorn.lifespan import on as lifespan
from uvicorn.middleware import proxy_headers
from uvicorn.protocols.http import (
    auto_zttp_impl,
    flow_control,
    h11_impl,
    httptools_impl,
    zttp_h2_impl,
)
from uvicorn.protocols.websockets import websockets_sansio_impl
from uvicorn.supervisors import ChangeReload, basereload

PROTOCOLS = [httptools_impl.HttpToolsProtocol, h11_impl.H11Protocol]


def source(thing: Any) -> str:
    return textwrap.dedent(inspect.getsource(thing))


def parameters(thing: Any) -> list[str]:
    return list(inspect.signature(thing).parameters)


def assigned(function: Any) -> set[str]:
    """Attributes of `self` that a function sets."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source(function)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_the_version_is_the_pinned_one() -> None:
    assert version("uvicorn").split(".")[:2] == ["0", "54"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_are_made_and_keep_their_state_as_we_expect(protocol: Any) -> None:
    assert parameters(protocol) == ["config", "server_state", "app_state", "_loop"]
    state = {"loop", "transport", "scope", "cycle", "timeout_keep_alive_task", "server_state"}
    assert state <= assigned(protocol.__init__)
    assert "self._unset_keepalive_if_required()" in source(protocol.data_received)
    assert "_http_" not in source(protocol.shutdown)
    assert "self.cycle is None or self.cycle.response_complete" in source(protocol.shutdown)
    assert "self.cycle.keep_alive = False" in source(protocol.shutdown)


def test_httptools_calls_back_for_each_part_of_a_request() -> None:
    protocol = httptools_impl.HttpToolsProtocol
    assert "self.scope = {" in source(protocol.on_message_begin)
    assert "scope=self.scope" in source(protocol.on_headers_complete)
    for name in ("on_message_begin", "on_headers_complete", "on_message_complete"):
        assert parameters(getattr(protocol, name)) == ["self"]
    assert httptools_impl.STATUS_LINE[408] == b"HTTP/1.1 408 Request Timeout\r\n"
    assert "self.transport.set_protocol(protocol)" in source(protocol.handle_websocket_upgrade)
    assert "self.flow.pause_reading()" in source(protocol.on_headers_complete)
    assert "read_paused" in assigned(flow_control.FlowControl.__init__)
    assert "self.response_complete" in source(httptools_impl.RequestResponseCycle)


# What runs for every request is ours. These are the lines that it stands in for: whoever changes
# them has to change ours, and `test_uvicorn_cycle` compares what comes of both.
REPLACED = {
    httptools_impl.HttpToolsProtocol: {
        "data_received": "02c2572f1df55907",
        "on_message_begin": "0efab6f9456c4987",
        "on_header": "374f1e380c062750",
        "on_url": "4670fe11c5fd5028",
        "on_headers_complete": "7e259152e5aade71",
        "on_body": "415b4cef19fba083",
        "on_message_complete": "377f9122ee6f3ab8",
        "_start_asgi_task": "2ab8b185c1a9b25b",
        "on_response_complete": "5684fd801d0683ac",
        "timeout_keep_alive_handler": "2127de00e7f6b118",
        "connection_lost": "21bb5222b35990e7",
    },
    httptools_impl.RequestResponseCycle: {
        "__init__": "459bebd3022b64c2",
        "run_asgi": "c3a6430de81255c9",
        "send": "cfc84491029529db",
        "receive": "817bd782de41bd0a",
        "send_500_response": "4032dec73e7eec34",
    },
    proxy_headers.ProxyHeadersMiddleware: {"__call__": "85cff06f8cb98a0c"},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in REPLACED.items() for name in names]
)
def test_what_ours_replaces_is_what_it_was(kind: Any, name: str) -> None:
    found = hashlib.sha256(source(getattr(kind, name)).encode()).hexdigest()
    assert found[:16] == REPLACED[kind][name]


def test_h11_makes_one_scope_for_each_request_before_its_task_runs() -> None:
    handle = source(h11_impl.H11Protocol.handle_events)
    assert "self.scope = {" in handle
    assert "self.loop.create_task(self.cycle.run_asgi(app))" in handle
    assert "conn" in assigned(h11_impl.H11Protocol.__init__)
    assert "self.handle_events()" in source(h11_impl.H11Protocol.data_received)
    assert "self.handle_events()" in source(h11_impl.H11Protocol.on_response_complete)


def test_config_takes_classes_of_protocols_and_an_application() -> None:
    load = source(config.Config.load)
    assert "self.loaded_app = self.load_app()" in load
    assert "self.loaded_app()" in load  # ours needs arguments: a TypeError
    assert "self.http_protocol_class = self.http" in load
    assert "self.ws_protocol_class = self.ws" in load
    assert 'getattr(self.http_protocol_class, "alpn_protocols", None)' in load
    assert "self.encoded_headers = (" in load
    assert config.LOGGING_CONFIG["loggers"]["uvicorn"]["handlers"] == ["default"]


def test_the_state_of_a_server_is_what_the_drain_reads() -> None:
    state = server.ServerState()
    assert (state.connections, state.tasks, state.default_headers) == (set(), set(), [])
    made = source(server.Server.startup)
    for argument in ("config=config", "server_state=self", "app_state=self.lifespan.state"):
        assert argument in made
    assert {"started", "should_exit", "config", "server_state"} <= assigned(server.Server.__init__)
    assert "self.should_exit = True" in source(server.Server.handle_exit)
    for protocol in PROTOCOLS:
        assert "self.connections.add(self)" in source(protocol.connection_made)
        assert "self.connections.discard(self)" in source(protocol.connection_lost)
    assert "self.tasks.add(task)" in source(httptools_impl.HttpToolsProtocol._start_asgi_task)
    assert "self.tasks.discard" in source(httptools_impl.HttpToolsProtocol._start_asgi_task)


def test_a_response_that_is_not_kept_alive_says_so() -> None:
    cycle = httptools_impl.RequestResponseCycle
    assert {"keep_alive", "response_started", "response_complete"} <= assigned(cycle.__init__)
    assert 'content.append(b"connection: close\\r\\n")' in source(cycle.send)
    assert "on_response=self.on_response_complete" in source(
        httptools_impl.HttpToolsProtocol.on_headers_complete
    )
    other = h11_impl.RequestResponseCycle
    assert {"keep_alive", "default_headers", "response_started"} <= assigned(other.__init__)
    assert "headers = self.default_headers + list" in source(other.send)


def test_the_lifespan_can_be_started_and_stopped_by_itself() -> None:
    assert parameters(lifespan.LifespanOn.__init__) == ["self", "config"]
    assert {"state", "should_exit"} <= assigned(lifespan.LifespanOn.__init__)
    for method in ("startup", "shutdown"):
        assert inspect.iscoroutinefunction(getattr(lifespan.LifespanOn, method))


def test_websockets_end_by_a_close_frame_that_is_answered() -> None:
    protocol = websockets_sansio_impl.WebSocketsSansIOProtocol
    state = {"handshake_complete", "close_sent", "close_timer", "queue", "conn", "read_paused"}
    assert state <= assigned(protocol.__init__)
    closing = source(protocol.handle_close)
    assert "if self.close_sent:" in closing
    assert "if self.close_timer is not None:" in closing
    assert "self.transport.close()" in closing
    assert "except ClientDisconnected:" in source(protocol.run_asgi)
    assert parameters(protocol.stop_keepalive) == ["self"]


def test_http2_streams_are_cycles_and_its_shutdown_is_the_last_goaway() -> None:
    protocol = zttp_h2_impl.ZttpH2Protocol
    assert {"cycles", "shutdown_requested"} <= assigned(protocol.__init__)
    assert "self._close_connection()" in source(protocol.shutdown)
    assert "self.conn.close()" in source(protocol._close_connection)
    assert "self.cycles[event.stream_id] = cycle" in source(protocol.handle_request)
    assert "on_response=self.on_response_complete" in source(protocol.handle_request)
    assert "if self.shutdown_requested:" in source(protocol.handle_request)
    either = auto_zttp_impl.AutoZttpProtocol
    assert parameters(either._switch) == ["self", "http2", "initial_data"]
    assert "connection_made(self.transport)" in source(either._switch)


def test_the_reloader_can_be_given_our_target() -> None:
    assert parameters(ChangeReload) == ["config", "target", "sockets"]
    assert "target=self.target" in source(basereload.BaseReload.startup)
