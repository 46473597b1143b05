"""Several observers of calls in the place of one."""

from __future__ import annotations

import logging
from typing import Final

from holdfast.domain.phases import Trail
from holdfast.ports.trails import TrailObserver

__all__ = ["Observers"]

_log: Final = logging.getLogger("holdfast.net")


class Observers:
    """A `TrailObserver` that tells others, in their order.

    One that raises does not keep it from the rest, nor fails the call: it is logged.

    Args:
        observers: who is told.
    """

    def __init__(self, *observers: TrailObserver) -> None:
        self._observers = observers

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        """Tell all of them; see `TrailObserver`."""
        for observer in self._observers:
            try:
                observer.call_ended(trail, error)
            except Exception:
                _log.exception("the observer %r of calls failed", observer)
