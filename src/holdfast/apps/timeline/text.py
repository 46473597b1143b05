"""A timeline for terminals: lines, with the style of each part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from holdfast.apps.timeline.axis import Axis, axis_of
from holdfast.apps.timeline.words import (
    clean,
    date,
    fate,
    fields,
    headline,
    length,
    name,
    what,
    when,
)
from holdfast.domain.lifecycle.timeline import Fate, Lane, Mark, Story, Timeline, Tone

__all__ = ["STYLES", "Line", "as_text", "lines"]

Line: TypeAlias = list[tuple[str, str]]
"""Parts of a line, each with its style."""

STYLES: Final = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.WARN: "yellow", Tone.BAD: "red"}
_NAMES: Final = 14
_BAR: Final = 64
_MOST: Final = 200
_MOST_STORIES: Final = 32
_NARROW: Final = str.maketrans("█▓░▏│╎·—…", "#=.||:.-~")
"""For terminals that know ASCII only."""


def as_text(timeline: Timeline, *, ascii_only: bool = False) -> str:
    """The lines of a timeline in one text, without styles."""
    text = "".join(
        f"{''.join(part for part, _ in line)}".rstrip() + "\n" for line in lines(timeline)
    )
    return text.translate(_NARROW) if ascii_only else text


def lines(timeline: Timeline) -> Iterator[Line]:
    """The verdict, then for each process its bars and its events."""
    yield [(clean(timeline.verdict), f"bold {STYLES[timeline.tone]}".strip())]
    for story in timeline.stories[:_MOST_STORIES]:
        yield []
        yield from _story(story, timeline)
    if len(timeline.stories) > _MOST_STORIES:
        yield []
        yield [(f"and {len(timeline.stories) - _MOST_STORIES} more processes", "dim")]


def _story(story: Story, timeline: Timeline) -> Iterator[Line]:
    title: Line = [(name(story), "bold")]
    began = date(timeline.zero + story.began) if timeline.zero else ""
    if began:
        title.append((f"  {'started' if story.born else 'first heard of'} {began}", "dim"))
    if story.exit_code is not None:
        title.append((f"  exit code {story.exit_code}", STYLES[story.tone]))
    yield title
    if len(timeline.stories) > 1:
        yield [("  ", ""), (clean(story.verdict), STYLES[story.tone])]
    yield []
    axis = axis_of([story])
    yield from _bars(story, axis)
    yield []
    yield from _events(story.marks)
    yield from _snapshot(story)


# -- the bars --------------------------------------------------------------------------------------


def _bars(story: Story, axis: Axis) -> Iterator[Line]:
    yield [(" " * (_NAMES + 4) + _scale(axis), "dim")]
    for index, phase in enumerate(story.phases):
        bar = _bar(axis, [(phase.began, phase.ended, "█" if index % 2 else "▓")])
        note = f"  {length(phase.took)}{' at least' if phase.open else ''}"
        yield [(_label(phase.name), "cyan"), (bar, "cyan"), (note, "dim")]
    for part in story.drain:
        bar = _bar(axis, [(part.began, part.ended, "▓")])
        yield [
            (_label(part.name), "blue"),
            (bar, "blue"),
            (f"  {length(part.took)}", "dim"),
        ]
    for lane in story.lanes:
        style = _style(lane)
        yield [
            (_label(lane.name), style),
            (_lane(axis, lane, story), style),
            (f"  {fate(lane)}", style),
        ]
    yield from _limits(story, axis)


def _scale(axis: Axis) -> str:
    cells = [" "] * (_BAR + 12)
    free = 0
    for piece in axis.pieces:
        if piece.pause:
            column = round(piece.left * _BAR)
            cells[column] = "╎"
            free = max(free, column + 1)
    for at in axis.ticks():
        column = round(axis.place(at) * _BAR)
        text = f"│{when(at)}"
        if column >= free:
            cells[column : column + len(text)] = text
            free = column + len(text) + 1
    return "".join(cells).rstrip()


def _limits(story: Story, axis: Axis) -> Iterator[Line]:
    known = (("drain deadline", story.deadline), ("must be over", story.grace))
    for what_, at in known:
        if at is None:
            continue
        if at <= axis.ended:
            yield [
                (_label(what_), "yellow"),
                (_bar(axis, [(at, at, "│")]), "yellow"),
                (f"  {when(at)}", "dim"),
            ]
        else:
            yield [(_label(what_), "dim"), (f"{when(at)}, after the end".rjust(_BAR), "dim")]


def _label(text: str) -> str:
    text = clean(text)
    text = text if len(text) <= _NAMES else f"{text[: _NAMES - 1]}…"
    return f"  {text:<{_NAMES}}  "


def _bar(axis: Axis, parts: Sequence[tuple[float, float, str]]) -> str:
    cells = ["·"] * _BAR
    for began, ended, character in parts:
        left = min(int(axis.place(began) * _BAR), _BAR - 1)
        right = max(int(axis.place(ended) * _BAR), left + 1)
        cells[left:right] = character * (min(right, _BAR) - left)
    return "".join(cells)


def _lane(axis: Axis, lane: Lane, story: Story) -> str:
    up = story.began if lane.started is None else lane.started
    parts = [(up, lane.last if lane.asked is None else lane.asked, "░")]
    if lane.asked is not None:
        parts.append((lane.asked, lane.last, "▓"))
    if lane.answered is not None:
        parts.append((lane.answered, lane.last, "█"))
    return _bar(axis, parts)


def _style(lane: Lane) -> str:
    if lane.fate in (Fate.FORCED, Fate.DIED, Fate.FAILED, Fate.LOST):
        return "red"
    return "yellow" if lane.unanswered else "green" if lane.fate is Fate.STOPPED else ""


# -- the events ------------------------------------------------------------------------------------


def _events(marks: Sequence[Mark]) -> Iterator[Line]:
    for mark in marks[:_MOST]:
        cause = f"  ({clean(mark.cause)})" if mark.cause else ""
        yield [
            (f"  {when(mark.at):>12}  ", "dim"),
            (f"{clean(headline(mark)):<20}  ", STYLES[mark.tone] or "cyan"),
            (what(mark), STYLES[mark.tone]),
            (cause, "dim"),
        ]
    if len(marks) > _MOST:
        yield [(f"  and {len(marks) - _MOST} more; --format json has all of them", "dim")]


def _snapshot(story: Story) -> Iterator[Line]:
    if story.snapshot:
        yield []
        words = ", ".join(f"{key} {value}" for key, value in fields(story.snapshot))
        yield [("  at the end: ", "dim"), (clean(words), "")]
