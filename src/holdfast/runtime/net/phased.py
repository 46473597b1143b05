"""One phase of a call: bounded, recorded, and named in the error when the time runs out in it."""

from __future__ import annotations

import asyncio
from types import TracebackType

from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout, ScopeEnded
from holdfast.domain.instant import Instant
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime.ambient import deadline_at
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import Scope, ambient

__all__ = ["blamed", "within"]


class within:
    """`async with within(trail, Phase.TLS): ...`: the block is the phase.

    What is done counts: a block that ends well although its share is spent, as the loop was held
    up, has ended well while the whole has time left.

    Args:
        trail: the record of the call.
        phase: what begins.
        detail: for people, when the phase does not end well.

    Attributes:
        until: monotonic instant by which it must be over.

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
        self.until: Instant = trail.begin(phase, self._now())

    async def __aenter__(self) -> within:
        self._scope = scope = deadline_at(self.until, name=self._phase.value)
        try:
            await scope.__aenter__()
        except ScopeEnded as exc:
            late = self._ended(exc, self.until <= self._now())
            if late is exc:
                raise
            raise late from exc
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope, trail = self._scope, self._trail
        assert scope is not None
        try:
            await scope.__aexit__(exc_type, exc, traceback)
        except ScopeEnded as error:
            own = scope.cause is not None
            if not (own and self._is_done(scope, exc)):
                late = self._ended(error, own)
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

    def _is_done(self, scope: Scope, exc: BaseException | None) -> bool:
        """Whether only the share is spent, and nobody was told before the block had ended."""
        return exc is None and not scope.delivered and not self._trail.spent(self._now())

    def _ended(self, error: ScopeEnded, own: bool) -> ScopeEnded | PhaseTimeout:
        """The error to raise for one of a scope: that of the phase, or else of one around it."""
        now, trail = self._now(), self._trail
        if not isinstance(error, DeadlineExceeded):
            trail.end(now, Ended.CANCELLED, self._detail)
            return error
        trail.end(now, Ended.TIMEOUT, self._detail)
        if own and not trail.spent(now):
            return PhaseTimeout(trail)
        if error.trail is None:
            error.trail = trail
            error.add_note(trail.line())
        return error


def blamed(trail: Trail, now: Instant, detail: str = "") -> None:
    """The call was cancelled where it is: close its record, and let the scope that ended know."""
    trail.end(now, Ended.TIMEOUT if trail.spent(now) else Ended.CANCELLED, detail)
    here = ambient()
    if here is not None:
        here.blame(trail)
