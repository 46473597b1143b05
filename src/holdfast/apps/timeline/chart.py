"""The picture of one process: phases, requests, drain and components on one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from holdfast.apps.timeline.axis import Axis, axis_of
from holdfast.apps.timeline.markup import Markup, joined, tag
from holdfast.apps.timeline.words import fate, headline, length, what, when
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.timeline import Fate, Lane, Mark, Span, Story, Tone

__all__ = ["KEY", "SIGNS", "chart", "fleet"]

SIGNS: Final = {Tone.GOOD: "✓", Tone.WARN: "!", Tone.BAD: "✕", Tone.PLAIN: "•"}
_PHASES: Final = frozenset({"initializing", "running", "terminating", "draining", "stopped"})
_FATES: Final = {
    Fate.STOPPED: Tone.GOOD,
    Fate.UP: Tone.PLAIN,
    Fate.FORCED: Tone.BAD,
    Fate.FAILED: Tone.BAD,
    Fate.DIED: Tone.BAD,
    Fate.LOST: Tone.BAD,
}
_OTHERS: Final = ("config.", "worker.", "pool.", "dump.", "hook.")
_MOST_DOTS: Final = 120
_MOST_LANES: Final = 60
_MOST_POINTS: Final = 5000
_NEAR: Final = 0.46
"""Share of the line on which two flags would lie over one another."""
_LETTERS: Final = 110
"""How many letters fit on the line."""
_LEVEL: Final = 23


def chart(story: Story) -> Markup:
    """One process."""
    axis = axis_of([story])
    rows = [_flags(story, axis), _scale(axis)]
    if story.phases:
        bars = [_phase(axis, span) for span in story.phases]
        rows.append(_row("phase", "", Tone.PLAIN, bars))
    if len(story.flight) > 1:
        rows.append(_flight(story, axis))
    if story.drain or story.steps:
        rows.append(_drain(story, axis))
    rows += [_lane(axis, lane, story) for lane in story.lanes[:_MOST_LANES]]
    others = [mark for mark in story.marks if mark.kind.startswith(_OTHERS)]
    if others:
        rows.append(_row("events", "", Tone.PLAIN, _dots(axis, others)))
    return tag("div", _over(axis, _rules(story)), *rows, class_="chart")


def fleet(stories: Sequence[Story]) -> Markup:
    """All processes, one line for each."""
    axis = axis_of(stories)
    rows = [_scale(axis)]
    for story in stories:
        label = f"{story.role} {story.pid}" if story.role != "process" else f"process {story.pid}"
        note = _ending(story)
        bars = [_phase(axis, span, short=True) for span in story.phases]
        if not bars:
            bars = [_bar(axis, story.began, story.ended, "other", "", [label])]
        if story.role == "supervisor":
            others = [mark for mark in story.marks if mark.kind.startswith(("config.", "worker."))]
            bars += _dots(axis, [*story.signals, *others])
        else:
            bars += _dots(axis, story.signals)
            if story.stop is not None:
                bars.append(_end_mark(axis, story.ended, story.tone, [story.verdict]))
        rows.append(_row(label, note, story.tone, bars))
    return tag("div", _over(axis, []), *rows, class_="chart")


def _ending(story: Story) -> str:
    if story.exit_code is not None:
        return f"exit code {story.exit_code}"
    if story.stop is None:
        return "not told to stop"
    return "ended" if story.complete else "no end in the records"


# -- rows ------------------------------------------------------------------------------------------


def _row(name: str, note: str, tone: Tone, inside: Sequence[Markup], class_: str = "") -> Markup:
    small = [tag("small", note, class_=str(tone))] if note else []
    label = tag("div", name, *small, class_="name")
    return tag("div", label, tag("div", *inside, class_="plot"), class_=f"row {class_}".strip())


def _over(axis: Axis, rules: Sequence[tuple[Instant, Tone, bool, str]]) -> Markup:
    parts = [tag("i", class_="grid", style=_left(axis, at)) for at in axis.ticks()]
    for piece in axis.pieces:
        if not piece.inside:
            style = f"left:{_percent(piece.left)};width:{_percent(piece.right - piece.left)}"
            parts.append(tag("i", class_="pause" if piece.pause else "beside", style=style))
    for at, tone, dashed, _ in rules:
        if at <= axis.ended:
            class_ = f"rule {tone}{' dashed' if dashed else ''}"
            parts.append(tag("i", class_=class_, style=_left(axis, at)))
    return tag("div", *parts, class_="over", aria_hidden="true")


def _rules(story: Story) -> list[tuple[Instant, Tone, bool, str]]:
    """Instants that go through all rows: whether by a dashed line, and the words for them."""
    found = [(mark.at, Tone.PLAIN, False, what(mark)) for mark in story.signals[:8]]
    if story.stop is not None and not found:
        found.append((story.stop, Tone.PLAIN, False, "the stop begins"))
    if story.deadline is not None:
        found.append((story.deadline, Tone.WARN, True, "drain deadline"))
    if story.grace is not None:
        found.append((story.grace, Tone.BAD, True, "must be over"))
    return found


def _flags(story: Story, axis: Axis) -> Markup:
    flags: list[Markup] = []
    off: list[str] = []
    reached: list[float] = []
    for at, tone, _, words in sorted(_rules(story)):
        if at > axis.ended:
            off.append(f"{words} {when(at)}")
            continue
        place = axis.place(at)
        ends = place > 0.55
        left, right = (place - _NEAR, place) if ends else (place, place + _NEAR)
        level = next((n for n, taken in enumerate(reached) if taken <= left), len(reached))
        reached[level : level + 1] = [right]
        style = f"left:{_percent(place)};top:{level * _LEVEL}px"
        text = f"{words} {when(at)}" if at else words
        flags.append(
            tag(
                "span", text, class_=f"flag {tone}{' end' if ends else ''}", style=style, title=text
            )
        )
    if off:
        style = f"top:{len(reached) * _LEVEL}px"
        text = f"after the end: {', '.join(off)} →"
        flags.append(tag("span", text, class_="flag off plain", style=style))
    high = (len(reached) + bool(off)) * _LEVEL
    plot = tag("div", *flags, class_="plot", style=f"--high:{high}px")
    return tag("div", tag("div", class_="name"), plot, class_="row flags")


def _scale(axis: Axis) -> Markup:
    parts: list[Markup] = []
    for piece in axis.pieces:
        if piece.pause:
            place = (piece.left + piece.right) / 2
            text = length(piece.ended - piece.began)
            parts.append(_tick(text, place, "gap"))
    taken = [(piece.left, piece.right) for piece in axis.pieces if piece.pause]
    for at in axis.ticks():
        place = axis.place(at)
        if any(left - 0.035 < place < right + 0.035 for left, right in taken):
            continue
        taken.append((place, place + 0.03))
        parts.append(_tick(when(at), place))
    return _row("", "", Tone.PLAIN, parts, "scale")


def _tick(text: str, place: float, class_: str = "") -> Markup:
    edge = "first" if place < 0.03 else "last" if place > 0.97 else ""
    class_ = " ".join(word for word in ("tick", class_, edge) if word)
    return tag("span", text, class_=class_, style=f"left:{_percent(place)}")


def _phase(axis: Axis, span: Span, *, short: bool = False) -> Markup:
    took = f"{length(span.took)}{' at least' if span.open else ''}"
    tip = [f"{span.name}: {took}", f"from {when(span.began)} to {when(span.ended)}"]
    width = (axis.place(span.ended) - axis.place(span.began)) * _LETTERS
    text = span.name if short or width < len(f"{span.name} {took}") else f"{span.name} {took}"
    text = text if width >= len(text) else ""
    name = span.name if span.name in _PHASES else "other"
    return _bar(axis, span.began, span.ended, f"{name}{' lost' if span.open else ''}", text, tip)


def _drain(story: Story, axis: Axis) -> Markup:
    parts: list[Markup] = []
    for number, span in enumerate(story.drain):
        text = span.name if axis.place(span.ended) - axis.place(span.began) > 0.07 else ""
        class_ = "part cutting" if span.name == "cutting" else f"part{' two' if number % 2 else ''}"
        tip = [f"{span.name}: {length(span.took)}"]
        class_ += " lost" if span.open and not story.complete else ""
        parts.append(_bar(axis, span.began, span.ended, class_, text, tip))
    marks = [mark for mark in (*story.steps, *story.cuts) if mark.subject != "in_flight"]
    return _row("drain", "of the server", Tone.PLAIN, [*parts, *_dots(axis, marks)])


def _lane(axis: Axis, lane: Lane, story: Story) -> Markup:
    bars: list[Markup] = []
    up = story.began if lane.started is None else lane.started
    asked = lane.last if lane.asked is None else lane.asked
    lost = " lost" if lane.fate is Fate.LOST else ""
    if up < asked:
        bars.append(_bar(axis, up, asked, "up", "", [f"{lane.name} was up from {when(up)}"]))
    if lane.asked is not None:
        heard = lane.last if lane.answered is None else lane.answered
        words = "was waited for in vain" if lane.answered is None else f"came at {when(heard)}"
        tip = [f"{lane.name} was asked to stop at {when(asked)}", f"its answer {words}"]
        bars.append(
            _bar(axis, asked, heard, f"asked{lost if lane.answered is None else ''}", "", tip)
        )
        if lane.answered is not None:
            took = length(lane.last - heard)
            tip = [f"{lane.name} stops, {took}", lane.text]
            text = took if axis.place(lane.last) - axis.place(heard) > 0.07 else ""
            bars.append(_bar(axis, heard, lane.last, f"closing{lost}", text, tip))
    tone = Tone.WARN if lane.unanswered and lane.fate is Fate.STOPPED else _FATES[lane.fate]
    if lane.fate is not Fate.UP:
        tip = [f"{lane.name}: {fate(lane)}, {when(lane.last)}", lane.text]
        bars.append(_end_mark(axis, lane.last, tone, tip))
    return _row(lane.name, fate(lane), tone, bars)


def _flight(story: Story, axis: Axis) -> Markup:
    most = max(max(point.count for point in story.flight), 1)
    steps = [(axis.place(point.at) * 100, 100 - 100 * point.count / most) for point in story.flight]
    path = f"M{steps[0][0]:.3f} {steps[0][1]:.2f}"
    path += "".join(f"H{x:.3f}V{y:.2f}" for x, y in steps[1:_MOST_POINTS])
    area = f"{path}V100H{steps[0][0]:.3f}Z"
    svg = tag(
        "svg", tag("path", class_="area", d=Markup(area)),
        tag("path", class_="edge", d=Markup(path)),
        class_="curve", viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip
    dots = [
        _point(axis, point.at, "count", [f"{point.count} requests in flight", when(point.at)])
        for point in story.flight[:_MOST_DOTS]
    ]
    return _row("requests", f"in flight, at most {most}", Tone.PLAIN, [svg, *dots], "flight")


# -- marks -----------------------------------------------------------------------------------------


def _bar(
    axis: Axis, began: Instant, ended: Instant, class_: str, text: str, tip: Sequence[str]
) -> Markup:
    left, right = axis.place(began), axis.place(ended)
    style = f"left:{_percent(left)};width:{_percent(max(right - left, 0.0))}"
    inside = [tag("span", text, class_="in")] if text else []
    return tag("span", *inside, _tip(tip, left), class_=f"bar {class_}", style=style, tabindex="0")


def _point(axis: Axis, at: Instant, class_: str, tip: Sequence[str], text: str = "") -> Markup:
    sign = tag("b", text) if class_ != "count" else Markup()
    class_ = "dot" if class_ == "count" else class_
    return tag(
        "span", sign, _tip(tip, axis.place(at)), class_=class_, style=_left(axis, at), tabindex="0"
    )


def _end_mark(axis: Axis, at: Instant, tone: Tone, tip: Sequence[str]) -> Markup:
    return _point(axis, at, f"end-mark {tone}", tip, SIGNS[tone])


def _dots(axis: Axis, marks: Sequence[Mark]) -> list[Markup]:
    return [
        _point(axis, mark.at, _dot_class(mark), list(_told(mark))) for mark in marks[:_MOST_DOTS]
    ]


def _dot_class(mark: Mark) -> str:
    return f"dot {mark.tone}" if mark.tone in (Tone.BAD, Tone.WARN) else "dot"


def _told(mark: Mark) -> Iterator[str]:
    yield f"{when(mark.at)}  {headline(mark)}"
    yield what(mark)
    if mark.cause:
        yield f"because of {mark.cause}"


def _tip(words: Sequence[str], place: float) -> Markup:
    told = [word for word in words if word]
    inside: list[str] = []
    for number, word in enumerate(told):
        inside += [tag("br"), word] if number else [tag("strong", word)]
    return tag("span", *inside, class_=f"tip{' back' if place > 0.6 else ''}", role="tooltip")


def _left(axis: Axis, at: Instant) -> str:
    return f"left:{_percent(axis.place(at))}"


def _percent(share: float) -> str:
    return f"{share * 100:.3f}%"


def _key(class_: str, text: str) -> Markup:
    return tag("li", tag("i", tag("span", class_=f"bar {class_}")), text)


KEY: Final = tag(
    "ul",
    _key("up", "component is up"),
    _key("asked", "asked to stop, has not answered"),
    _key("closing", "answered, and stops"),
    joined(
        tag("li", tag("b", sign, class_=f"badge {tone}"), text)
        for tone, sign, text in (
            (Tone.GOOD, "✓", "stopped in order"),
            (Tone.BAD, "✕", "forced, died, or no end"),
        )
    ),
    tag("li", "grey: not to scale; hatched: a pause, cut short"),
    class_="key",
)
