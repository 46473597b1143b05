"""A policy from a parsed configuration file. Every problem names the exact key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeVar, cast

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, parse_duration
from holdfast.domain.policy.model import Mode, Policy, ServicePolicy
from holdfast.domain.policy.route import LIMIT_NAMES, Limits, Route, check_path, overridden
from holdfast.domain.wire.budget import DEFAULT_HEADERS, budget_headers
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings

__all__ = ["policy_from_mapping"]

_MODES: Final[Mapping[str, Mode]] = {"enforce": "enforce", "observe": "observe", "off": "off"}
_NONE: Final[Mapping[str, Duration]] = MappingProxyType({})
_NO_SERVICES: Final[Mapping[str, ServicePolicy]] = MappingProxyType({})
_T = TypeVar("_T")


def _suggest(path: str, key: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return ConfigError(f"{path}.{key}" if path else key, f"unknown key; {hint}")


def _table(value: object, path: str, known: Sequence[str] = ()) -> Mapping[str, object]:
    """A table whose keys are texts, and, where the known ones are given, no others."""
    if not isinstance(value, Mapping):
        raise ConfigError(path, f"must be a table, not {_kind(value)}")
    for key in cast("Mapping[object, object]", value):
        if not isinstance(key, str):
            raise ConfigError(path, f"keys must be texts, not {key!r}")
        if known and key not in known:
            raise _suggest(path, key, known)
    return cast("Mapping[str, object]", value)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    return "a table" if isinstance(value, Mapping) else f"{type(value).__name__}"


def _list(value: object, path: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise ConfigError(path, f"must be a list, not {_kind(value)}")
    return cast("Sequence[object]", value)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(path, f"must be a text, not {_kind(value)}")
    return value


def _flag(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(path, f"must be true or false, not {_kind(value)}")
    return value


def _duration(value: object, path: str) -> Duration:
    if not isinstance(value, str | int | float):
        raise ConfigError(path, f"must be a duration such as '30s', not {_kind(value)}")
    try:
        return parse_duration(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(path, str(error)) from None


def _ratio(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(path, f"must be a number from 0 to 1, not {value!r}")
    return float(value)


def _get(
    table: Mapping[str, object], path: str, key: str, read: Callable[[object, str], _T], default: _T
) -> _T:
    return read(table[key], f"{path}.{key}" if path else key) if key in table else default


def _overrides(table: Mapping[str, object], path: str) -> Mapping[str, Duration]:
    return {name: _duration(table[name], f"{path}.{name}") for name in LIMIT_NAMES if name in table}


def _timeouts(value: object, path: str) -> Mapping[str, Duration]:
    return _overrides(_table(value, path, LIMIT_NAMES), path)


def _methods(value: object, path: str) -> frozenset[str]:
    found: set[str] = set()
    for index, item in enumerate(_list(value, path)):
        method = _text(item, f"{path}[{index}]").upper()
        if not method.isascii() or not method.replace("-", "").isalpha():
            raise ConfigError(f"{path}[{index}]", f"{item!r} is not an HTTP method")
        found.add(method)
    return frozenset(found)


_ROUTE_KEYS: Final = ("path", *LIMIT_NAMES, "stream", "methods", "name")


def _route(value: object, path: str) -> Route:
    table = _table(value, path, _ROUTE_KEYS)
    if "path" not in table:
        raise ConfigError(f"{path}.path", "is missing; write for example path = '/api/*'")
    pattern = _text(table["path"], f"{path}.path")
    if problem := check_path(pattern):
        raise ConfigError(f"{path}.path", problem)
    return Route(
        pattern,
        _overrides(table, path),
        _flag(table["stream"], f"{path}.stream") if "stream" in table else None,
        _get(table, path, "methods", _methods, frozenset()),
        _get(table, path, "name", _text, ""),
    )


def _routes(value: object, path: str) -> tuple[Route, ...]:
    return tuple(_route(item, f"{path}[{i}]") for i, item in enumerate(_list(value, path)))


def _services(value: object, path: str) -> Mapping[str, ServicePolicy]:
    found: dict[str, ServicePolicy] = {}
    for name, item in _table(value, path).items():
        here = f"{path}.{name}"
        table = _table(item, here, ("timeouts", "routes"))
        found[name] = ServicePolicy(
            _get(table, here, "timeouts", _timeouts, _NONE),
            _get(table, here, "routes", _routes, ()),
        )
    return MappingProxyType(found)


def _names(value: object, path: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{path}[{i}]") for i, item in enumerate(_list(value, path)))


def _wire(data: Mapping[str, object]) -> WireSettings:
    headers = _table(data.get("headers", {}), "headers", ("inbound", "outbound", "details"))
    identity = _table(
        data.get("identity", {}), "identity", ("sample", "trust_stage", "stage_header")
    )
    shipped = tuple(
        tuple(f"{name.decode()}: {grammar}" for name, grammar in side)
        for side in (DEFAULT_HEADERS.inbound, DEFAULT_HEADERS.outbound)
    )
    return WireSettings(
        headers=budget_headers(
            _get(headers, "headers", "inbound", _names, shipped[0]),
            _get(headers, "headers", "outbound", _names, shipped[1]),
        ),
        stage_header=_get(identity, "identity", "stage_header", _text, DEFAULT_WIRE.stage_header),
        trust_stage=_get(identity, "identity", "trust_stage", _flag, DEFAULT_WIRE.trust_stage),
        details=_get(headers, "headers", "details", _flag, DEFAULT_WIRE.details),
        sample=_get(identity, "identity", "sample", _ratio, DEFAULT_WIRE.sample),
    )


def _mode(value: object, path: str) -> Mode:
    text = _text(value, path)
    if text not in _MODES:
        raise ConfigError(path, f"{text!r} is not a mode; use one of: {', '.join(_MODES)}")
    return _MODES[text]


_TOP_KEYS: Final = (
    "service",
    "mode",
    "timeouts",
    "routes",
    "services",
    "headers",
    "identity",
    "debug",
)


def _debug(data: Mapping[str, object]) -> bool:
    debug = _table(data.get("debug", {}), "debug", ("tree",))
    return _get(debug, "debug", "tree", _flag, False)


def policy_from_mapping(data: Mapping[str, object], service: str = "") -> Policy:
    """The policy in a parsed configuration file.

    Keys: `service`, `mode`, `[timeouts]` with the names of `Limits`, `[[routes]]` with `path`,
    `stream`, `methods`, `name` and limits, `[services.<name>.timeouts]`,
    `[[services.<name>.routes]]`, `[headers]` with `inbound`, `outbound` (see
    `wire.budget.budget_headers`) and `details`, `[identity]` with `sample`, `trust_stage`,
    `stage_header`, `[debug]` with `tree`.
    Durations are texts like `"250ms"` or numbers of seconds.

    Args:
        data: the parsed file, for example of TOML.
        service: name of this service, over what the file says.

    Raises:
        ConfigError: anything is wrong, with the path of the key, for example `routes[2].request`.
    """
    data = _table(data, "", _TOP_KEYS)
    return Policy(
        service=service or _get(data, "", "service", _text, ""),
        mode=_get(data, "", "mode", _mode, "enforce"),
        defaults=overridden(Limits(), _get(data, "", "timeouts", _timeouts, _NONE)),
        routes=_get(data, "", "routes", _routes, ()),
        services=_get(data, "", "services", _services, _NO_SERVICES),
        wire=_wire(data),
        debug_tree=_debug(data),
    )
