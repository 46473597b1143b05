"""A server whose connections cannot be reached, as far as its drain is concerned with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from holdfast.domain.instant import Instant

__all__ = ["Gate", "GateView", "ServerDrain", "Tell"]


class GateView(NamedTuple):
    """What passes through a gate now.

    Attributes:
        requests: that are served, also behind a response that is complete.
        sockets: WebSockets that are open.
        latest: instant at which something last happened that a client may follow up on the same
            connection without having been told that it ends: a request that began, or the end of a
            response whose headers were out before the announcement. Minus infinity for never.
    """

    requests: int
    sockets: int
    latest: Instant


class Gate(Protocol):
    """What stands between a server and its application, and sees every request."""

    def announce(self, ring: Callable[[], None]) -> None:
        """From now on every response says that its connection ends.

        Args:
            ring: is called from then on when a request or a WebSocket begins or ends.
        """
        ...

    def look(self) -> GateView:
        """How it is now."""
        ...

    def farewell(self) -> int:
        """Close every WebSocket, and those that come; how many there were."""
        ...

    def cut(self) -> Sequence[str]:
        """Cancel what is served, with the cause `shutdown`; what that was. Nothing begins after."""
        ...


class ServerDrain(Protocol):
    """How such a server is let go of."""

    def begin(self, deadline: Instant) -> None:
        """The stop has begun; what is served must be done by `deadline`. Once is enough."""
        ...

    async def finish(self, stop: Callable[[], object]) -> int:
        """Perform the drain; `stop` has the server accept no more and close what is idle.

        Returns how much was left over.
        """
        ...

    def hurry(self) -> None:
        """Cut what is still under way now."""
        ...


class Tell(Protocol):
    """Where it is said what happens; `kind` is one of `domain.record.KINDS`."""

    def __call__(self, kind: str, subject: str, detail: str = "", **data: object) -> None: ...
