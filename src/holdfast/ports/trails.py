"""Who is told of calls over the network when they are over: spans, metrics, logs."""

from __future__ import annotations

from typing import Protocol

from holdfast.domain.phases import Trail

__all__ = ["TrailObserver"]


class TrailObserver(Protocol):
    """Is told of every call, in the context of the one who made it."""

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        """The call of `trail` is over, with `error` or without. Must not block and not raise."""
        ...
