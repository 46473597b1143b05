"""A timeline as a sequence diagram of mermaid.

Every text of a record is written with the entity codes of mermaid for whatever could be read as
syntax, so that no text can be more than a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from holdfast.apps.timeline.words import clean, fate, headline, name, what, when
from holdfast.domain.lifecycle.timeline import Mark, Story, Timeline, sender

__all__ = ["as_mermaid"]

_SAFE: Final = frozenset(" .,()/+-=_'?!*@")
_END: Final = re.compile(r"\bend\b", re.IGNORECASE)
_MOST: Final = 120
_MOST_STORIES: Final = 16
_LONGEST: Final = 160


def as_mermaid(timeline: Timeline) -> str:
    """The source of the diagram."""
    lines = ["sequenceDiagram"]
    stories = timeline.stories[:_MOST_STORIES]
    lines += [f"    accTitle: {_said(timeline.verdict)}"]
    people = _people(stories)
    lines += [f"    actor {key} as {_escaped(label)}" for label, key in people.items()]
    drawn = [_Drawing(number, story, people) for number, story in enumerate(stories)]
    for drawing in drawn:
        lines += drawing.participants()
    clients = any(drawing.serves for drawing in drawn)
    if clients:
        lines.append("    participant clients")
    lines.append(f"    Note over {drawn[0].process}: {_said(timeline.verdict)}")
    moments = [(mark.at, drawing, mark) for drawing in drawn for mark in drawing.story.marks]
    moments.sort(key=lambda moment: moment[0])
    for _, drawing, mark in moments[:_MOST]:
        lines += drawing.message(mark)
    if len(moments) > _MOST:
        lines.append(f"    Note over {drawn[0].process}: and {len(moments) - _MOST} more events")
    return "\n".join(lines) + "\n"


def _people(stories: Sequence[Story]) -> dict[str, str]:
    """Who sent signals, with the name of each in the diagram."""
    found: dict[str, str] = {}
    for story in stories:
        for mark in story.signals:
            found.setdefault(_from(mark), f"who{len(found)}")
    return found


def _from(mark: Mark) -> str:
    return sender(mark).removeprefix("by ") or "somebody"


class _Drawing:
    """One process."""

    def __init__(self, number: int, story: Story, people: dict[str, str]) -> None:
        self.story = story
        self.process = f"p{number}"
        self._people = people
        names = [lane.name for lane in story.lanes]
        self._lanes = {lane: f"p{number}c{index}" for index, lane in enumerate(names)}
        self.serves = bool(story.steps or story.cuts)

    def participants(self) -> Iterator[str]:
        yield f"    participant {self.process} as {_escaped(name(self.story))}"
        for lane, key in self._lanes.items():
            yield f"    participant {key} as {_escaped(lane)}"

    def message(self, mark: Mark) -> Iterator[str]:
        lane = self._lanes.get(mark.subject, self.process)
        text = _said(f"{when(mark.at)} {self._text(mark)}")
        match mark.kind:
            case "signal.received":
                yield f"    {self._people[_from(mark)]}->>{self.process}: {text}"
            case "shutdown.requested":
                yield f"    {self.process}->>{lane}: {text}"
            case "shutdown.acknowledged":
                yield f"    {lane}-->>{self.process}: {text}"
            case "shutdown.unanswered":
                yield f"    {lane}--x{self.process}: {text}"
            case "component.forced":
                yield f"    {self.process}-x{lane}: {text}"
            case "component.started" | "component.stopped" | "component.failed" | "component.died":
                yield f"    {lane}-->>{self.process}: {text}"
            case "drain.cut":
                yield f"    {self.process}-xclients: {text}"
            case "drain.step" if mark.subject == "in_flight":
                return
            case "drain.step":
                yield f"    {self.process}->>clients: {text}"
            case "process.snapshot":
                return
            case _:
                yield f"    Note over {self.process}: {text}"

    def _text(self, mark: Mark) -> str:
        if mark.kind == "drain.step":
            return what(mark)
        if mark.kind == "drain.cut" and "cut" in mark.data:
            return f"{mark.data['cut']} cut, {mark.cause}"
        if mark.kind in ("shutdown.requested", "shutdown.acknowledged", "shutdown.unanswered"):
            return headline(mark)
        if mark.kind in ("component.stopped", "component.forced"):
            lanes = [lane for lane in self.story.lanes if lane.name == mark.subject]
            return ", ".join([*(fate(lane) for lane in lanes), *filter(None, (mark.text,))])
        words = f"{headline(mark)}: {what(mark)}".removesuffix(": ")
        return f"{words} ({mark.cause})" if mark.cause else words


def _said(text: str) -> str:
    """As `_escaped`, for what comes behind a colon: another one is no syntax there."""
    return _escaped(text).replace("#58;", ":")


def _escaped(text: str) -> str:
    text = clean(text)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    words = "".join(c if c.isalnum() or c in _SAFE else f"#{ord(c)};" for c in text)
    # `end` closes a block, wherever it stands.
    return _END.sub(lambda found: f"#{ord(found[0][0])};{found[0][1:]}", words).strip() or "#32;"
