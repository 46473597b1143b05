"""uvicorn's HTTP/2 protocol, with arrival instants and a farewell in two steps.

The first GOAWAY names the highest stream that there can be: open nothing more, and whatever is on
the wire is served. The last one comes when the connection has been quiet for a while. uvicorn by
itself sends only the last one, and answers what is on the wire with 503.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

import zttp
from uvicorn.config import Config
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.guard import ARRIVAL
from holdfast.adapters.uvicorn.parting import Parting
from holdfast.adapters.uvicorn.watch import Shared
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import Kind, Line
from holdfast.domain.wire.goaway import FIRST_GOAWAY
from holdfast.runtime.driver import driver_of

__all__ = ["GuardedEither", "GuardedHttp2"]


def _plain() -> type[asyncio.Protocol]:
    try:
        from holdfast.adapters.uvicorn.wire_httptools import GuardedHttpTools
    except ImportError:
        from holdfast.adapters.uvicorn.wire_h11 import GuardedH11

        return GuardedH11
    return GuardedHttpTools


class GuardedHttp2(Parting, ZttpH2Protocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._watch = cast(Shared, config).watch
        self._now = driver_of(self.loop).now
        self._came: Instant = self._now()
        self._served = False
        self._goaway_sent = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch.accepted = self._came = self._now()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch.announcing:
            self._watch.ring()

    def data_received(self, data: bytes) -> None:
        self._came = self._now()
        super().data_received(data)

    def handle_request(self, event: zttp.Request) -> None:
        super().handle_request(event)
        self._served = True
        cycle = self.cycles.get(event.stream_id)
        if cycle is not None:  # its task takes its first step after this
            cycle.scope[ARRIVAL] = self._came  # type: ignore[typeddict-unknown-key]

    def on_response_complete(self, stream_id: int) -> None:
        super().on_response_complete(stream_id)
        if self._watch.announcing:
            self._came = self._now()
            self.announce()
            self._watch.ring()

    # -- letting go ------------------------------------------------------------------------------

    def line(self) -> Line:
        """See `Drainable`."""
        return Line(Kind.HTTP, bool(self.cycles), False, self._came, *self.closing(self._now))

    def announce(self) -> None:
        """Send the first GOAWAY. A connection that is new has its first request before that: some
        clients would dial again at once, and arrive here again."""
        if self._goaway_sent or self.transport.is_closing() or not self._served:
            return
        self._goaway_sent = True
        self.flush()  # frames are written whole, so this one comes between two
        self.transport.write(FIRST_GOAWAY)

    def leave(self) -> None:
        """Send the last GOAWAY, and close."""
        self.shutdown()


class GuardedEither(Parting, AutoZttpProtocol):
    """HTTP/2 where the client speaks it, by ALPN or by its preface; else HTTP/1.1.

    A connection that has not said which is quiet: `Drainable` with nothing to announce.
    """

    alpn_protocols: ClassVar[list[str]] = ["h2", "http/1.1"]

    def line(self) -> Line:
        """See `Drainable`."""
        now = driver_of(self.loop).now
        return Line(Kind.HTTP, False, bool(self.buffer), self._made, *self.closing(now))

    def announce(self) -> None:
        """See `Drainable`; nothing was asked yet."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        watch = cast(Shared, self.config).watch
        watch.accepted = self._made = driver_of(self.loop).now()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cast(Shared, self.config).watch.ring()

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        kind: Any = GuardedHttp2 if http2 else _plain()
        protocol: Any = kind(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)
