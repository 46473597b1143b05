"""Heads of responses that wait for their bodies.

A head by itself is a packet by itself, and a call into the kernel: a quarter of what a short
answer costs. So it is held back until the application gives it a body, or does not in this turn of
the loop. ASGI allows a server to wait for the body however long that takes; this one does not, as
the beginning of a stream is news for its reader.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Protocol

__all__ = ["Heads", "Held"]


class Held(Protocol):
    """A response whose head may not be written yet."""

    def flush(self) -> None:
        """Write it, unless that was done."""
        ...


class Heads:
    """Those of one server. One callback for each turn of the loop, however many there are."""

    __slots__ = ("_context", "_held")

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._context = Context()  # not that of the request which happens to be the first

    def hold(self, response: Held, loop: asyncio.AbstractEventLoop) -> None:
        """Flush `response` when this turn of the loop is over."""
        if not self._held:
            loop.call_soon(self._flush, context=self._context)
        self._held.append(response)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for response in held:
            response.flush()
