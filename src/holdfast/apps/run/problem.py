"""What can go wrong before a program runs."""

from __future__ import annotations

from holdfast.domain.errors import HoldfastError

__all__ = ["RunError"]


class RunError(HoldfastError):
    """The program cannot run. The text says what is wrong, where, and what to do.

    Attributes:
        trace: traceback of the user's own code, where that is what failed; else empty.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace
