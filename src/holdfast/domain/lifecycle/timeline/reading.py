"""From the records of a run to its timeline.

Records may come in any order, and some may be missing: a process that was killed wrote no end. What
is not told is left out or said to be unknown, and never guessed.

Of the data of a record these keys are read, where they are there:

    process.started  service, role, parent
    signal.received  meaning, and of the sender: sender (in words), or pid and process
    stop.begun       until (the drain deadline, an instant) or drain_s, end (of all) or grace_s
    drain.step       in_flight (so in any record), left, finished
    shutdown.unanswered
                     forced
    drain.cut        cut (how many), work (a list of objects, each with its scope)
    process.ended    code, cut
    worker.*         pid, code or signal
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.timeline.lanes import lanes_of
from holdfast.domain.lifecycle.timeline.model import Mark, Point, Span, Story, Timeline, Tone, plain
from holdfast.domain.lifecycle.timeline.placing import Life, Placed, runs
from holdfast.domain.lifecycle.timeline.verdict import judge, judge_all
from holdfast.domain.record import Record

__all__ = ["timelines"]

_STOPPING: Final = frozenset({"SIGTERM", "SIGINT", "SIGQUIT"})
_HARMLESS: Final = frozenset({"reload", "dump", "ignore"})
_PARTS: Final = {
    "announce": "lame duck",
    "lame_duck_over": "letting go",
    "listener_closed": "letting go",
    "farewell": "letting go",
    "deadline": "cutting",
    "cut": "cutting",
    "done": "",
}
"""Which part of a drain begins with a step."""
_BAD: Final = frozenset(
    {
        "component.failed",
        "component.died",
        "component.forced",
        "drain.cut",
        "hook.failed",
        "worker.died",
    }
)
_WARN: Final = frozenset({"shutdown.unanswered", "config.refused"})
_LONGEST: Final[Duration] = 86_400.0 * 365
"""A time-out that is longer is none."""


def timelines(records: Iterable[Record]) -> tuple[Timeline, ...]:
    """A timeline for each run that is in the records, oldest first; none for no records.

    Processes that were there at the same time are one run: a supervisor and its workers.
    """
    return tuple(_timeline(lives) for lives in runs(records))


def _timeline(lives: Sequence[Life]) -> Timeline:
    stops = [at for life in lives if (at := _stop(life)) is not None]
    began = min(life.began for life in lives)
    zero = min(stops) if stops else began
    told = _told(lives)
    known = {life.pid: told[life.pid] for life in lives if life.pid in told}
    ended = max(life.ended for life in lives)
    stories = [_Reader(life, zero, ended, known.get(life.pid)).story() for life in lives]
    stories = [replace(story, **judge(story)) for story in stories]
    stories.sort(key=lambda story: (story.role != "supervisor", story.began, story.pid))
    verdict, tone = judge_all(stories)
    return Timeline(
        verdict=verdict,
        tone=tone,
        zero=_wall(lives, zero),
        began=_round(began - zero),
        ended=_round(ended - zero),
        stories=tuple(stories),
    )


def _wall(lives: Sequence[Life], zero: Instant) -> float:
    known = [(abs(p.at - zero), p) for life in lives for p in life.records if p.record.wall > 0]
    if not known:
        return 0.0
    _, nearest = min(known, key=lambda pair: pair[0])
    return _round(nearest.record.wall - (nearest.at - zero))


@dataclass(frozen=True, slots=True)
class _Told:
    """What a supervisor says of the end of a worker."""

    at: Instant
    exit_code: int | None


def _told(lives: Iterable[Life]) -> dict[int, _Told]:
    found: dict[int, _Told] = {}
    for life in lives:
        for placed in life.records:
            record = placed.record
            if not record.kind.startswith("worker."):
                continue
            pid = _integer(record.data, "pid", "worker_pid")
            code = _integer(record.data, "code", "exit_code")
            number = _integer(record.data, "signal")
            if code is None and number is not None:
                code = -number
            if pid is not None and (code is not None or pid not in found):
                found[pid] = _Told(placed.at, code)
    return found


def _stop(life: Life) -> Instant | None:
    for placed in life.records:
        record = placed.record
        if record.kind == "stop.begun":
            return placed.at
        if record.kind == "phase.entered" and record.subject in ("terminating", "draining"):
            return placed.at
        if record.kind == "signal.received" and _stops(record):
            return placed.at
    return None


def _stops(record: Record) -> bool:
    meaning = record.data.get("meaning")
    if isinstance(meaning, str) and meaning:
        return meaning not in _HARMLESS
    return record.subject in _STOPPING


class _Reader:
    """One process."""

    def __init__(self, life: Life, zero: Instant, ended: Instant, told: _Told | None) -> None:
        self._life = life
        self._zero = zero
        self._ended = ended
        self._told = told
        self._marks = [self._mark(placed) for placed in life.records]

    def story(self) -> Story:
        life, first = self._life, self._first
        started, ended = first("process.started"), first("process.ended")
        stop = _stop(life)
        last = _round(self._last(complete=ended is not None, stop=stop) - self._zero)
        steps = self._of("drain.step")
        cuts = self._of("drain.cut")
        snapshot = first("process.snapshot")
        data: Mapping[str, Any] = {} if snapshot is None else snapshot.data
        deadline, grace = self._limits()
        cut = _cut(cuts, steps, ended)
        complete = ended is not None
        return Story(
            pid=life.pid,
            service=_service(started),
            role=self._role(started),
            began=_round(life.began - self._zero),
            born=started is not None,
            stop=None if stop is None else _round(stop - self._zero),
            ended=last,
            complete=complete,
            exit_code=self._exit_code(ended),
            uptime=_number(data, "uptime_s")
            or (_round(self._zero + last - life.began) if started is not None else None),
            deadline=deadline,
            grace=grace,
            phases=_phases(self._of("phase.entered"), last, complete),
            drain=_drain(steps, last),
            lanes=lanes_of(self._marks, last, over=complete or self._exit_code(ended) is not None),
            flight=_flight(self._marks),
            signals=self._of("signal.received"),
            steps=steps,
            cuts=cuts,
            hooks=self._of("hook.done", "hook.failed"),
            others=tuple(mark for mark in self._marks if not _has_home(mark.kind)),
            marks=tuple(self._marks),
            finished=_finished(steps, cut),
            cut=cut,
            snapshot=data,
        )

    def _last(self, *, complete: bool, stop: Instant | None) -> Instant:
        """Until when it was there, as far as can be known."""
        if complete:
            return self._life.ended
        if self._told is not None and self._told.exit_code is not None:
            return max(self._told.at, self._life.ended)
        # One that was not told to stop is there as long as anybody says anything.
        return self._ended if stop is None else self._life.ended

    def _mark(self, placed: Placed) -> Mark:
        record = placed.record
        tone = _tone(record)
        at = _round(placed.at - self._zero)
        data: Mapping[str, Any] = plain(record.data)
        return Mark(at, record.kind, record.subject, record.detail, record.cause, tone, data)

    def _of(self, *kinds: str) -> tuple[Mark, ...]:
        return tuple(mark for mark in self._marks if mark.kind in kinds)

    def _first(self, kind: str) -> Mark | None:
        return next((mark for mark in self._marks if mark.kind == kind), None)

    def _role(self, started: Mark | None) -> str:
        given = "" if started is None else started.data.get("role")
        if given in ("process", "supervisor", "worker"):
            return str(given)
        if any(mark.kind.startswith("worker.") for mark in self._marks):
            return "supervisor"
        if self._told is not None or (started is not None and started.data.get("parent")):
            return "worker"
        return "process"

    def _exit_code(self, ended: Mark | None) -> int | None:
        if ended is not None:
            code = _integer(ended.data, "code", "exit_code")
            if code is not None:
                return code
        return None if self._told is None else self._told.exit_code

    def _limits(self) -> tuple[Instant | None, Instant | None]:
        """The end of the drain, and the instant by which the whole stop must be over."""
        for placed in self._life.records:
            record, at = placed.record, _round(placed.at - self._zero)
            if record.kind != "stop.begun":
                continue
            deadline = _after(record, "until", "deadline"), _number(record.data, "drain_s")
            end = _after(record, "end"), _number(record.data, "grace_s", "grace")
            return _limit(at, *deadline), _limit(at, *end)
        return None, None


def _after(record: Record, *keys: str) -> Duration | None:
    """How long after the record an instant of the same clock is."""
    instant = _number(record.data, *keys)
    return None if instant is None else instant - record.at


def _tone(record: Record) -> Tone:
    if record.kind == "drain.cut" and record.data.get("cut") == 0:
        return Tone.PLAIN
    cuts = record.kind == "drain.step" and record.subject in ("deadline", "cut")
    if record.kind in _BAD or (cuts and record.data.get("in_flight") != 0):
        return Tone.BAD
    return Tone.WARN if record.kind in _WARN else Tone.PLAIN


def _limit(at: Instant, *after: Duration | None) -> Instant | None:
    for each in after:
        if each is not None and 0 <= each <= _LONGEST:
            return _round(at + each)
    return None


def _has_home(kind: str) -> bool:
    return kind.startswith(("drain.", "hook.", "signal.", "phase.", "component.", "shutdown."))


def _service(started: Mark | None) -> str:
    if started is None:
        return ""
    given = started.data.get("service")
    return given if isinstance(given, str) and given else started.subject


def _phases(entered: Sequence[Mark], last: Instant, complete: bool) -> tuple[Span, ...]:
    ends = [*(mark.at for mark in entered[1:]), last]
    spans = [Span(mark.subject, mark.at, end) for mark, end in zip(entered, ends, strict=False)]
    if spans and not complete:
        spans[-1] = replace(spans[-1], open=True)
    return tuple(spans)


def _drain(steps: Sequence[Mark], last: Instant) -> tuple[Span, ...]:
    spans: list[Span] = []
    name, began = "", 0.0
    for mark in steps:
        part = _PARTS.get(mark.subject, name)
        if part == name:
            continue
        if name:
            spans.append(Span(name, began, mark.at))
        name, began = part, mark.at
    if name:
        spans.append(Span(name, began, max(began, last), open=True))
    return tuple(spans)


def _flight(marks: Iterable[Mark]) -> tuple[Point, ...]:
    points: list[Point] = []
    for mark in marks:
        count = _integer(mark.data, "in_flight")
        if count is None and mark.kind == "drain.step" and mark.subject == "done":
            count = _integer(mark.data, "left")
        if count is not None and count >= 0:
            points.append(Point(mark.at, count))
    return tuple(points)


def _cut(cuts: Sequence[Mark], steps: Iterable[Mark], ended: Mark | None) -> int:
    """How many pieces of work were cut; one event is told by several, so the largest counts."""
    told = 0
    for mark in cuts:
        count = _integer(mark.data, "cut", "count")
        told += 1 if count is None else max(count, 0)
    at_deadline = [
        _integer(mark.data, "in_flight") or 0
        for mark in steps
        if mark.subject in ("deadline", "cut")
    ]
    in_the_end = None if ended is None else _integer(ended.data, "cut")
    return max(told, in_the_end or 0, *at_deadline, 0)


def _finished(steps: Sequence[Mark], cut: int) -> int | None:
    """How many were in flight and ended by themselves; those that came later count where told."""
    for mark in reversed(steps):
        told = _integer(mark.data, "finished")
        if told is not None:
            return max(told, 0)
    over = any(mark.subject == "done" for mark in steps)
    for mark in steps:
        begun = _integer(mark.data, "in_flight")
        if mark.subject == "announce" and begun is not None and over:
            return max(begun - cut, 0)
    return None


def _number(data: Mapping[str, object], *keys: str) -> float | None:
    for key in keys:
        value = data.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if -1e15 < value < 1e15:
            return float(value)
    return None


def _integer(data: Mapping[str, object], *keys: str) -> int | None:
    number = _number(data, *keys)
    return None if number is None else int(number)


def _round(instant: Instant) -> Instant:
    return round(instant, 6)
