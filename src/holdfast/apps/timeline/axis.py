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
_SHORT_TOGETHER: Final = 0.2
_OUTSIDE: Final = 0.12
"""Share of the line that is left for what happens outside of stops, besides the pauses."""
_REACH: Final = 1.25
"""How much further than the stop itself a limit may be to be on the line."""
_TICKS: Final = 8
_LEAST: Final[Duration] = 1e-3


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the line, from share `left` to share `right`.

    It is to scale with the other parts where `inside` is true, and a pause where `pause` is.
    """

    began: Instant
    ended: Instant
    left: float
    right: float
    inside: bool
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
        scaled = [piece for piece in self.pieces if piece.inside]
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
    began, ended = min(instants), max(instants)
    stops = [(story.stop, story.ended) for story in stories if story.stop is not None]
    active = sum(last - first for first, last in _joined(stops, 0.0))
    for story in stories:
        if story.stop is not None:
            reach = story.stop + active * _REACH
            limits = (story.deadline, story.grace)
            near = {limit for limit in limits if limit is not None and ended < limit <= reach}
            instants |= near
            stops += [(story.stop, limit) for limit in near]
    if max(instants) - min(instants) < _LEAST:
        instants.add(min(instants) + _LEAST)
    # Stops close to one another, as when workers are replaced in turn, are one picture.
    windows = _joined(stops, active) or [(began, max(instants))]
    return Axis(tuple(_pieces(sorted(instants), windows)))


def _pieces(
    instants: Sequence[Instant], windows: Sequence[tuple[Instant, Instant]]
) -> Iterable[Piece]:
    active = sum(last - first for first, last in windows)
    parts: list[tuple[Instant, Instant, bool, bool]] = []
    for began, ended in pairwise(instants):
        inside = any(first <= began and ended <= last for first, last in windows)
        pause = not inside and ended - began > max(active * _PAUSE, _LEAST)
        if parts and parts[-1][2:] == (inside, pause) and not pause:
            parts[-1] = (parts[-1][0], ended, inside, pause)
        else:
            parts.append((began, ended, inside, pause))
    within = sum(ended - began for began, ended, inside, _ in parts if inside)
    beside = sum(ended - began for began, ended, inside, pause in parts if not inside and not pause)
    pauses = sum(pause for _, _, _, pause in parts)
    short = min(_SHORT, _SHORT_TOGETHER / max(pauses, 1))
    left_over = 1 - short * pauses
    outside = min(_OUTSIDE, left_over * beside / (within + beside)) if within + beside > 0 else 0.0
    left = 0.0
    for began, ended, inside, pause in parts:
        if pause:
            width = short
        elif inside:
            width = (left_over - outside) * (ended - began) / within
        else:
            width = outside * (ended - began) / beside
        right = min(left + width, 1.0)
        yield Piece(began, ended, left, right, inside, pause)
        left = right


def _joined(
    spans: Iterable[tuple[Instant, Instant]], gap: Duration
) -> list[tuple[Instant, Instant]]:
    """The spans, those that are closer than `gap` as one."""
    found: list[tuple[Instant, Instant]] = []
    for began, ended in sorted(spans):
        if found and began - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(found[-1][1], ended))
        else:
            found.append((began, ended))
    return found


def _round_step(least: Duration) -> Duration:
    size = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    for times in (1, 2, 5):
        if size * times >= least:
            return size * times
    return size * 10
