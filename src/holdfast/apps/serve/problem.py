"""What can go wrong at the start of a service."""

from __future__ import annotations

from holdfast.domain.errors import HoldfastError

__all__ = ["ServeError"]


class ServeError(HoldfastError):
    """The service cannot start. The text says what is wrong, where, and what to do.

    Attributes:
        trace: traceback of the user's own code, where that is what failed; else empty.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace
