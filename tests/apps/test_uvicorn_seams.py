"""The seams of uvicorn that `apps.serve` uses and nobody promises: each one pinned.

A red test here means: look what became of it before the pin in pyproject.toml is moved.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from importlib.metadata import version
from typing import Any

import pytest
from uvicorn import config, server
from uvicorn.protocols.http import flow_control, h11_impl, httptools_impl
from uvicorn.supervisors import ChangeReload, basereload, multiprocess

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


def test_h11_makes_one_scope_for_each_request_before_its_task_runs() -> None:
    handle = source(h11_impl.H11Protocol.handle_events)
    assert "self.scope = {" in handle
    assert "self.loop.create_task(self.cycle.run_asgi(app))" in handle
    assert "conn" in assigned(h11_impl.H11Protocol.__init__)
    assert "self.handle_events()" in source(h11_impl.H11Protocol.data_received)
    assert "self.handle_events()" in source(h11_impl.H11Protocol.on_response_complete)


def test_config_loads_the_application_through_one_method_without_arguments() -> None:
    assert parameters(config.Config.load_app) == ["self"]
    assert "self.loaded_app = self.load_app()" in source(config.Config.load)
    assert "self.loaded_app()" in source(config.Config.load)  # ours needs arguments: a TypeError
    assert "isinstance(self.app, str) and self.reload" in source(config.Config.should_reload.fget)
    assert config.STARTUP_FAILURE == 3
    assert config.LOGGING_CONFIG["loggers"]["uvicorn"]["handlers"] == ["default"]


def test_server_can_be_taken_over() -> None:
    assert parameters(server.Server.serve) == ["self", "sockets"]
    assert parameters(server.Server.startup) == ["self", "sockets"]
    assert "with self.capture_signals():" in source(server.Server.serve)
    assert "if not config.loaded:" in source(server.Server._serve)
    assert "await self.startup(sockets=sockets)" in source(server.Server._serve)
    assert {"started", "should_exit", "force_exit"} <= assigned(server.Server.__init__)
    assert "self.config.timeout_graceful_shutdown" in source(server.Server.shutdown)
    assert "signal.raise_signal" in source(server.Server.capture_signals)
    assert len(server.HANDLED_SIGNALS) == 2


def test_supervisors_can_be_given_our_server() -> None:
    for method in ("init_processes", "restart_all", "keep_subprocess_alive"):
        assert "Process(self.config, self.sockets)" in source(
            getattr(multiprocess.Multiprocess, method)
        )
    server_of = multiprocess.Process.server
    assert isinstance(server_of, property)
    assert "self._server is None" in source(server_of.fget)
    assert "self.server.run(sockets)" in source(multiprocess.Process.target)
    assert "handle_hup" in vars(multiprocess.Multiprocess)
    assert "process.exitcode == STARTUP_FAILURE" in source(
        multiprocess.Multiprocess.keep_subprocess_alive
    )
    assert parameters(ChangeReload) == ["config", "target", "sockets"]
    assert "target=self.target" in source(basereload.BaseReload.startup)
