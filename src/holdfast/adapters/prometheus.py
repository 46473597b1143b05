"""Prometheus: calls over the network as metrics, by client and phase.

    instrument(client, observer=MetricTrails())

    holdfast_client_phase_seconds{client, phase}           histogram, of each phase of each call
    holdfast_client_phase_timeouts_total{client, phase}    counter, of phases that ended by time

A label is the name of a library or of a phase, never what came over the network: there are at most
a few dozen series, whatever is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from holdfast.domain.errors import UsageError
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime.ambient import carried

__all__ = ["BUCKETS", "SECONDS", "TIMEOUTS", "MetricTrails"]

SECONDS: Final = "holdfast_client_phase_seconds"
TIMEOUTS: Final = "holdfast_client_phase_timeouts_total"

BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper edges in seconds: a phase on the same machine is under the first, a long poll under the
last."""


class MetricTrails:
    """A `TrailObserver` that keeps metrics. Make one for each registry, for all clients.

    A time-out brings the trace id of its request as an exemplar, where there is one: a registry
    shows it in the OpenMetrics format, if its values are kept in one process.

    Args:
        registry: where the metrics are listed; the default one of prometheus_client if none given.
        buckets: upper edges of the histogram, in seconds.

    Raises:
        UsageError: the registry has these metrics already.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, buckets: Sequence[float] = BUCKETS
    ) -> None:
        labels = ("client", "phase")
        try:
            self._seconds = Histogram(
                SECONDS,
                "Seconds that the phases of calls over the network took.",
                labels,
                registry=registry,
                buckets=buckets,
            )
        except ValueError as error:
            if SECONDS not in str(error):
                raise
            raise UsageError(
                f"this registry has {SECONDS} already: make one MetricTrails for each registry, "
                "and give it to all clients"
            ) from error
        self._timeouts = Counter(
            TIMEOUTS.removesuffix("_total"),
            "Phases of calls over the network in which the time ran out.",
            labels,
            registry=registry,
        )
        # To look a child up costs more than to add to it.
        self._seconds_of: dict[tuple[str, Phase], Histogram] = {}
        self._timeouts_of: dict[tuple[str, Phase], Counter] = {}

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        """Add a call; see `TrailObserver`."""
        client = trail.client or "holdfast"
        for phase, seconds in trail.took.items():
            key = (client, phase)
            histogram = self._seconds_of.get(key)
            if histogram is None:
                histogram = self._seconds_of[key] = self._seconds.labels(client, phase.value)
            histogram.observe(seconds)
        for step in trail.steps:
            if step.ended is Ended.TIMEOUT:
                self._count(client, step.phase)

    def _count(self, client: str, phase: Phase) -> None:
        counter = self._timeouts_of.get((client, phase))
        if counter is None:
            counter = self._timeouts.labels(client, phase.value)
            self._timeouts_of[client, phase] = counter
        trace_id = carried().identity.trace_id
        counter.inc(1, {"trace_id": trace_id} if trace_id else None)
