"""uvicorn's protocol on httptools, with arrival instants, a limit on headers, and a farewell.

What runs for every request is ours: it comes to the same as uvicorn's, and costs half as much. What
is seldom needed (errors, upgrades, pipelines) stays uvicorn's.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import lru_cache
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, service_unavailable
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.cycle import Cycle
from holdfast.adapters.uvicorn.guard import ARRIVAL, HeaderGuard, too_slow
from holdfast.adapters.uvicorn.idling import Idling
from holdfast.adapters.uvicorn.parting import Parting
from holdfast.adapters.uvicorn.watch import Shared
from holdfast.domain.instant import NEVER, Instant
from holdfast.domain.lifecycle.drain import Kind, Line
from holdfast.runtime.tasks import serve

__all__ = ["GuardedHttpTools"]

_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
"""All that uvicorn's `ProxyHeadersMiddleware` reads: without them it changes nothing."""

_NOTED: Final = _FORWARDED | {b"expect"}
_MEMO: Final = 1024
_MEMO_URL: Final = 256


def _parse(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, raw path and query."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


# Most services have few addresses. They come from outside: long ones are not kept.
_remembered: Final = lru_cache(_MEMO)(_parse)


class GuardedHttpTools(Parting, HttpToolsProtocol):
    """See the module."""

    parser: httptools.HttpRequestParser

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings = cast(Shared, config)
        self.watch = settings.watch
        self._guard = HeaderGuard(self.loop, settings.terms, self._too_slow)
        self._now = self._guard.now
        self._idling = Idling(
            self.loop, self._now, self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        app = cast(Any, config).loaded_app
        self._app: Any = app
        self._direct: Any = app.app if type(app) is ProxyHeadersMiddleware else app
        self._forwarded = False
        self._raw_root = self.root_path.encode("ascii")
        self._came: Instant = 0.0
        self._began: Instant = 0.0
        self._in_headers = False
        self._in_body = False
        self._newest: Cycle | None = None
        """What uvicorn's `cycle` is, without the wrong type."""
        self._announced: Cycle | None = None

    # -- the connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.watch.accepted = self._came = now = self._now()
        self._guard.arm(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.drop()
        self._idling.drop()
        super().connection_lost(exc)
        if self.watch.announcing:
            self.watch.ring()

    def data_received(self, data: bytes) -> None:
        self._came = now = self._now()
        self._idling.since = NEVER
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._take_up()
        except httptools.HttpParserError:
            msg = "Invalid HTTP request received."
            self.logger.warning(msg)
            self.send_400_response(msg)
            return
        # Waiting for the rest of the headers, or (as any byte ends the idling, also that of an
        # empty line before a request) for their beginning.
        if self._in_headers or (
            not self._in_body
            and self._answered()
            and self._idling.since == NEVER
            and self.transport.get_protocol() is self  # else a WebSocket took it over
        ):
            # While we do not read, behind requests under way, the client cannot be the slow one.
            # When these are answered, its next byte or the idling goes on from there.
            if self._guard.armed or self.transport.is_closing() or self.flow.read_paused:
                return
            self._guard.arm(now)

    def _take_up(self) -> None:
        """The client wants to speak something else."""
        if self._should_upgrade():
            self.handle_websocket_upgrade()
        else:
            self._unsupported_upgrade_warning()

    # -- the request, as the parser calls back ---------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._began = self._came
        self._in_headers = True
        self._forwarded = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _NOTED:
            if name in _FORWARDED:
                self._forwarded = True
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._in_body = True
        if self._guard.armed:
            self._guard.drop()
        parser, url = self.parser, self.url
        version = parser.get_http_version()
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": parser.get_method().decode("ascii"),
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            ARRIVAL: self._began,
        }
        self.scope = scope
        if parser.should_upgrade() and self._should_upgrade():
            return
        parse = _remembered if len(url) <= _MEMO_URL else _parse
        path, raw_path, scope["query_string"] = parse(url)
        scope["path"] = self.root_path + path
        scope["raw_path"] = self._raw_root + raw_path

        before = self._newest
        cycle = self.cycle = self._newest = Cycle(
            self, scope, version != "1.0" and parser.should_keep_alive()
        )
        app = self._application()
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        else:  # pipelined
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        if self.watch.announcing:
            self.announce()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # The cycle takes its task out of the set by itself: uvicorn has a callback do that, which
        # is one more turn of the loop for every request.
        context = Context() if self.config.reset_contextvars else None
        task = serve(cycle.run_asgi(app), self.loop, context)
        if not task.done():
            cast(Cycle, cycle).task = task
            self.tasks.add(task)

    def _application(self) -> Any:
        limit = self.limit_concurrency
        if limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit):
            self.logger.warning("Exceeded concurrency limit.")
            return service_unavailable
        return self._app if self._forwarded else self._direct

    def on_body(self, body: bytes) -> None:
        cycle = self._newest
        if cycle is None or cycle.response_complete or self._upgrades():
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.tell()

    def on_message_complete(self) -> None:
        self._in_body = False
        cycle = self._newest
        if cycle is None or cycle.response_complete or self._upgrades():
            return
        cycle.more_body = False
        cycle.tell()

    def send_400_response(self, msg: str) -> None:
        if self._newest is not None:
            self._newest.flush()
        super().send_400_response(msg)

    def _upgrades(self) -> bool:
        return self.parser.should_upgrade() and self._should_upgrade()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if self.flow.read_paused:
                self.flow.resume_reading()
            if self.pipeline:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)
            else:
                self._idling.begin()
        if self.watch.announcing:
            self._came = self._now()
            self.watch.ring()

    # -- letting go ------------------------------------------------------------------------------

    def line(self) -> Line:
        """See `Drainable`."""
        return Line(
            Kind.HTTP, not self._answered(), self._in_headers, self._came, *self.closing(self._now)
        )

    def announce(self) -> None:
        """See `Drainable`. Of pipelined requests it is the last that announces: whatever stands
        behind an announcement is lost."""
        newest = self._newest
        if newest is None or newest.response_started or not newest.keep_alive:
            return
        before = self._announced
        if before is not None and not before.response_started:
            before.keep_alive = True
        newest.keep_alive = False
        self._announced = newest

    def _answered(self) -> bool:
        cycle = self._newest
        return cycle is None or cycle.response_complete

    def _too_slow(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        # In front of the slow request there may be one that is not answered: its answer comes
        # first, and the connection closes after it. `shutdown` does that.
        if self._answered():
            lines = [STATUS_LINE[408]]
            for name, value in (*self.server_state.default_headers, *too_slow(body)):
                lines += [name, b": ", value, b"\r\n"]
            self.transport.write(b"".join([*lines, b"\r\n", body]))
        self.shutdown()
