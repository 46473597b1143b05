"""What happened in the life of a process: one envelope for everything that is told about it.

The machines of the lifecycle decide, their drivers write one record for each event, and whoever
wants to know reads the records: the log, the timeline, the exit snapshot, the tests. No reader has
a source of its own, so no two of them can tell different stories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast

from holdfast.domain.instant import Instant

__all__ = ["KINDS", "Record", "record_from_dict"]

KINDS: Final = frozenset(
    {
        "process.started",
        "process.ended",
        "process.snapshot",
        "phase.entered",
        "ready.changed",
        "signal.received",
        "stop.begun",
        "component.started",
        "component.failed",
        "component.died",
        "component.stopped",
        "component.forced",
        "shutdown.requested",
        "shutdown.acknowledged",
        "shutdown.unanswered",
        "drain.step",
        "drain.cut",
        "hook.done",
        "hook.failed",
        "pool.cleaned",
        "config.reloaded",
        "config.refused",
        "dump.written",
        "worker.started",
        "worker.ready",
        "worker.retired",
        "worker.died",
    }
)
"""Every kind of record there is. The names are stable: files and tests refer to them."""

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_LONGEST: Final = 65_536
"""Characters of a text that is read from a file."""


@dataclass(frozen=True, slots=True)
class Record:
    """One event.

    Attributes:
        at: monotonic instant of this process, in seconds.
        kind: one of `KINDS`.
        subject: what it is about: a phase, a component, a signal, a step of the drain.
        detail: one line for people; may be empty.
        cause: why, in one line; empty where the event is its own reason.
        scope: path of the scope that it belongs to; the process itself by default.
        wall: seconds since the epoch, for people who compare it with other logs; 0.0 when unknown.
        pid: of the process that it happened in; 0 when unknown.
        data: plain values for programs.
    """

    at: Instant
    kind: str
    subject: str = ""
    detail: str = ""
    cause: str = ""
    scope: str = "process"
    wall: float = 0.0
    pid: int = 0
    data: Mapping[str, object] = field(default_factory=lambda: _NOTHING)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of record; see holdfast.domain.record")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "at": round(self.at, 6),
            "kind": self.kind,
            "subject": self.subject,
            "detail": self.detail,
            "cause": self.cause,
            "scope": self.scope,
            "wall": round(self.wall, 6),
            "pid": self.pid,
            "data": dict(self.data),
        }

    def line(self) -> str:
        """The event in one line, for logs."""
        parts = [self.kind, self.subject, self.detail, f"({self.cause})" if self.cause else ""]
        return " ".join(part for part in parts if part)


def record_from_dict(value: object) -> Record:
    """The record in a parsed line of JSON.

    Raises:
        ValueError: it is none; the text says what is wrong.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a record is a JSON object, not {type(value).__name__}")
    given = cast("Mapping[str, object]", value)
    data = given.get("data", {})
    if not isinstance(data, Mapping):
        raise ValueError("'data' of a record is a JSON object")
    return Record(
        at=_number(given, "at"),
        kind=_text(given, "kind"),
        subject=_text(given, "subject"),
        detail=_text(given, "detail"),
        cause=_text(given, "cause"),
        scope=_text(given, "scope") or "process",
        wall=_number(given, "wall"),
        pid=int(_number(given, "pid")),
        data=MappingProxyType(dict(cast("Mapping[str, object]", data))),
    )


def _number(given: Mapping[str, object], key: str) -> float:
    value = given.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key!r} of a record is a number, not {value!r}")
    return float(value)


def _text(given: Mapping[str, object], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key!r} of a record is a text, not {value!r}")
    return value[:_LONGEST]
