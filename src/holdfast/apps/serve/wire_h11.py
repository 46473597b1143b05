"""uvicorn's protocol on h11, with arrival instants and a limit on the time for headers.

Used where httptools is not installed. The seams used are not promised by uvicorn;
`tests/apps/test_uvicorn_seams.py` pins each of them.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from holdfast.apps.serve.guard import ARRIVAL, HeaderGuard, too_slow
from holdfast.apps.serve.hosted import Hosted
from holdfast.domain.instant import Instant

__all__ = ["GuardedH11"]


class GuardedH11(H11Protocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        hosted = cast(Hosted, config.hosted)  # type: ignore[attr-defined]
        self._guard = HeaderGuard(self.loop, hosted, self._too_slow)
        self._came: Instant = 0.0
        self._began: Instant | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._guard.arm(self._guard.now())

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.drop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came = self._guard.now()
        if self._began is None and self.conn.their_state is h11.IDLE:
            self._began = self._came
        super().data_received(data)
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
