"""The times of a host."""

from __future__ import annotations

from dataclasses import dataclass, fields

from holdfast.domain.instant import NEVER, Duration

__all__ = ["HostTerms"]


@dataclass(frozen=True, slots=True)
class HostTerms:
    """How long each part of a process's life may take, in seconds.

    Attributes:
        start: all components have to be up by then; may be infinite.
        tell: what was registered with `on_stop` has so long.
        acknowledge: a component has so long to answer a `ShutdownRequest`.
        drain: from the beginning of the stop until work that is still under way is cut; the lame
            duck of a server is a part of it.
        cleanup: the reserve behind that, for hooks and for what is stopped after the work.
        hurried: what a forced stop leaves of that reserve.
        unwinding: what was cut has so long to clean up; at most half of the reserve.
        idle: pools close connections that were idle for so long, once the stop has begun.
    """

    start: Duration = 60.0
    tell: Duration = 1.0
    acknowledge: Duration = 1.0
    drain: Duration = 30.0
    cleanup: Duration = 5.0
    hurried: Duration = 1.0
    unwinding: Duration = 1.5
    idle: Duration = 0.1

    def __post_init__(self) -> None:
        for each in fields(self):
            value: float = getattr(self, each.name)
            if not value >= 0 or (value == NEVER and each.name != "start"):
                raise ValueError(
                    f"{each.name} must be zero or more seconds and finite, got {value}"
                )

    @property
    def moment(self) -> Duration:
        """What was cut has so long, given the reserve that there is."""
        return min(self.unwinding, self.cleanup / 2)
