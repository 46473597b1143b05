"""How the last stops went, so that the next one learns from it. A machine.

Rule 1. A stop is written down when it begins, before anything else is done. So one that never ended
        leaves a trace: a start that finds a begun stop whose process is gone, or whose time is
        over, counts it as failed.
Rule 2. A stop fails when its drain timed out, when it was forced, or when it never ended.
Rule 3. Several processes can take part in one stop, the workers of a service for example: it counts
        once, and went as badly as the worst of them.
Rule 4. The last three stops that are over count. Older ones are forgotten.
Rule 5. What a process says of its own end is believed, once: also when it was given up before, as
        a process in another container cannot be seen.
Rule 6. What was written is believed stop by stop: one that makes no sense is left out, and told.

Instants here are seconds since the epoch, because what is remembered outlives the process and the
machine. Where the clock is set meanwhile, a stop is found to be over too early or too late, and
nothing else. The driver writes the state down after each step: it is short, and needs no journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias, cast

from holdfast.domain.instant import Duration, Instant

__all__ = [
    "REMEMBERED",
    "Begun",
    "Cleared",
    "Ended",
    "Event",
    "Found",
    "History",
    "Judged",
    "Member",
    "Outcome",
    "Stop",
    "StopHistory",
    "Terms",
    "history_as_plain",
    "history_from_plain",
]

REMEMBERED: Final = 3
"""Stops that count."""
_OPEN: Final = 16
"""Stops under way that are kept at most; more are no service, but a mistake."""
_MEMBERS: Final = 1024
_LARGEST: Final = 1e12


class Outcome(StrEnum):
    """How a stop went, from the best to the worst."""

    CLEAN = "clean"
    TIMED_OUT = "timed_out"
    FORCED = "forced"
    UNFINISHED = "unfinished"


_ORDER: Final = tuple(Outcome)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a stop was given, in seconds.

    Attributes:
        drain: the drain, with what failures had added.
        base: the drain without failures.
        most: what failures can raise it to: the cap, or what the grace has room for.
        grace: what the platform gives from the beginning until it kills.
    """

    drain: Duration
    base: Duration
    most: Duration
    grace: Duration


@dataclass(frozen=True, slots=True)
class Begun:
    """A process has begun to stop.

    Attributes:
        stop: which stop this is part of; the same text for all processes that stop together.
        member: the process.
        terms: what it was given.
    """

    stop: str
    member: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Ended:
    """A process has stopped, and could still say how."""

    stop: str
    member: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Found:
    """A start looked at what was left; `gone` are the members whose process is known to be."""

    gone: frozenset[str]


@dataclass(frozen=True, slots=True)
class Cleared:
    """Somebody wants everything to be forgotten."""


Event: TypeAlias = Begun | Ended | Found | Cleared


@dataclass(frozen=True, slots=True)
class Member:
    """A process that takes part in a stop; `outcome` is `None` until it has ended."""

    name: str
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop.

    Attributes:
        key: its name.
        begun: when its first process began.
        terms: what it was given.
        members: the processes that take part.
        ended: when the last of them ended, or was found to have; 0.0 until then.
    """

    key: str
    begun: Instant
    terms: Terms
    members: tuple[Member, ...]
    ended: Instant = 0.0

    @property
    def over(self) -> bool:
        """Whether all its processes have ended."""
        return all(member.outcome is not None for member in self.members)

    @property
    def outcome(self) -> Outcome | None:
        """That of the process that went worst; `None` while one of them is not over."""
        if not self.over:
            return None
        return max((m.outcome for m in self.members if m.outcome), key=_ORDER.index)

    @property
    def failed(self) -> bool:
        """Whether it is over and was not clean."""
        return self.outcome not in (None, Outcome.CLEAN)


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered, the oldest stop first."""

    stops: tuple[Stop, ...] = ()

    @property
    def over(self) -> tuple[Stop, ...]:
        """The stops that count."""
        return tuple(stop for stop in self.stops if stop.over)

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return sum(stop.failed for stop in self.stops)


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision: a stop is over. For the log.

    Attributes:
        stop: the stop.
        failures: how many count from now on.
    """

    stop: Stop
    failures: int


class StopHistory:
    """The machine. It has no state of its own."""

    def step(self, state: History, event: Event, now: Instant) -> tuple[History, Sequence[Judged]]:
        """What is remembered after an event, and which stops it ended."""
        if isinstance(event, Cleared):
            return History(), ()
        if isinstance(event, Begun):
            stops = _begin(state.stops, event, now)
        elif isinstance(event, Ended):
            ended = {event.member: event.outcome}
            stops = tuple(
                _close(stop, ended, now) if stop.key == event.stop else stop for stop in state.stops
            )
        else:
            stops = tuple(_look(stop, event.gone, now) for stop in state.stops)
        after = History(_remembered(stops))
        before = {stop.key for stop in state.stops if stop.over}
        new = [stop for stop in after.over if stop.key not in before]
        return after, [Judged(stop, after.failures) for stop in new]


def _begin(stops: tuple[Stop, ...], event: Begun, now: Instant) -> tuple[Stop, ...]:
    member = Member(event.member)
    if not any(stop.key == event.stop for stop in stops):
        return (*stops, Stop(event.stop, now, event.terms, (member,)))
    return tuple(_join(stop, member) if stop.key == event.stop else stop for stop in stops)


def _join(stop: Stop, member: Member) -> Stop:
    if any(known.name == member.name for known in stop.members) or len(stop.members) >= _MEMBERS:
        return stop
    return replace(stop, members=(*stop.members, member), ended=0.0)


def _close(stop: Stop, ended: Mapping[str, Outcome], now: Instant) -> Stop:
    members = tuple(
        replace(member, outcome=ended[member.name])
        if member.name in ended and member.outcome in (None, Outcome.UNFINISHED)
        else member
        for member in stop.members
    )
    if members == stop.members:
        return stop
    closed = replace(stop, members=members)
    return replace(closed, ended=now) if closed.over else closed


def _look(stop: Stop, gone: frozenset[str], now: Instant) -> Stop:
    # Whoever has not ended by then is killed by the platform.
    late = now >= stop.begun + stop.terms.grace
    left = [m.name for m in stop.members if m.outcome is None and (late or m.name in gone)]
    return _close(stop, dict.fromkeys(left, Outcome.UNFINISHED), now)


def _remembered(stops: tuple[Stop, ...]) -> tuple[Stop, ...]:
    """The last ones that are over, and those under way, in their order."""
    over = [stop.key for stop in sorted(stops, key=lambda stop: stop.ended) if stop.over]
    open_ = [stop.key for stop in stops if not stop.over]
    kept = {*over[-REMEMBERED:], *open_[-_OPEN:]}
    return tuple(stop for stop in stops if stop.key in kept)


def history_as_plain(history: History) -> list[dict[str, Any]]:
    """What is remembered, as plain values for JSON."""
    return [_plain(stop) for stop in history.stops]


def _plain(stop: Stop) -> dict[str, Any]:
    terms = {
        "drain": stop.terms.drain,
        "base": stop.terms.base if math.isfinite(stop.terms.base) else None,
        "most": stop.terms.most,
        "grace": stop.terms.grace,
    }
    members = {member.name: member.outcome and member.outcome.value for member in stop.members}
    return {
        "stop": stop.key,
        "begun": stop.begun,
        "ended": stop.ended,
        "terms": terms,
        "members": members,
    }


def history_from_plain(value: object) -> tuple[History, tuple[str, ...]]:
    """What is remembered, and what is wrong with it, as sentences. Never raises."""
    if not isinstance(value, list | tuple):
        return History(), (f"the stops are a list, not {type(value).__name__}",)
    found: dict[str, Stop] = {}
    problems: list[str] = []
    for number, item in enumerate(cast("Sequence[object]", value), 1):
        try:
            stop = _stop(item)
        except ValueError as error:
            problems.append(f"stop {number} is left out: {error}")
        else:
            found[stop.key] = stop
    return History(_remembered(tuple(found.values()))), tuple(problems)


def _stop(value: object) -> Stop:
    given = _object(value, "a stop")
    terms = _object(given.get("terms"), "'terms'")
    base = math.inf if terms.get("base") is None else _number(terms, "base")
    members = tuple(
        Member(name, None if outcome is None else _outcome(outcome))
        for name, outcome in _object(given.get("members"), "'members'").items()
    )
    if not members:
        raise ValueError("nobody takes part in it")
    key = given.get("stop")
    if not isinstance(key, str) or not key:
        raise ValueError(f"'stop' is a text, not {key!r}")
    return Stop(
        key,
        _number(given, "begun"),
        Terms(_number(terms, "drain"), base, _number(terms, "most"), _number(terms, "grace")),
        members[:_MEMBERS],
        _number(given, "ended"),
    )


def _outcome(value: object) -> Outcome:
    if value not in _ORDER:
        raise ValueError(f"{value!r} is not an outcome; there is {', '.join(_ORDER)}")
    return Outcome(str(value))


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is an object, not {type(value).__name__}")
    return cast("Mapping[str, object]", value)


def _number(given: Mapping[str, object], key: str) -> float:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
        raise ValueError(f"{key!r} is a number of seconds, not {value!r}")
    return float(value)
