"""What can go wrong, as sentences for whoever typed the command."""

from __future__ import annotations

from holdfast.domain.errors import HoldfastError

__all__ = ["DemoError"]


class DemoError(HoldfastError):
    """The demo cannot go on. The text says why, and what to do."""
