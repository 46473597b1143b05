"""What the connections of one server tell it, and what it tells them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from holdfast.adapters.uvicorn.guard import HeaderTerms
from holdfast.adapters.uvicorn.head import Defaults
from holdfast.adapters.uvicorn.heads import Heads
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import Line

__all__ = ["Drainable", "Shared", "Watch"]


@runtime_checkable
class Drainable(Protocol):
    """A connection that can be let go of."""

    def line(self) -> Line:
        """How it is now."""
        ...

    def announce(self) -> None:
        """Tell its client, with the next response that begins, that it ends."""
        ...

    def leave(self) -> None:
        """Close it: nothing is on its way, as far as can be known."""
        ...

    def abort(self) -> None:
        """Cut it off."""
        ...


class Watch:
    """Shared by a server and its connections.

    Attributes:
        announcing: whether responses have to say that their connection ends.
        accepted: instant at which the last connection was made.
        code: what WebSockets are closed with.
        defaults: the lines that every response begins with.
        heads: of responses, that wait for their bodies.
    """

    __slots__ = ("accepted", "announcing", "code", "defaults", "heads", "ring")

    def __init__(self) -> None:
        self.announcing = False
        self.accepted: Instant = -math.inf
        self.code = 1012
        self.defaults = Defaults()
        self.heads = Heads()
        self.ring: Callable[[], None] = _nobody_waits
        """To be called while `announcing`, when something has become quiet or has gone."""


class Shared(Protocol):
    """What the protocols find in the configuration that uvicorn hands to them."""

    terms: HeaderTerms
    watch: Watch


def _nobody_waits() -> None:
    """No drain is under way."""
