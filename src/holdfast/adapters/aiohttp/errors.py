"""Our errors, as programs of aiohttp expect them: each is a `ServerTimeoutError` as well."""

from __future__ import annotations

from typing import Final

import aiohttp

from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import DIALLING, Phase, Trail
from holdfast.runtime.outbound import ErrorClasses, both

__all__ = ["ERRORS"]

_BEFORE: Final = (Phase.POOL, *DIALLING)


_HOME: Final = "holdfast.adapters.aiohttp"
_UNSENT: Final = both(PhaseTimeout, aiohttp.ConnectionTimeoutError, _HOME)
_SENT: Final = both(PhaseTimeout, aiohttp.ServerTimeoutError, _HOME)


def _phase(trail: Trail) -> PhaseTimeout:
    made: PhaseTimeout = (_UNSENT if trail.phase in _BEFORE else _SENT)(trail)
    return made


ERRORS: Final = ErrorClasses(
    "aiohttp",
    both(DeadlineExceeded, aiohttp.ServerTimeoutError, _HOME),
    both(InsufficientBudget, aiohttp.ServerTimeoutError, _HOME),
    _phase,
)
