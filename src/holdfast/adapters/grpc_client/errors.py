"""Our errors, as programs of grpc expect them.

Each is an `AioRpcError` as well, or without asyncio a `grpc.RpcError` that is a `grpc.Call`, as
those are that grpc raises.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from grpc.aio import AioRpcError

from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import Trail
from holdfast.runtime.outbound import ErrorClasses

__all__ = [
    "BLOCKING_ERRORS",
    "ERRORS",
    "BlockingDeadlineExceeded",
    "BlockingInsufficientBudget",
    "BlockingPhaseTimeout",
    "GrpcDeadlineExceeded",
    "GrpcInsufficientBudget",
    "GrpcPhaseTimeout",
]


class _Ours(AioRpcError):
    """What makes an error of ours one of grpc's: a status, and its text."""

    def _take(self, code: grpc.StatusCode) -> None:
        AioRpcError.__init__(self, code)

    def details(self) -> str:
        """What happened, and where."""
        return str(self)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # That of grpc gives what its own constructor takes.
        return BaseException.__reduce__(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class GrpcDeadlineExceeded(DeadlineExceeded, _Ours):
    """The limit of a scope is spent; status `DEADLINE_EXCEEDED`."""

    def __init__(self, cause: Cause) -> None:
        DeadlineExceeded.__init__(self, cause)
        self._take(grpc.StatusCode.DEADLINE_EXCEEDED)
        self.args = (cause,)

    def __str__(self) -> str:
        return DeadlineExceeded.__str__(self)

    __repr__ = _Ours.__repr__
    __reduce__ = _Ours.__reduce__


class GrpcInsufficientBudget(InsufficientBudget, _Ours):
    """Not begun, as too little is left; status `DEADLINE_EXCEEDED`."""

    def __init__(self, cause: Cause) -> None:
        InsufficientBudget.__init__(self, cause)
        self._take(grpc.StatusCode.DEADLINE_EXCEEDED)
        self.args = (cause,)

    def __str__(self) -> str:
        return InsufficientBudget.__str__(self)

    __repr__ = _Ours.__repr__
    __reduce__ = _Ours.__reduce__


class GrpcPhaseTimeout(PhaseTimeout, _Ours):
    """The share of the dial is spent, nothing was sent; status `UNAVAILABLE`: try again."""

    def __init__(self, trail: Trail) -> None:
        PhaseTimeout.__init__(self, trail)
        self._take(grpc.StatusCode.UNAVAILABLE)
        self.args = (trail,)

    def __str__(self) -> str:
        return PhaseTimeout.__str__(self)

    __repr__ = _Ours.__repr__
    __reduce__ = _Ours.__reduce__


ERRORS: Final = ErrorClasses("grpc", GrpcDeadlineExceeded, GrpcInsufficientBudget, GrpcPhaseTimeout)


class _Over(grpc.RpcError, grpc.Call):
    """What makes an error of ours the call of grpc that has ended with it."""

    _code = grpc.StatusCode.DEADLINE_EXCEEDED

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """What happened, and where."""
        return str(self)

    def initial_metadata(self) -> Any:
        """There is none."""
        return ()

    def trailing_metadata(self) -> Any:
        """There is none."""
        return ()

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> Any:
        """It is over."""
        return None

    def cancel(self) -> bool:
        """It is over."""
        return False

    def add_callback(self, callback: Any) -> bool:
        """It is over."""
        return False


class BlockingDeadlineExceeded(DeadlineExceeded, _Over):
    """The limit of a scope is spent; status `DEADLINE_EXCEEDED`."""


class BlockingInsufficientBudget(InsufficientBudget, _Over):
    """Not begun, as too little is left; status `DEADLINE_EXCEEDED`."""


class BlockingPhaseTimeout(PhaseTimeout, _Over):
    """The share of the dial is spent, nothing was sent; status `UNAVAILABLE`: try again."""

    _code = grpc.StatusCode.UNAVAILABLE


BLOCKING_ERRORS: Final = ErrorClasses(
    "grpc", BlockingDeadlineExceeded, BlockingInsufficientBudget, BlockingPhaseTimeout
)
