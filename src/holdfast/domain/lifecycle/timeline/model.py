"""What a picture of a stop consists of. Plain values; all instants are seconds from its zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, cast

from holdfast.domain.instant import Duration, Instant

__all__ = ["Fate", "Lane", "Mark", "Point", "Span", "Story", "Timeline", "Tone", "plain"]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_DEEPEST: Final = 5


class Tone(StrEnum):
    """How an event is to be taken."""

    PLAIN = "plain"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


class Fate(StrEnum):
    """What became of a component."""

    STOPPED = "stopped"
    FORCED = "forced"
    FAILED = "failed"
    DIED = "died"
    LOST = "lost"
    """Its process ended without a word about it."""
    UP = "up"
    """Nothing says that it was to stop."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One event.

    Attributes:
        at: when.
        kind: of its record.
        subject: what it is about.
        text: one line for people; may be empty.
        cause: why; may be empty.
        tone: how it is to be taken.
        data: plain values of its record.
    """

    at: Instant
    kind: str
    subject: str
    text: str = ""
    cause: str = ""
    tone: Tone = Tone.PLAIN
    data: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted.

    Attributes:
        name: what.
        began: when it began.
        ended: when it ended, as far as the records say.
        open: whether they don't say.
    """

    name: str
    began: Instant
    ended: Instant
    open: bool = False

    @property
    def took(self) -> Duration:
        """Seconds."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Lane:
    """The life of a component. An instant is `None` where no record tells it.

    Attributes:
        name: of the component.
        started: it was up.
        asked: it was asked to stop.
        answered: it said that it had heard.
        ended: it had stopped, or was forced, or died.
        fate: what became of it.
        unanswered: whether its answer was waited for in vain.
        text: what was said about its end.
        last: where its lane ends in the picture.
    """

    name: str
    started: Instant | None = None
    asked: Instant | None = None
    answered: Instant | None = None
    ended: Instant | None = None
    fate: Fate = Fate.UP
    unanswered: bool = False
    text: str = ""
    last: Instant = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """How many requests were in flight from an instant on."""

    at: Instant
    count: int


@dataclass(frozen=True, slots=True)
class Story:
    """One process.

    Attributes:
        pid: its number; 0 when unknown.
        service: name of the service; may be empty.
        role: `process`, `supervisor` or `worker`.
        verdict: how it ended, in one sentence.
        tone: how that is to be taken.
        began: its first record, which is its start where `born` is true.
        born: whether its start is among the records.
        stop: when it was told to stop, or found that it must; `None` when it was not.
        ended: its last record.
        complete: whether its end is among the records.
        exit_code: of the process; `None` when unknown.
        uptime: seconds until the end; `None` when unknown.
        deadline: end of the drain; `None` when unknown.
        grace: when the whole stop must be over; `None` when unknown.
        phases: one after the other.
        drain: its parts, one after the other.
        lanes: the components, in the order in which they started.
        flight: requests in flight.
        signals, steps, cuts, hooks, others: the events; all of them are in `marks`.
        finished: requests that were in flight and ended by themselves; `None` when unknown.
        cut: requests and connections that did not.
        snapshot: what it wrote down about itself at the end.
    """

    pid: int
    service: str = ""
    role: str = "process"
    verdict: str = ""
    tone: Tone = Tone.PLAIN
    began: Instant = 0.0
    born: bool = False
    stop: Instant | None = None
    ended: Instant = 0.0
    complete: bool = False
    exit_code: int | None = None
    uptime: Duration | None = None
    deadline: Instant | None = None
    grace: Instant | None = None
    phases: tuple[Span, ...] = ()
    drain: tuple[Span, ...] = ()
    lanes: tuple[Lane, ...] = ()
    flight: tuple[Point, ...] = ()
    signals: tuple[Mark, ...] = ()
    steps: tuple[Mark, ...] = ()
    cuts: tuple[Mark, ...] = ()
    hooks: tuple[Mark, ...] = ()
    others: tuple[Mark, ...] = ()
    marks: tuple[Mark, ...] = ()
    finished: int | None = None
    cut: int = 0
    snapshot: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def took(self) -> Duration | None:
        """Seconds from the beginning of the stop to the end; `None` when there was no stop."""
        return None if self.stop is None else max(self.ended - self.stop, 0.0)

    @property
    def unknown(self) -> int:
        """Requests that were in flight at the last count, where the end is not told."""
        known = self.complete or self.stop is None or not self.flight
        return 0 if known else self.flight[-1].count


@dataclass(frozen=True, slots=True)
class Timeline:
    """The processes of one run.

    Attributes:
        verdict: how it went, in one sentence.
        tone: how that is to be taken.
        zero: seconds since the epoch at zero, which is where the stop began; 0.0 when unknown.
        began, ended: the first record and the last.
        stories: the supervisor first, then by their beginning.
    """

    verdict: str
    tone: Tone = Tone.PLAIN
    zero: float = 0.0
    began: Instant = 0.0
    ended: Instant = 0.0
    stories: tuple[Story, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = plain(self)
        for story, of in zip(found["stories"], self.stories, strict=True):
            # They are all in `marks`; once is enough.
            for name in ("signals", "steps", "cuts", "hooks", "others"):
                del story[name]
            story["took"] = plain(of.took)
        return found


def plain(value: object, depth: int = 0) -> Any:
    """The value in the words of JSON. What has none is told as text, what is too deep left out."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        finite = value - value == 0
        return round(value, 6) if finite else str(value)
    if isinstance(value, str):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
    if depth >= _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {str(key): plain(item, depth + 1) for key, item in pairs}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in cast("list[object]", value)]
    return str(value)
