"""What can go wrong with a timeline."""

from __future__ import annotations

from holdfast.domain.errors import HoldfastError

__all__ = ["TimelineError"]


class TimelineError(HoldfastError):
    """There is nothing to show. The text says why, and what to do."""
