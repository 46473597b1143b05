"""Our errors, as programs of aiohttp expect them: each is a `ServerTimeoutError` as well."""

from __future__ import annotations

from typing import Any, Final

import aiohttp

from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import DIALLING, Phase, Trail
from holdfast.runtime.outbound import ErrorClasses

__all__ = ["ERRORS"]

_BEFORE: Final = (Phase.POOL, *DIALLING)


def _both(ours: Any, theirs: type) -> Any:
    def init(self: Any, what: Cause | Trail) -> None:
        ours.__init__(self, what)

    body = {"__init__": init, "__str__": ours.__str__, "__module__": "holdfast.adapters.aiohttp"}
    return type(ours.__name__, (ours, theirs), body)


_UNSENT: Final = _both(PhaseTimeout, aiohttp.ConnectionTimeoutError)
_SENT: Final = _both(PhaseTimeout, aiohttp.ServerTimeoutError)


def _phase(trail: Trail) -> PhaseTimeout:
    made: PhaseTimeout = (_UNSENT if trail.phase in _BEFORE else _SENT)(trail)
    return made


ERRORS: Final = ErrorClasses(
    "aiohttp",
    _both(DeadlineExceeded, aiohttp.ServerTimeoutError),
    _both(InsufficientBudget, aiohttp.ServerTimeoutError),
    _phase,
)
