"""The step protocol: every policy and controller is a machine of this one shape.

A machine decides and never acts. The driver journals the event, calls `step`, performs the
decisions, and after a crash folds the journal to be where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from holdfast.domain.instant import Instant

__all__ = ["Machine", "fold"]

S = TypeVar("S")
E_contra = TypeVar("E_contra", contravariant=True)
E = TypeVar("E")
D_co = TypeVar("D_co", covariant=True)
D = TypeVar("D")


class Machine(Protocol[S, E_contra, D_co]):
    """State, events and decisions of one family; each of the three a closed set of frozen types."""

    def step(self, state: S, event: E_contra, now: Instant) -> tuple[S, Sequence[D_co]]:
        """The next state, and what the driver must do. Pure: equal arguments, equal answer."""
        ...


def fold(machine: Machine[S, E, D], state: S, journal: Iterable[tuple[Instant, E]]) -> S:
    """The state after the events of a journal; their decisions were performed already."""
    for at, event in journal:
        state, _ = machine.step(state, event, at)
    return state
