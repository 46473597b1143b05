"""From instants to places on a line.

What happens during a stop is to scale. Before it and after it a long pause is cut short, so that
three days of service don't squeeze two seconds of stop into nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.timeline import Story

__all__ = ["Axis", "Piece", "axis_of"]

_PAUSE: Final = 0.15
"""Share of the stop from which on a pause outside of it is cut short."""
_SHORT: Final = 0.05
"""Share of the line that such a pause gets."""
_SHORT_TOGETHER: Final = 0.3
_REACH: Final = 1.25
"""How much further than the stop itself a limit may be to be on the line."""
_TICKS: Final = 8
_LEAST: Final[Duration] = 1e-3


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the line, from share `left` to share `right`; a pause where `pause` is true."""

    began: Instant
    ended: Instant
    left: float
    right: float
    pause: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """The line. Never without a piece."""

    pieces: tuple[Piece, ...]

    @property
    def ended(self) -> Instant:
        """Its right end."""
        return self.pieces[-1].ended

    def place(self, at: Instant) -> float:
        """The share of the line at which an instant is, from 0 to 1."""
        for piece in self.pieces:
            if at <= piece.ended:
                share = (max(at, piece.began) - piece.began) / (piece.ended - piece.began)
                return piece.left + (piece.right - piece.left) * share
        return 1.0

    def ticks(self) -> list[Instant]:
        """Round instants, a handful."""
        scaled = [piece for piece in self.pieces if not piece.pause]
        length = sum(piece.ended - piece.began for piece in scaled)
        width = sum(piece.right - piece.left for piece in scaled)
        step = _round_step(length / (_TICKS * max(width, 0.2)))
        found: list[Instant] = []
        for piece in scaled:
            first = math.ceil(piece.began / step - 1e-9)
            last = math.floor(piece.ended / step + 1e-9)
            found += [number * step for number in range(first, min(last, first + 100) + 1)]
        return found


def axis_of(stories: Sequence[Story]) -> Axis:
    """A line with room for all that happened in these processes."""
    instants = {mark.at for story in stories for mark in story.marks}
    instants |= {story.began for story in stories} | {story.ended for story in stories}
    stops = [(story.stop, story.ended) for story in stories if story.stop is not None]
    began, ended = min(instants), max(instants)
    active = _length(stops) or ended - began
    for story in stories:
        if story.stop is not None:
            reach = story.stop + active * _REACH
            limits = (story.deadline, story.grace)
            instants |= {limit for limit in limits if limit is not None and limit <= reach}
    if max(instants) - min(instants) < _LEAST:
        instants.add(min(instants) + _LEAST)
    return Axis(tuple(_pieces(sorted(instants), stops, active)))


def _pieces(
    instants: Sequence[Instant], stops: Sequence[tuple[Instant, Instant]], active: Duration
) -> Iterable[Piece]:
    parts: list[tuple[Instant, Instant, bool]] = []
    for began, ended in pairwise(instants):
        inside = any(first <= began and ended <= last for first, last in stops)
        pause = bool(stops) and not inside and ended - began > max(active * _PAUSE, _LEAST)
        if parts and not pause and not parts[-1][2]:
            parts[-1] = (parts[-1][0], ended, False)
        else:
            parts.append((began, ended, pause))
    pauses = sum(pause for _, _, pause in parts)
    scaled = sum(ended - began for began, ended, pause in parts if not pause)
    short = min(_SHORT, _SHORT_TOGETHER / max(pauses, 1)) if scaled > 0 else 1 / max(pauses, 1)
    wide = 1 - short * pauses
    left = 0.0
    for began, ended, pause in parts:
        right = left + (short if pause else wide * (ended - began) / scaled)
        yield Piece(began, ended, left, min(right, 1.0), pause)
        left = right


def _length(spans: Iterable[tuple[Instant, Instant]]) -> Duration:
    length, reached = 0.0, -math.inf
    for began, ended in sorted(spans):
        length += max(ended - max(began, reached), 0.0)
        reached = max(reached, ended)
    return length


def _round_step(least: Duration) -> Duration:
    size = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    for times in (1, 2, 5):
        if size * times >= least:
            return size * times
    return size * 10
