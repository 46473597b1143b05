"""uvicorn's WebSocket protocol, with a farewell that its peer has time to answer.

uvicorn closes the socket behind the close frame at once. What the client has sent meanwhile then
meets a closed socket, and the reset that comes back can overtake the frame.
"""

from __future__ import annotations

from asyncio import BaseTransport
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.parting import Parting
from holdfast.adapters.uvicorn.watch import Shared
from holdfast.domain.lifecycle.drain import Kind, Line
from holdfast.runtime.driver import driver_of

__all__ = ["GuardedWebSocket"]

_REASON = "service restart"
_LONGEST_CLOSE = 3600.0


class GuardedWebSocket(Parting, WebSocketsSansIOProtocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: Any = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._watch = cast(Shared, config).watch
        self._now = driver_of(self.loop).now
        self._dismissed = False

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        if self._watch.announcing:
            self._watch.ring()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch.announcing:
            self._watch.ring()

    async def send(self, message: Any) -> None:
        if self._dismissed:
            raise ClientDisconnected
        await super().send(message)

    # -- letting go ------------------------------------------------------------------------------

    def line(self) -> Line:
        """See `Drainable`."""
        left, unsent, tls = self.closing(self._now)
        # Not yet a WebSocket: a request that is served.
        kind = Kind.WEBSOCKET if self.handshake_complete else Kind.HTTP
        return Line(kind, True, False, self._now(), left, unsent, tls)

    def announce(self) -> None:
        """See `Drainable`; there is no response to say it in."""

    def leave(self) -> None:
        """Send the close frame, and tell the application; the peer closes, or is cut off."""
        if not self.handshake_complete or self.transport.is_closing():
            return
        if self.close_sent:  # the application has said farewell itself
            self._left_at = min(self._left_at, self._now())
            return
        self.stop_keepalive()
        code = self._watch.code
        self._dismissed = self.close_sent = True
        self._left_at = self._now()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": _REASON})
        self.conn.send_close(code, _REASON)
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:  # else the answer of the peer would never be read
            self.read_paused = False
            self.transport.resume_reading()
        # uvicorn takes this for the sign that a close frame is to be answered; the drain's own
        # patience is what ends the wait.
        self.close_timer = self.loop.call_later(_LONGEST_CLOSE, self.transport.close)
