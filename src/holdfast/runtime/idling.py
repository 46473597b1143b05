"""The end of a scope in which nothing happens, for streams that have no sensible total limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.domain.cause import CauseKind
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.runtime.scope import Scope

__all__ = ["IdleWatch"]


class IdleWatch:
    """Ends an open scope when nothing has happened in it for a while.

    Args:
        scope: which; it is settled, so that it does not leave quietly.
        idle: seconds without a sign of life.
        touched: tells when the last one was; infinite when none is expected any more.
    """

    __slots__ = ("_alarm", "_idle", "_scope", "_touched")

    def __init__(self, scope: Scope, idle: Duration, touched: Callable[[], Instant]) -> None:
        self._scope = scope
        self._idle = idle
        self._touched = touched
        scope.settle()
        self._alarm = scope.driver.alarm(touched() + idle, self._look)

    def stop(self) -> None:
        """It is over: the alarm would keep all of it for as long as the idle limit."""
        self._scope.driver.drop(self._alarm)

    def _look(self) -> None:
        scope, touched = self._scope, self._touched()
        if scope.outcome is not None or touched == NEVER:
            return
        driver = scope.driver
        now, due = driver.now(), touched + self._idle
        if due > now:
            self._alarm = driver.alarm(due, self._look)
        else:
            what = f"nothing was sent or read for {format_duration(self._idle)}"
            cause = scope.cause_of(CauseKind.DEADLINE, now, what)
            driver.begin(scope, replace(cause, budget=due - scope.opened_at))
