"""OpenTelemetry: calls over the network on the span in which they were made.

    instrument(client, observer=SpanTrails())

Makes no spans of its own. On the span that is current when a call ends it leaves

- an event for each phase that did not end well, `tcp.connect.timeout`, with what is known of it;
- attributes: how many calls there were, and seconds by phase over all of them.

`docs/reference/phases.md` lists the names. Only the API of OpenTelemetry is used: without an SDK,
or in a span that is not recorded, a call costs one look at the current span.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from opentelemetry import trace

from holdfast.domain.instant import NEVER, Duration, format_duration
from holdfast.domain.phases import Ended, Phase, Step, Trail

__all__ = ["CALLS", "PHASES", "PREFIX", "SpanTrails", "attributes_of"]

PREFIX: Final = "holdfast."
"""Of every attribute."""

CALLS: Final = f"{PREFIX}calls"
"""Attribute of a span: the calls that ended in it."""

PHASES: Final = f"{PREFIX}phases."
"""Attributes of a span and of an event, with a phase behind it: the seconds that it took."""

Attributes: TypeAlias = dict[str, str | int | float | tuple[str, ...]]


class SpanTrails:
    """A `TrailObserver` that writes on the current span. One may serve any number of clients.

    Args:
        durations: whether spans get the seconds by phase as attributes, also when all went well.
    """

    def __init__(self, *, durations: bool = True) -> None:
        self._durations = durations
        self._lock = threading.Lock()
        self._totals: WeakKeyDictionary[trace.Span, dict[str, float]] = WeakKeyDictionary()

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        """Note a call on the current span; see `TrailObserver`."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        for place, step in enumerate(trail.steps):
            if step.ended is not Ended.DONE:
                last = place == len(trail.steps) - 1
                name = f"{step.phase.value}.{step.ended.value}"
                span.add_event(name, attributes_of(trail, step, error if last else None))
        if self._durations:
            span.set_attributes(self._sum(span, trail.took))

    def _sum(self, span: trace.Span, took: dict[Phase, Duration]) -> dict[str, float]:
        """What all calls of `span` took, with one that has just ended."""
        with self._lock:
            totals: dict[str, float] = {CALLS: 0}
            # A span of another SDK that cannot be held weakly says what was last.
            with suppress(TypeError):
                totals = self._totals.setdefault(span, totals)
            totals[CALLS] += 1
            for phase, seconds in took.items():
                key = PHASES + phase.value
                totals[key] = totals.get(key, 0.0) + seconds
            return totals.copy()


def attributes_of(trail: Trail, step: Step, error: BaseException | None = None) -> Attributes:
    """What the event of a phase says. What has no limit, or did not happen, is left away."""
    found: Attributes = {
        f"{PREFIX}client": trail.client,
        f"{PREFIX}target": trail.target,
        f"{PREFIX}phase": step.phase.value,
        f"{PREFIX}detail": step.detail,
        f"{PREFIX}took_s": step.took,
        f"{PREFIX}share_s": step.share,
        f"{PREFIX}left_s": step.left,
        f"{PREFIX}budget_s": trail.limit - trail.begun,
        f"{PREFIX}elapsed_s": step.began + step.took,
        f"{PREFIX}bytes_sent": trail.sent,
        f"{PREFIX}bytes_received": trail.received,
        f"{PREFIX}redirects": trail.redirects,
        f"{PREFIX}interim_status": trail.interim,
        f"{PREFIX}addresses": tuple(
            f"{a.address} {a.result} {format_duration(a.took)}" for a in trail.attempts
        ),
        "error.type": "" if error is None else type(error).__name__,
    }
    for phase, seconds in trail.took.items():
        found[PHASES + phase.value] = seconds
    return {key: value for key, value in found.items() if value not in ("", (), NEVER)}
