"""uvicorn's protocol on h11, with arrival instants, a limit on headers, and a farewell.

Used where httptools is not installed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.guard import ARRIVAL, HeaderGuard, too_slow
from holdfast.adapters.uvicorn.parting import Parting
from holdfast.adapters.uvicorn.watch import Shared
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import Kind, Line

__all__ = ["GuardedH11"]

_CLOSE: Final = (b"connection", b"close")


class GuardedH11(Parting, H11Protocol):
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
        self._came: Instant = 0.0
        self._began: Instant | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch.accepted = self._came = now = self._guard.now()
        self._guard.arm(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.drop()
        super().connection_lost(exc)
        if self._watch.announcing:
            self._watch.ring()

    def data_received(self, data: bytes) -> None:
        self._came = self._guard.now()
        if self._began is None and self.conn.their_state is h11.IDLE:
            self._began = self._came
        super().data_received(data)
        if self._watch.announcing:
            self.announce()
        if self._guard.armed or self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._guard.arm(self._came if self._began is None else self._began)

    def handle_events(self) -> None:
        before = self.scope
        super().handle_events()
        # The task of the request takes its first step after this; until then the scope is ours.
        if self.scope is not before:
            came = self._came if self._began is None else self._began
            self.scope[ARRIVAL] = came  # type: ignore[typeddict-unknown-key]
            self._began = None
            self._guard.drop()
        if self._began is None and self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._began = self._came  # the first bytes of the next request, behind this one

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._watch.announcing:
            self.announce()  # the next of pipelined requests may have begun
            self._came = self._guard.now()
            self._watch.ring()

    # -- letting go ------------------------------------------------------------------------------

    def line(self) -> Line:
        """See `Drainable`."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # uvicorn's own type hides the None
        busy = cycle is not None and not cycle.response_complete
        partial = self._began is not None and self.conn.their_state is h11.IDLE
        return Line(Kind.HTTP, busy, partial, self._came, *self.closing(self._guard.now))

    def announce(self) -> None:
        """See `Drainable`. Not where another request stands behind the one that is served: whatever
        stands behind an announcement is lost."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_started:
            return
        plain = [header for header in cycle.default_headers if header != _CLOSE]
        cycle.keep_alive = bool(self.conn.trailing_data[0])
        cycle.default_headers = plain if cycle.keep_alive else [*plain, _CLOSE]

    def _too_slow(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*self.server_state.default_headers, *too_slow(body)]
            for event in (
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
