"""Events in words. Texts of records come from anywhere: `clean` makes them harmless."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.lifecycle.timeline import Fate, Lane, Mark, Story, sender

__all__ = ["FATES", "clean", "date", "fate", "fields", "headline", "length", "name", "what", "when"]

_LONGEST: Final = 400
_MINUTES: Final[Duration] = 120.0
_MILLI: Final[Duration] = 1e-3
_NOW: Final[Duration] = 5e-7
_PARTS: Final = ((86_400.0, "d", 3600.0, "h"), (3600.0, "h", 60.0, "min"), (60.0, "min", 1.0, "s"))
_BYTES: Final = frozenset({"rss", "peak"})
_LATEST: Final = 253_402_300_000.0

FATES: Final = {
    Fate.STOPPED: "stopped",
    Fate.FORCED: "forced",
    Fate.FAILED: "failed",
    Fate.DIED: "died",
    Fate.LOST: "no end",
    Fate.UP: "up",
}

_KINDS: Final = {
    "process.started": "process started",
    "process.ended": "process ended",
    "process.snapshot": "snapshot",
    "phase.entered": "phase",
    "ready.changed": "readiness",
    "signal.received": "signal",
    "stop.begun": "stop begun",
    "component.started": "component up",
    "component.failed": "component failed",
    "component.died": "component died",
    "component.stopped": "component stopped",
    "component.forced": "component forced",
    "shutdown.requested": "asked to stop",
    "shutdown.acknowledged": "answered",
    "shutdown.unanswered": "did not answer",
    "drain.step": "drain",
    "drain.cut": "cut",
    "hook.done": "hook done",
    "hook.failed": "hook failed",
    "pool.cleaned": "pool cleaned",
    "config.reloaded": "configuration read",
    "config.refused": "configuration refused",
    "dump.written": "dump written",
    "worker.started": "worker started",
    "worker.ready": "worker ready",
    "worker.retired": "worker retired",
    "worker.died": "worker died",
}

_STEPS: Final = {
    "announce": "announced",
    "lame_duck_over": "lame duck over",
    "listener_closed": "listener closed",
    "farewell": "farewell to WebSockets",
    "in_flight": "in flight",
    "deadline": "cut what is left",
    "done": "drained",
}


def clean(text: str) -> str:
    """The text without what does not print, and not longer than a person reads."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def length(seconds: Duration) -> str:
    """A duration as people say it: `0.4 ms`, `1.36 s`, `2 h 18 min`."""
    if seconds < _MINUTES or seconds == NEVER:
        return f"{seconds * 1e3:.2g} ms" if seconds < _MILLI else format_duration(seconds)
    for size, unit, part, below in _PARTS:
        whole, rest = divmod(seconds, size)
        if whole:
            return f"{whole:.0f} {unit} {rest // part:.0f} {below}"
    return format_duration(seconds)


def when(at: Instant) -> str:
    """An instant, counted from the beginning of the stop: `+1.4 s`."""
    if abs(at) < _NOW:
        return "0 s"
    return f"+{length(at)}" if at > 0 else f"-{length(-at)}"


def date(wall: float) -> str:
    """A date of the wall clock; empty when unknown."""
    if not 0 < wall < _LATEST:
        return ""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def name(story: Story) -> str:
    """Which process it is."""
    words = [story.service, "" if story.role == "process" else story.role]
    words.append(f"process {story.pid}" if story.pid else "process")
    return clean(" ".join(word for word in words if word))


def headline(mark: Mark) -> str:
    """What kind of event it is."""
    return _KINDS.get(mark.kind, mark.kind)


def what(mark: Mark) -> str:
    """The event in a line without its kind."""
    subject = mark.subject
    if mark.kind == "drain.step":
        subject = _STEPS.get(subject, subject)
    if mark.kind == "signal.received":
        subject = f"{subject} {sender(mark)}".strip()
    text = mark.text
    if mark.kind == "signal.received" and text == f"from {mark.data.get('sender')}":
        text = ""
    if not text and "in_flight" in mark.data:
        text = str(mark.data["in_flight"])
    return clean(": ".join(part for part in (subject, text) if part))


def fate(lane: Lane) -> str:
    """What became of a component, and of the question whether it had heard."""
    text = FATES[lane.fate]
    if lane.unanswered:
        text = f"no answer, {text}"
    return text


def fields(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data of an event, one pair for each value; tables in it are taken apart."""
    found: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value)
            found += [(clean(f"{key} {name}"), _value(name, item)) for name, item in inner.items()]
        else:
            found.append((clean(key), _value(key, value)))
    return found


def _value(key: str, value: object) -> str:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key in _BYTES:
            return f"{value / 2**20:.1f} MiB"
        if key.endswith("_s"):
            return length(value) if value >= 0 else str(value)
    return clean(json.dumps(value, ensure_ascii=False))
