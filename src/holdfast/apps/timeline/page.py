"""A timeline as one HTML page: no network, no script, nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Final, cast

from holdfast.apps.timeline.chart import KEY, SIGNS, chart, fleet
from holdfast.apps.timeline.markup import Markup, joined, tag
from holdfast.apps.timeline.words import clean, date, fields, headline, length, name, what, when
from holdfast.domain.lifecycle.timeline import Fate, Mark, Story, Timeline, Tone, sender

__all__ = ["as_page"]

_MOST: Final = 500
_MOST_CUTS: Final = 100
_MOST_STORIES: Final = 64
_MOST_OPEN: Final = 6
_TOLD: Final = (("request_id", "request"), ("origin", "from"), ("waits", "waited in"))
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""Whatever came through the escaping would still not run."""
_CODES: Final = {
    0: "clean",
    2: "cannot run",
    3: "failed to start",
    4: "drain deadline passed",
    5: "forced",
    6: "a component died",
    131: "left after a dump",
}


def as_page(timeline: Timeline, notes: Sequence[str] = ()) -> str:
    """The page.

    Args:
        timeline: what it shows.
        notes: what else there is to say, for the end of the page.
    """
    stories = timeline.stories[:_MOST_STORIES]
    single = len(stories) == 1
    parts = [_header(timeline, stories)]
    if single:
        parts.append(_story(stories[0]))
    else:
        parts += [tag("h2", "The processes"), fleet(stories)]
        parts += _folded(stories)
    if len(timeline.stories) > len(stories):
        parts.append(
            tag("p", f"{len(timeline.stories) - len(stories)} more processes are left out.")
        )
    notes = [*notes, "Made by holdfast timeline. Times count from the beginning of the stop."]
    parts.append(tag("footer", *(tag("p", note) for note in notes)))
    title = clean(f"{stories[0].service or 'A stop'}: {timeline.verdict}")
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title), tag("style", _style()),
    )  # fmt: skip
    body = tag("body", tag("main", *parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _style() -> Markup:
    return Markup(files("holdfast.apps.timeline").joinpath("page.css").read_text("utf-8"))


def _header(timeline: Timeline, stories: Sequence[Story]) -> Markup:
    head, _, rest = timeline.verdict.partition(": ")
    began = date(timeline.zero)
    of = " · ".join(word for word in (name(stories[0]), began) if word)
    lead = [part for part in rest.split("; ") if part]
    told: list[Markup] = []
    if lead:
        told.append(tag("ul", *(tag("li", part) for part in lead)))
    verdict = tag(
        "section", tag("p", of, class_="of"),
        tag("h1", tag("span", SIGNS[timeline.tone], class_="badge", aria_hidden="true"), head),
        *told, class_=f"verdict {timeline.tone}",
    )  # fmt: skip
    facts = list(_facts(stories[0]) if len(stories) == 1 else _facts_of_many(stories))
    return joined([verdict, tag("dl", *facts, class_="facts")])


def _fact(title: str, value: str, note: str = "", tone: str = "") -> Markup:
    small = [tag("small", note)] if note else []
    return tag("div", tag("dt", title), tag("dd", value, *small), class_=tone)


def _facts(story: Story) -> Iterator[Markup]:
    if story.took is not None and (story.grace is not None or story.deadline is not None):
        yield _budget(story)
    elif story.took is not None:
        yield _fact("the stop took", length(story.took))
    if story.exit_code is not None:
        yield _fact("exit code", str(story.exit_code), _CODES.get(story.exit_code, ""))
    elif not story.complete:
        yield _fact("exit code", "unknown", "the records have no end", Tone.BAD)
    if story.signals:
        first = story.signals[0]
        yield _fact("told by", first.subject, sender(first) or "sender unknown")
    if story.finished is not None:
        yield _fact("requests finished", str(story.finished), "after the stop began", Tone.GOOD)
    if story.cut:
        yield _fact("requests cut", str(story.cut), "did not get to their end", Tone.BAD)
    elif story.steps and story.complete:
        yield _fact("requests cut", "0", "nothing was lost", Tone.GOOD)
    elif story.unknown:
        yield _fact("requests cut", f"{story.unknown}?", "were in flight at the last", Tone.BAD)
    if story.uptime is not None:
        yield _fact("had run for", length(story.uptime))


def _budget(story: Story) -> Markup:
    """How much of the time that it had it used."""
    took, stop = story.took or 0.0, story.stop or 0.0
    limit = story.grace if story.grace is not None else story.deadline
    whole = max((limit or 0.0) - stop, 1e-6)
    parts = [tag("span", class_="used", style=f"width:{min(took / whole, 1) * 100:.2f}%")]
    note = f"of the {length(whole)} that it had"
    if story.grace is None:
        note = f"of {length(whole)} for the drain"
    elif story.deadline is not None:
        share = min((story.deadline - stop) / whole, 1)
        parts.append(tag("span", class_="due", style=f"left:{share * 100:.2f}%"))
        note += f"; drain deadline after {length(story.deadline - stop)}"
    return tag(
        "div", tag("dt", "the stop took"),
        tag("dd", length(took), tag("div", *parts, class_="rail", aria_hidden="true"),
            tag("small", note)), class_=f"budget {story.tone}",
    )  # fmt: skip


def _facts_of_many(stories: Sequence[Story]) -> Iterator[Markup]:
    workers = [story for story in stories if story.role != "supervisor"]
    stopped = [story for story in workers if story.stop is not None]
    yield _fact("processes", str(len(stories)), f"{len(stories) - len(workers)} supervise")
    yield _fact("were told to stop", str(len(stopped)))
    clean_ones = sum(story.tone is Tone.GOOD for story in stopped)
    yield _fact("ended clean", str(clean_ones), "", Tone.GOOD if clean_ones == len(stopped) else "")
    bad = sum(story.tone is Tone.BAD for story in stories)
    yield _fact("did not end well", str(bad), "", Tone.BAD if bad else Tone.GOOD)
    finished = sum(story.finished or 0 for story in workers)
    yield _fact("requests finished", str(finished), "after their stop began")
    cut = sum(story.cut for story in workers)
    unknown = sum(story.unknown for story in workers)
    note = f"and {unknown} more in flight where records end" if unknown else ""
    yield _fact("requests cut", str(cut), note, Tone.BAD if cut or unknown else Tone.GOOD)


def _folded(stories: Sequence[Story]) -> Iterator[Markup]:
    notable = [story for story in stories if story.tone in (Tone.BAD, Tone.WARN)][:_MOST_OPEN]
    for story in stories:
        badge = tag("span", SIGNS[story.tone], class_="badge", aria_hidden="true")
        summary = tag("summary", badge, f"{name(story)} ", tag("small", story.verdict))
        is_open = "open" if story in notable else ""
        yield tag("details", summary, _story(story), class_=f"process {story.tone}", open=is_open)


def _story(story: Story) -> Markup:
    return joined([chart(story), KEY, *_cuts(story), *_snapshot(story), _events(story)])


def _cuts(story: Story) -> Iterator[Markup]:
    lost = [lane for lane in story.lanes if lane.fate is Fate.FORCED]
    failed = [mark for mark in story.marks if mark.kind == "hook.failed"]
    if not (story.cuts or story.cut or lost or failed):
        return
    items = [item for mark in story.cuts for item in _work(mark)][:_MOST_CUTS]
    rest = story.cut - len(items)
    if rest > 0:
        noun = "request" if rest == 1 else "requests"
        items.append(tag("li", f"{rest} {'more ' if items else ''}{noun}"))
    for lane in lost:
        text = f" {lane.text}" if lane.text else ""
        items.append(tag("li", "component ", tag("code", lane.name), tag("small", text)))
    items += [_cut(mark, "hook ") for mark in failed[:_MOST_CUTS]]
    title = "What was cut" if story.cut else "What did not end by itself"
    yield tag("section", tag("h3", title), tag("ul", *items), class_="cuts")


def _work(mark: Mark) -> Iterator[Markup]:
    """The pieces of work that one event cut."""
    work: object = mark.data.get("work")
    if not isinstance(work, list):
        if mark.data.get("cut") is None:
            yield _cut(mark)
        return
    for piece in cast("list[object]", work):
        if isinstance(piece, dict):
            told = cast("dict[str, Any]", piece)
            age = told.get("age_s")
            notes = [when(mark.at)]
            notes += [f"had run for {length(age)}"] if isinstance(age, int | float) else []
            notes += [f"{key} {told[name]}" for name, key in _TOLD if told.get(name)]
            scope = str(told.get("scope") or "work").removeprefix("process/")
            yield tag("li", tag("code", scope), tag("small", f" {', '.join([*notes, mark.cause])}"))


def _cut(mark: Mark, word: str = "") -> Markup:
    note = ", ".join(part for part in (mark.text, mark.cause) if part)
    return tag(
        "li", word, tag("code", mark.subject or "a request"),
        tag("small", f" {when(mark.at)}{', ' if note else ''}{note}"),
    )  # fmt: skip


def _snapshot(story: Story) -> Iterator[Markup]:
    if not story.snapshot:
        return
    pairs = [tag("div", tag("dt", key), tag("dd", value)) for key, value in fields(story.snapshot)]
    yield tag("details", tag("summary", "At the end"), tag("dl", *pairs, class_="end"), open="open")


def _events(story: Story) -> Markup:
    marks = [mark for mark in story.marks if mark.subject != "in_flight"]
    rows = [_event(mark) for mark in marks[:_MOST]]
    head = tag("tr", *(tag("th", text) for text in ("when", "event", "what", "cause")))
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    more: list[Markup] = []
    if len(marks) > len(rows):
        more.append(tag("p", f"{len(marks) - len(rows)} more are left out; --format json has all."))
    summary = tag("summary", f"All {len(marks)} events")
    is_open = "open" if story.role == "process" else ""
    return tag("details", summary, tag("div", table, class_="wide"), *more, open=is_open)


def _event(mark: Mark) -> Markup:
    data = ", ".join(f"{key} {value}" for key, value in fields(mark.data))
    small: list[Markup] = []
    if data and mark.kind not in ("process.snapshot", "drain.cut"):
        small = [tag("div", data, class_="data")]
    return tag(
        "tr", tag("td", when(mark.at), class_="at"), tag("td", headline(mark), class_="kind"),
        tag("td", what(mark), *small), tag("td", mark.cause, class_="why"), class_=str(mark.tone),
    )  # fmt: skip
