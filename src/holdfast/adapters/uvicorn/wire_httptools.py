"""uvicorn's protocol on httptools, with arrival instants, a limit on headers, and a farewell."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.guard import ARRIVAL, HeaderGuard, too_slow
from holdfast.adapters.uvicorn.parting import Parting
from holdfast.adapters.uvicorn.watch import Shared
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import Kind, Line

__all__ = ["GuardedHttpTools"]


class GuardedHttpTools(Parting, HttpToolsProtocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        settings = cast(Shared, config)
        self._watch = settings.watch
        self._guard = HeaderGuard(self.loop, settings.terms, self._too_slow)
        self._now = self._guard.now
        self._came: Instant = 0.0
        self._in_headers = False
        self._in_body = False
        self._announced: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch.accepted = self._came = now = self._now()
        self._guard.arm(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.drop()
        super().connection_lost(exc)
        if self._watch.announcing:
            self._watch.ring()

    def data_received(self, data: bytes) -> None:
        self._came = now = self._now()
        super().data_received(data)
        # While we do not read, behind requests under way, the client cannot be the slow one. When
        # these are answered, its next byte or uvicorn's keep-alive timer goes on from there.
        if self._guard.armed or self.transport.is_closing() or self.flow.read_paused:
            return
        # Waiting for the rest of the headers, or (as uvicorn stops its keep-alive timer at any
        # byte, also at an empty line before a request) for their beginning.
        if self._in_headers or (
            self.timeout_keep_alive_task is None
            and not self._in_body
            and self._answered()
            and self.transport.get_protocol() is self  # else a WebSocket took it over
        ):
            self._guard.arm(now)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self.scope[ARRIVAL] = self._came  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._in_body = True
        if self._guard.armed:
            self._guard.drop()
        super().on_headers_complete()
        if self._watch.announcing:
            self.announce()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._watch.announcing:
            self._came = self._now()
            self._watch.ring()

    # -- letting go ------------------------------------------------------------------------------

    def line(self) -> Line:
        """See `Drainable`."""
        return Line(
            Kind.HTTP, not self._answered(), self._in_headers, self._came, *self.closing(self._now)
        )

    def announce(self) -> None:
        """See `Drainable`. Of pipelined requests it is the last that announces: whatever stands
        behind an announcement is lost."""
        newest = cast("RequestResponseCycle | None", self.cycle)
        if newest is None or newest.response_started or not newest.keep_alive:
            return
        before = self._announced
        if before is not None and not before.response_started:
            before.keep_alive = True
        newest.keep_alive = False
        self._announced = newest

    def _answered(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # uvicorn's own type hides the None
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
