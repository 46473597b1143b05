"""One WebSocket: no total limit but its caller's, an idle limit, and a close code that says why."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from holdfast.adapters.asgi.exchange import Exchange
from holdfast.adapters.asgi.types import Message
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER
from holdfast.domain.wire.ending import close_of

__all__ = ["Socket"]

# Codes of RFC 6455 and its registry: 1001 going away, 1012 service restart.
_GOING_AWAY: Final = 1001
_RESTART: Final = 1012


class Socket(Exchange):
    """The scope of one WebSocket, and the `receive` and `send` that its handler gets."""

    farewell = "websocket.disconnect"

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` of the handler."""
        self.touched = self.driver.now()
        if message["type"] == "websocket.close":
            self.complete = True
            if self.inbox is not None:
                self.inbox.stop()
        return self._send(message)

    def _end_for_gone(self, told: bool) -> None:
        # A handler that has read the disconnect cleans up and ends; that is how it should be.
        if not told and self.outcome is None:
            self.cancel(kind=CauseKind.SHUTDOWN if self._sent_away() else CauseKind.DISCONNECT)

    def _sent_away(self) -> bool:
        # A server that stops closes its WebSockets, and tells the handler so with the code that it
        # has sent. 1012 is a server's; 1001 comes from browsers as well, that go to another page.
        parting = None if self.inbox is None else self.inbox.parting
        code = None if parting is None else parting.get("code")
        return code == _RESTART or (code == _GOING_AWAY and self.driver.root.limit != NEVER)

    async def answer(self, cause: Cause) -> None:
        """Close the connection for the handler, unless it is closed."""
        if self.complete:
            return
        self.complete = True
        code, reason = close_of(cause, self.terms.details)
        await self._send({"type": "websocket.close", "code": code, "reason": reason})
