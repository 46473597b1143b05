"""The tables `[stop]` and `[health]`."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.errors import ConfigError
from holdfast.domain.lifecycle.settings import (
    HealthSettings,
    LifecycleSettings,
    StopSettings,
    lifecycle_from_mapping,
)

STOP = {
    "grace": "60s",
    "base": "20s",
    "cap": "25s",
    "calm": "250ms",
    "lame_duck": "4s",
    "lame_duck_least": "1s",
    "quiet": "2s",
    "cleanup": "6s",
    "websocket": "3s",
    "returning": False,
    "retry_after": "5s",
    "quit": "stop",
    "memory": "/var/lib/shop/stops.json",
    "start": "2m",
}
HEALTH = {
    "enabled": False,
    "live": "/up",
    "alias": "",
    "ready": "/ready",
    "check_timeout": "1s",
    "cache": 0,
}


def refused(data: dict[str, object]) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        lifecycle_from_mapping(data)
    return caught.value.path, caught.value.problem


def test_an_empty_file_says_nothing() -> None:
    assert lifecycle_from_mapping({}) == LifecycleSettings(StopSettings(), HealthSettings())
    assert lifecycle_from_mapping({"timeouts": 5, "service": 7}) == LifecycleSettings()


def test_every_key_is_read() -> None:
    found = lifecycle_from_mapping({"stop": STOP, "health": HEALTH})
    assert found.stop == StopSettings(
        grace=60.0,
        base=20.0,
        cap=25.0,
        calm=0.25,
        lame_duck=4.0,
        lame_duck_least=1.0,
        quiet=2.0,
        cleanup=6.0,
        websocket=3.0,
        returning=False,
        retry_after=5.0,
        quit="stop",
        memory="/var/lib/shop/stops.json",
        start=120.0,
    )
    assert found.health == HealthSettings(
        enabled=False, live="/up", alias="", ready="/ready", check_timeout=1.0, cache=0.0
    )
    assert {field.name for field in fields(StopSettings)} == set(STOP)
    assert {field.name for field in fields(HealthSettings)} == set(HEALTH)


def test_the_defaults() -> None:
    stop = StopSettings()
    assert (stop.grace, stop.base, stop.cap, stop.calm, stop.lame_duck) == (30, None, 30, 0.5, None)
    assert (stop.lame_duck_least, stop.quiet, stop.cleanup, stop.websocket) == (0, 1, 5, 2)
    assert (stop.returning, stop.retry_after, stop.quit, stop.memory) == (True, 1, "dump", "")
    assert stop.start == 60
    health = HealthSettings()
    assert (health.enabled, health.live, health.alias) == (True, "/healthz", "/livez")
    assert (health.ready, health.check_timeout, health.cache) == ("/readyz", 3, 1)


ENDLESS = "must have an end: a stop without one never ends"


@pytest.mark.parametrize(
    ("stop", "key", "problem"),
    [
        (5, "", "must be a table, not a number"),
        ({"graces": 1}, ".graces", "unknown key; did you mean 'grace'?"),
        (
            {"qqq": 1},
            ".qqq",
            "unknown key; known here: grace, base, cap, calm, lame_duck, lame_duck_least, quiet, "
            "cleanup, websocket, returning, retry_after, quit, memory, start",
        ),
        (
            {"grace": "soon"},
            ".grace",
            "'soon' is not a duration; write for example '30s' or '250ms'",
        ),
        ({"grace": 0}, ".grace", "must be longer than 0"),
        ({"base": 0}, ".base", "must be longer than 0"),
        ({"cap": 0}, ".cap", "must be longer than 0"),
        ({"start": 0}, ".start", "must be longer than 0"),
        *(({name: "inf"}, f".{name}", ENDLESS) for name in ("grace", "cap", "calm", "quiet")),
        *(({name: "inf"}, f".{name}", ENDLESS) for name in ("lame_duck", "lame_duck_least")),
        *(({name: "inf"}, f".{name}", ENDLESS) for name in ("cleanup", "websocket", "retry_after")),
        ({"returning": 1}, ".returning", "must be true or false, not a number"),
        ({"memory": 1}, ".memory", "must be a text, not a number"),
        ({"quit": True}, ".quit", "must be a text, not a boolean"),
        ({"quit": "die"}, ".quit", "'die' is not a meaning; use one of: dump, stop"),
        (
            {"cleanup": "30s"},
            ".cleanup",
            "30 s is not shorter than the grace of 30 s; the clean-up is carved out of the grace",
        ),
        (
            {"lame_duck": "25s"},
            ".lame_duck",
            "25 s is not shorter than the grace of 30 s less the cleanup of 5 s; "
            "the drain needs some of it as well",
        ),
        (
            {"lame_duck_least": "25s"},
            ".lame_duck_least",
            "25 s is not shorter than the grace of 30 s less the cleanup of 5 s; "
            "the drain needs some of it as well",
        ),
        (
            {"quiet": "26s"},
            ".quiet",
            "26 s is not shorter than the grace of 30 s less the cleanup of 5 s; "
            "otherwise no connection is ever quiet in time",
        ),
        (
            {"websocket": "26s"},
            ".websocket",
            "26 s is not shorter than the grace of 30 s less the cleanup of 5 s; "
            "otherwise no peer can be waited for so long",
        ),
        (
            {"calm": "3s", "lame_duck": "2s"},
            ".calm",
            "3 s is never seen in a lame_duck of 2 s",
        ),
        (
            {"lame_duck_least": "3s", "lame_duck": "2s"},
            ".lame_duck_least",
            "3 s is longer than a lame_duck of 2 s",
        ),
    ],
)
def test_what_is_wrong_with_a_stop(stop: object, key: str, problem: str) -> None:
    assert refused({"stop": stop}) == (f"stop{key}", problem)


@pytest.mark.parametrize(
    ("health", "key", "problem"),
    [
        (5, "", "must be a table, not a number"),
        ({"liv": 1}, ".liv", "unknown key; did you mean 'live'?"),
        ({"enabled": 1}, ".enabled", "must be true or false, not a number"),
        ({"live": "healthz"}, ".live", "'healthz' is not a path such as '/healthz'"),
        ({"live": ""}, ".live", "'' is not a path such as '/healthz'"),
        ({"ready": ""}, ".ready", "'' is not a path such as '/healthz'"),
        ({"ready": "/a b"}, ".ready", "'/a b' is not a path such as '/healthz'"),
        ({"ready": "/a?b"}, ".ready", "'/a?b' is not a path such as '/healthz'"),
        ({"ready": "/a#b"}, ".ready", "'/a#b' is not a path such as '/healthz'"),
        ({"ready": "/a\n"}, ".ready", "'/a\\n' is not a path such as '/healthz'"),
        ({"alias": "/healthz"}, ".alias", "'/healthz' is the path of 'live' already"),
        ({"ready": "/livez"}, ".ready", "'/livez' is the path of 'alias' already"),
        ({"check_timeout": 0}, ".check_timeout", "must be longer than 0, and have an end"),
        ({"check_timeout": "inf"}, ".check_timeout", "must be longer than 0, and have an end"),
        ({"alias": "", "ready": "x"}, ".ready", "'x' is not a path such as '/healthz'"),
        ({"cache": "inf"}, ".cache", "must be a duration of at least 0, and have an end"),
    ],
)
def test_what_is_wrong_with_the_health(health: object, key: str, problem: str) -> None:
    assert refused({"health": health}) == (f"health{key}", problem)


@pytest.mark.parametrize("name", ["grace", "base", "calm", "cleanup", "start"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_settings_made_in_python_are_checked_too(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        StopSettings(**{name: value})
    assert str(caught.value) == f"stop.{name}: must be a duration of at least 0"


def test_a_meaning_made_in_python_is_checked_too() -> None:
    problem = r"^stop\.quit: 'die' is not a meaning; use one of: dump, stop$"
    with pytest.raises(ConfigError, match=problem):
        StopSettings(quit="die")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_health_made_in_python_is_checked_too(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^health\.cache: "):
        HealthSettings(cache=value)
    with pytest.raises(ConfigError, match=r"^health\.check_timeout: "):
        HealthSettings(check_timeout=value)


def test_a_path_may_be_of_any_letters() -> None:
    assert lifecycle_from_mapping({"health": {"live": "/X-é_1"}}).health.live == "/X-é_1"


def test_a_start_and_a_base_may_be_without_limit() -> None:
    stop = lifecycle_from_mapping({"stop": {"start": "inf", "base": "inf"}}).stop
    assert (stop.start, stop.base) == (math.inf, math.inf)


def test_what_is_only_inherited_gives_way() -> None:
    stop = lifecycle_from_mapping({"stop": {"grace": "3s"}}).stop
    assert (stop.cleanup, stop.quiet, stop.websocket) == pytest.approx((0.5, 2.5 / 3, 2.5 / 3))
    assert lifecycle_from_mapping({"stop": {"lame_duck": 0}}).stop.calm == 0.0
    assert lifecycle_from_mapping({"stop": {"lame_duck": 9}}).stop.calm == 0.5


def test_what_is_written_does_not_give_way() -> None:
    assert refused({"stop": {"grace": "3s", "cleanup": "5s"}})[0] == "stop.cleanup"
    stop = lifecycle_from_mapping({"stop": {"grace": "3s", "cleanup": "2400ms"}}).stop
    assert (stop.cleanup, stop.quiet) == (2.4, pytest.approx(0.2))


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_grace_alone_is_never_wrong(grace: float) -> None:
    stop = lifecycle_from_mapping({"stop": {"grace": grace}}).stop
    assert stop.grace == grace
    assert stop.cleanup <= grace / 6


def test_what_the_platform_says_goes_before_the_file() -> None:
    stop = lifecycle_from_mapping({"stop": {"grace": "40s"}}, grace=12.0).stop
    assert (stop.grace, stop.cleanup) == (12.0, 2.0)
