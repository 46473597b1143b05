"""What the protocols have in common when they are let go of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.domain.instant import NEVER, Instant

__all__ = ["Parting"]


class Parting:
    """The end of a connection. For protocols with a `transport`."""

    transport: asyncio.Transport
    _left_at: Instant = NEVER
    """When it was first seen to close."""

    def closing(self, now: Callable[[], Instant]) -> tuple[Instant, int, bool]:
        """Since when it closes, the bytes that its client has not taken, and whether it has TLS."""
        transport = self.transport
        if self._left_at == NEVER and transport.is_closing():
            self._left_at = now()
        tls = transport.get_extra_info("sslcontext") is not None
        return self._left_at, transport.get_write_buffer_size(), tls

    def leave(self) -> None:
        """Close it: nothing is on its way, as far as can be known."""
        if not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        """Cut it off."""
        self.transport.abort()
