"""A policy from a parsed configuration file. Every problem names the exact key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration
from holdfast.domain.policy.model import Mode, Policy, ServicePolicy
from holdfast.domain.policy.route import LIMIT_NAMES, Limits, Route, check_path, overridden
from holdfast.domain.policy.values import (
    as_duration,
    as_flag,
    as_list,
    as_names,
    as_ratio,
    as_table,
    as_text,
    read,
)
from holdfast.domain.wire.budget import DEFAULT_HEADERS, budget_headers
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings

__all__ = ["policy_from_mapping"]

_MODES: Final[Mapping[str, Mode]] = {"enforce": "enforce", "observe": "observe", "off": "off"}
_NONE: Final[Mapping[str, Duration]] = MappingProxyType({})
_NO_SERVICES: Final[Mapping[str, ServicePolicy]] = MappingProxyType({})


def _overrides(table: Mapping[str, object], path: str) -> Mapping[str, Duration]:
    return {
        name: as_duration(table[name], f"{path}.{name}") for name in LIMIT_NAMES if name in table
    }


def _timeouts(value: object, path: str) -> Mapping[str, Duration]:
    return _overrides(as_table(value, path, LIMIT_NAMES), path)


def _methods(value: object, path: str) -> frozenset[str]:
    found: set[str] = set()
    for index, item in enumerate(as_list(value, path)):
        method = as_text(item, f"{path}[{index}]").upper()
        if not method.isascii() or not method.replace("-", "").isalpha():
            raise ConfigError(f"{path}[{index}]", f"{item!r} is not an HTTP method")
        found.add(method)
    return frozenset(found)


_ROUTE_KEYS: Final = ("path", *LIMIT_NAMES, "stream", "methods", "name")


def _route(value: object, path: str) -> Route:
    table = as_table(value, path, _ROUTE_KEYS)
    if "path" not in table:
        raise ConfigError(f"{path}.path", "is missing; write for example path = '/api/*'")
    pattern = as_text(table["path"], f"{path}.path")
    if problem := check_path(pattern):
        raise ConfigError(f"{path}.path", problem)
    return Route(
        pattern,
        _overrides(table, path),
        as_flag(table["stream"], f"{path}.stream") if "stream" in table else None,
        read(table, path, "methods", _methods, frozenset()),
        read(table, path, "name", as_text, ""),
    )


def _routes(value: object, path: str) -> tuple[Route, ...]:
    return tuple(_route(item, f"{path}[{i}]") for i, item in enumerate(as_list(value, path)))


def _services(value: object, path: str) -> Mapping[str, ServicePolicy]:
    found: dict[str, ServicePolicy] = {}
    for name, item in as_table(value, path).items():
        here = f"{path}.{name}"
        table = as_table(item, here, ("timeouts", "routes"))
        found[name] = ServicePolicy(
            read(table, here, "timeouts", _timeouts, _NONE),
            read(table, here, "routes", _routes, ()),
        )
    return MappingProxyType(found)


def _wire(data: Mapping[str, object]) -> WireSettings:
    headers = as_table(data.get("headers", {}), "headers", ("inbound", "outbound", "details"))
    identity = as_table(
        data.get("identity", {}), "identity", ("sample", "trust_stage", "stage_header")
    )
    shipped = tuple(
        tuple(f"{name.decode()}: {grammar}" for name, grammar in side)
        for side in (DEFAULT_HEADERS.inbound, DEFAULT_HEADERS.outbound)
    )
    return WireSettings(
        headers=budget_headers(
            read(headers, "headers", "inbound", as_names, shipped[0]),
            read(headers, "headers", "outbound", as_names, shipped[1]),
        ),
        stage_header=read(identity, "identity", "stage_header", as_text, DEFAULT_WIRE.stage_header),
        trust_stage=read(identity, "identity", "trust_stage", as_flag, DEFAULT_WIRE.trust_stage),
        details=read(headers, "headers", "details", as_flag, DEFAULT_WIRE.details),
        sample=read(identity, "identity", "sample", as_ratio, DEFAULT_WIRE.sample),
    )


def _mode(value: object, path: str) -> Mode:
    text = as_text(value, path)
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
    "stop",
    "health",
)


def _debug(data: Mapping[str, object]) -> bool:
    debug = as_table(data.get("debug", {}), "debug", ("tree",))
    return read(debug, "debug", "tree", as_flag, False)


def policy_from_mapping(data: Mapping[str, object], service: str = "") -> Policy:
    """The policy in a parsed configuration file.

    Keys: `service`, `mode`, `[timeouts]` with the names of `Limits`, `[[routes]]` with `path`,
    `stream`, `methods`, `name` and limits, `[services.<name>.timeouts]`,
    `[[services.<name>.routes]]`, `[headers]` with `inbound`, `outbound` (see
    `wire.budget.budget_headers`) and `details`, `[identity]` with `sample`, `trust_stage`,
    `stage_header`, `[debug]` with `tree`. `[stop]` and `[health]` are for
    `lifecycle.settings.lifecycle_from_mapping`: here they may stand, and mean nothing.
    Durations are texts like `"250ms"` or numbers of seconds.

    Args:
        data: the parsed file, for example of TOML.
        service: name of this service, over what the file says.

    Raises:
        ConfigError: anything is wrong, with the path of the key, for example `routes[2].request`.
    """
    data = as_table(data, "", _TOP_KEYS)
    return Policy(
        service=service or read(data, "", "service", as_text, ""),
        mode=read(data, "", "mode", _mode, "enforce"),
        defaults=overridden(Limits(), read(data, "", "timeouts", _timeouts, _NONE)),
        routes=read(data, "", "routes", _routes, ()),
        services=read(data, "", "services", _services, _NO_SERVICES),
        wire=_wire(data),
        debug_tree=_debug(data),
    )
