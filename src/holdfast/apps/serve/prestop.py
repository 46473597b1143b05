"""The lame duck before the stop: somebody says that it will come, and it has not yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.lifecycle.drain import Begun, Drain, DrainState, DrainTerms, Looked, opening
from holdfast.domain.record import Record
from holdfast.runtime.clock import monotonic
from holdfast.runtime.lifecycle import Host

__all__ = ["Prestop", "announces"]

_CAUSE: Final = "prestop"


def announces(record: Record) -> bool:
    """Whether a process tells that its stop was announced."""
    return record.kind == "ready.changed" and record.cause == _CAUSE


class Prestop:
    """Asked by `holdfast prestop`. From then on the process is unready, and serves on.

    What the lame duck has lasted before the stop counts when the stop comes.

    Args:
        announce: from then on responses say that their connection ends.
        latest: says when somebody came last.
        host: becomes unready.
        terms: gives the times of the lame duck.
    """

    def __init__(
        self,
        announce: Callable[[], None],
        latest: Callable[[], Instant],
        host: Host,
        terms: Callable[[], DrainTerms],
    ) -> None:
        self._announce = announce
        self._latest = latest
        self._host = host
        self._terms = terms
        self._state: DrainState | None = None

    def lasted(self) -> Duration:
        """Seconds since it was asked; 0.0 when it was not."""
        return 0.0 if self._state is None else monotonic() - self._state.begun

    def asked(self) -> dict[str, object]:
        """Be unready; how long the lame duck lasts at most, in seconds. May be asked again."""
        now = monotonic()
        if self._state is None:
            self._begin(now)
        return {"phase": str(self._host.phase), "lame_duck_s": round(self._left(now), 3)}

    def since(self, at: Instant) -> None:
        """It was asked at `at`, when another process was here."""
        if self._state is None:
            self._begin(at)

    def _begin(self, now: Instant) -> None:
        host = self._host
        before = host.health.gate
        self._state, _ = Drain().step(opening(self._terms()), Begun(NEVER), now)
        host.health.gate = lambda: before() or "a stop was announced"
        self._announce()
        host.journal.write("ready.changed", "unready", "a stop was announced", cause=_CAUSE)

    def _left(self, now: Instant) -> Duration:
        if self._state is None or self._host.stopping:
            return 0.0
        state, decided = Drain().step(self._state, Looked(1, self._latest()), now)
        return 0.0 if decided else max(0.0, state.look - now)
