"""The lives of the components of one process; those of a supervisor are its workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, cast

from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.timeline.model import Fate, Lane, Mark

__all__ = ["lanes_of"]

_ENDS: Final = {
    "component.stopped": Fate.STOPPED,
    "component.failed": Fate.FAILED,
    "component.died": Fate.DIED,
    "component.forced": Fate.FORCED,
    "worker.retired": Fate.STOPPED,
    "worker.died": Fate.DIED,
}
_WORSE: Final = (Fate.UP, Fate.STOPPED, Fate.FAILED, Fate.DIED, Fate.FORCED)


def lanes_of(marks: Iterable[Mark], last: Instant, *, over: bool) -> tuple[Lane, ...]:
    """A lane for each component that is named.

    Args:
        marks: the events of the process, in order.
        last: when the last of them was.
        over: whether the process is known to have ended.
    """
    lanes: dict[str, Lane] = {}
    for mark in marks:
        for name in _names(mark):
            # A worker has a lane from when it was asked to stop: one that died before that has been
            # replaced, and says nothing about the stop.
            if name in lanes or not mark.kind.startswith("worker."):
                lanes[name] = _next(lanes.get(name) or Lane(name), mark)
    return tuple(_closed(lane, last, over) for lane in lanes.values())


def _names(mark: Mark) -> list[str]:
    if not (mark.kind.startswith(("component.", "shutdown.")) or mark.kind in _ENDS):
        return []
    if mark.subject:
        return [mark.subject]
    several = mark.data.get("components")
    if not isinstance(several, list):
        return []
    return [name for name in cast("list[object]", several) if isinstance(name, str) and name]


def _next(lane: Lane, mark: Mark) -> Lane:
    match mark.kind:
        case "component.started":
            return replace(lane, started=mark.at if lane.started is None else lane.started)
        case "shutdown.requested":
            return replace(lane, asked=mark.at if lane.asked is None else lane.asked)
        case "shutdown.acknowledged":
            return replace(lane, answered=mark.at)
        case "shutdown.unanswered":
            # Forced: it is stopped without its answer.
            forced = mark.data.get("forced") is True
            fate = Fate.FORCED if forced else lane.fate
            return replace(lane, unanswered=True, fate=fate, text=mark.text or lane.text)
        case kind if kind in _ENDS:
            fate = max(lane.fate, _ENDS[kind], key=_WORSE.index)
            text = mark.text or mark.cause
            return replace(lane, ended=mark.at, fate=fate, text=text or lane.text)
        case _:
            return lane


def _closed(lane: Lane, last: Instant, over: bool) -> Lane:
    if lane.ended is not None:
        return replace(lane, last=lane.ended)
    if lane.fate is Fate.FORCED:
        return replace(lane, last=last)
    fate = Fate.LOST if over or lane.asked is not None else Fate.UP
    return replace(lane, fate=fate, last=last)
