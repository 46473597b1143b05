"""How a process stops and tells its health: the tables `[stop]` and `[health]` of `holdfast.toml`.

Rule 1. What the platform gives (`grace`) is all there is: the clean-up and a lame duck that is
        asked for leave room between them for the drain.
Rule 2. What is only inherited gives way: with a short `grace` the default clean-up, quiet window
        and farewell shrink. What is written down and does not fit is an error.
Rule 3. A stop has an end: of its times only `base` and `start` may be without limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, TypeAlias

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.policy.values import as_duration, as_flag, as_table, as_text, read

__all__ = [
    "HealthSettings",
    "LifecycleSettings",
    "QuitMeaning",
    "StopSettings",
    "lifecycle_from_mapping",
]

QuitMeaning: TypeAlias = Literal["dump", "stop"]
_QUIT: Final[Mapping[str, QuitMeaning]] = {"dump": "dump", "stop": "stop"}


@dataclass(frozen=True, slots=True)
class StopSettings:
    """How a process stops. All durations in seconds.

    Attributes:
        grace: what the platform gives from its request to stop until it kills.
        base: of the drain; `None` for the longest request limit of the policy and one second.
        cap: what repeated failures can raise the drain to.
        calm: the lame duck ends when no new connection came for this long.
        lame_duck: the longest lame duck; `None` for a third of what the clean-up leaves of `grace`.
        lame_duck_least: the shortest one, however calm it is.
        quiet: a connection without traffic for this long is closed while draining.
        cleanup: kept for hooks and components after the drain.
        websocket: what a peer gets to answer the close frame.
        returning: whether another process takes over: WebSockets are told 1012, else 1001.
        retry_after: what a client is told that is turned away.
        quit: what SIGQUIT means: `dump` stacks and exit, or `stop` in order.
        memory: path of the file that remembers the last stops; empty for the default place.
        start: components have to be up by then.

    Raises:
        ConfigError: a law is broken, with the path of the key, for example `stop.cleanup`.
    """

    grace: Duration = 30.0
    base: Duration | None = None
    cap: Duration = 30.0
    calm: Duration = 0.5
    lame_duck: Duration | None = None
    lame_duck_least: Duration = 0.0
    quiet: Duration = 1.0
    cleanup: Duration = 5.0
    websocket: Duration = 2.0
    returning: bool = True
    retry_after: Duration = 1.0
    quit: QuitMeaning = "dump"
    memory: str = ""
    start: Duration = 60.0

    def __post_init__(self) -> None:
        if broken := _broken_stop(self):
            raise ConfigError(f"stop.{broken[0]}", broken[1])


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Which paths tell the health of a process.

    Attributes:
        enabled: whether they are answered at all.
        live: path that says the process runs; it depends on nothing.
        alias: another name of `live`; empty for none.
        ready: path that says whether to send requests here.
        check_timeout: seconds that each check of a dependency gets.
        cache: seconds for which an answer is given again.

    Raises:
        ConfigError: a path or a duration cannot be, with the path of the key.
    """

    enabled: bool = True
    live: str = "/healthz"
    alias: str = "/livez"
    ready: str = "/readyz"
    check_timeout: Duration = 3.0
    cache: Duration = 1.0

    def __post_init__(self) -> None:
        if broken := _broken_health(self):
            raise ConfigError(f"health.{broken[0]}", broken[1])


@dataclass(frozen=True, slots=True)
class LifecycleSettings:
    """Both tables."""

    stop: StopSettings = field(default_factory=StopSettings)
    health: HealthSettings = field(default_factory=HealthSettings)


_FINITE: Final = (
    "grace",
    "cap",
    "calm",
    "lame_duck",
    "lame_duck_least",
    "quiet",
    "cleanup",
    "websocket",
    "retry_after",
)
_DURATIONS: Final = (*_FINITE, "base", "start")
_POSITIVE: Final = ("grace", "cap", "base", "start")
_PARTS: Final = (
    ("cleanup", "the clean-up is carved out of the grace"),
    ("lame_duck", "the drain needs some of it as well"),
    ("lame_duck_least", "the drain needs some of it as well"),
    ("quiet", "otherwise no connection is ever quiet in time"),
    ("websocket", "otherwise no peer can be waited for so long"),
)


def _broken_stop(stop: StopSettings) -> tuple[str, str] | None:
    """The first law that the settings break, as the key and the reason; `None` for none."""
    for name in _DURATIONS:
        value: float | None = getattr(stop, name)
        if value is None:
            continue
        if not value >= 0:
            return name, "must be a duration of at least 0"
        if value == 0 and name in _POSITIVE:
            return name, "must be longer than 0"
        if math.isinf(value) and name in _FINITE:
            return name, "must have an end: a stop without one never ends"
    if stop.quit not in _QUIT:
        return "quit", f"{stop.quit!r} is not a meaning; use one of: {', '.join(_QUIT)}"
    return _too_long(stop) or _wrong_order(stop)


def _too_long(stop: StopSettings) -> tuple[str, str] | None:
    """The first part for which the grace has no room."""
    for name, why in _PARTS:
        part: float | None = getattr(stop, name)
        kept = 0.0 if name == "cleanup" else stop.cleanup
        if part is not None and not part + kept < stop.grace:
            room = format_duration(stop.grace)
            less = f" less the cleanup of {format_duration(kept)}" if kept else ""
            return (
                name,
                f"{format_duration(part)} is not shorter than the grace of {room}{less}; {why}",
            )
    return None


def _wrong_order(stop: StopSettings) -> tuple[str, str] | None:
    if stop.lame_duck is None:
        return None
    longest = format_duration(stop.lame_duck)
    for name, what in (("calm", "is never seen in"), ("lame_duck_least", "is longer than")):
        part: float = getattr(stop, name)
        if part > stop.lame_duck:
            return name, f"{format_duration(part)} {what} a lame_duck of {longest}"
    return None


def _broken_health(health: HealthSettings) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in ("live", "alias", "ready"):
        path: str = getattr(health, name)
        if not path and name == "alias":
            continue
        if not path.startswith("/") or not path.isprintable() or any(c in path for c in "?# "):
            return name, f"{path!r} is not a path such as '/healthz'"
        if path in seen:
            return name, f"{path!r} is the path of {seen[path]!r} already"
        seen[path] = name
    if not 0 < health.check_timeout < math.inf:
        return "check_timeout", "must be longer than 0, and have an end"
    if not 0 <= health.cache < math.inf:
        return "cache", "must be a duration of at least 0, and have an end"
    return None


_STOP_KEYS: Final = tuple(item.name for item in fields(StopSettings))
_HEALTH_FORMS: Final[Mapping[str, Callable[[object, str], object]]] = {
    "enabled": as_flag,
    "live": as_text,
    "alias": as_text,
    "ready": as_text,
    "check_timeout": as_duration,
    "cache": as_duration,
}
_PLAIN: Final = StopSettings()
_CLEANUP_SHARE: Final = 1 / 6
_FAREWELL_SHARE: Final = 1 / 3
"""Of the grace, and of what the clean-up leaves of it: what defaults may take at most."""


def _inherited(given: Mapping[str, Duration]) -> Mapping[str, Duration]:
    """The defaults, as far as what is given has room for them."""
    grace = given.get("grace", _PLAIN.grace)
    cleanup = min(_PLAIN.cleanup, grace * _CLEANUP_SHARE)
    room = max(0.0, grace - given.get("cleanup", cleanup)) * _FAREWELL_SHARE
    return {
        "cleanup": cleanup,
        "quiet": min(_PLAIN.quiet, room),
        "websocket": min(_PLAIN.websocket, room),
        "calm": min(_PLAIN.calm, given.get("lame_duck", math.inf)),
    }


def _quit(value: object, path: str) -> QuitMeaning:
    text = as_text(value, path)
    if text not in _QUIT:
        raise ConfigError(path, f"{text!r} is not a meaning; use one of: {', '.join(_QUIT)}")
    return _QUIT[text]


def _stop(value: object, grace: Duration | None) -> StopSettings:
    table = as_table(value, "stop", _STOP_KEYS)
    given = {name: as_duration(table[name], f"stop.{name}") for name in _DURATIONS if name in table}
    if grace is not None:
        given["grace"] = grace
    return replace(
        _PLAIN,
        **{**_inherited(given), **given},
        returning=read(table, "stop", "returning", as_flag, _PLAIN.returning),
        quit=read(table, "stop", "quit", _quit, _PLAIN.quit),
        memory=read(table, "stop", "memory", as_text, _PLAIN.memory),
    )


def _health(value: object) -> HealthSettings:
    table = as_table(value, "health", tuple(_HEALTH_FORMS))
    given: dict[str, Any] = {
        name: form(table[name], f"health.{name}")
        for name, form in _HEALTH_FORMS.items()
        if name in table
    }
    return replace(HealthSettings(), **given)


def lifecycle_from_mapping(
    data: Mapping[str, object], grace: Duration | None = None
) -> LifecycleSettings:
    """The tables `[stop]` and `[health]` in a parsed configuration file.

    The other tables are for `policy.policy_from_mapping` and mean nothing here.

    Args:
        data: the parsed file, for example of TOML.
        grace: what the platform says that it gives, over what the file says.

    Raises:
        ConfigError: anything is wrong, with the path of the key, for example `stop.cleanup`.
    """
    return LifecycleSettings(_stop(data.get("stop", {}), grace), _health(data.get("health", {})))
