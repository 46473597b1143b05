"""One phase of a call: bounded, recorded, and named in the error when the time runs out in it."""

from __future__ import annotations

import asyncio
from types import TracebackType

from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime.ambient import deadline_at
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import Scope, ambient

__all__ = ["blamed", "within"]


class within:
    """`async with within(trail, Phase.TLS): ...`: the block is the phase.

    Args:
        trail: the record of the call.
        phase: what begins.
        detail: for people, when the phase does not end well.

    Raises:
        PhaseTimeout: the share of the phase is spent, and the whole is not.
        DeadlineExceeded: the limit of the whole is spent; `trail` is in the error.
    """

    def __init__(self, trail: Trail, phase: Phase, detail: str = "") -> None:
        self._trail = trail
        self._phase = phase
        self._detail = detail
        self._now = driver_of(asyncio.get_running_loop()).now
        self._scope: Scope | None = None
        self.until = trail.begin(phase, self._now())

    async def __aenter__(self) -> within:
        self._scope = scope = deadline_at(self.until, name=self._phase.value)
        try:
            await scope.__aenter__()
        except DeadlineExceeded as exc:
            raise self._late(exc) from exc
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._scope is not None
        trail = self._trail
        try:
            await self._scope.__aexit__(exc_type, exc, traceback)
        except DeadlineExceeded as error:
            late = self._late(error)
            if late is error:
                raise
            raise late from error
        now = self._now()
        if exc is None:
            trail.end(now)
        elif isinstance(exc, asyncio.CancelledError):
            blamed(trail, now, self._detail)
        else:
            trail.end(now, Ended.FAILED, self._detail or type(exc).__name__)

    def _late(self, error: DeadlineExceeded) -> DeadlineExceeded | PhaseTimeout:
        now = self._now()
        self._trail.end(now, Ended.TIMEOUT, self._detail)
        if not self._trail.spent(now):
            return PhaseTimeout(self._trail)
        if error.trail is None:
            error.trail = self._trail
            error.add_note(self._trail.line())
        return error


def blamed(trail: Trail, now: float, detail: str = "") -> None:
    """The call was cancelled where it is: close its record, and let the scope that ended know."""
    trail.end(now, Ended.TIMEOUT if trail.spent(now) else Ended.CANCELLED, detail)
    here = ambient()
    if here is not None:
        here.blame(trail)
