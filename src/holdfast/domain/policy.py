"""Time-out policy: which limits a request gets, by layer, service and route.

The layers are the built-in limits, the global ones, those of the service, and those of the route;
the nearest layer that says something wins, setting by setting. Which route matches is told in
`route`. A policy is frozen: a change while running is a new policy in the place of the old one, and
requests under way keep the limits that they began with.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar, cast

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, format_duration, parse_duration
from holdfast.domain.route import (
    LIMIT_NAMES,
    Limits,
    Resolved,
    Route,
    RouteTable,
    check_limits,
    check_path,
    overridden,
)
from holdfast.domain.wire.budget import DEFAULT_HEADERS, budget_headers
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings

__all__ = [
    "DEFAULT_POLICY",
    "EXAMPLE_ROUTES",
    "Limits",
    "Mode",
    "Policy",
    "Resolved",
    "Route",
    "ServicePolicy",
    "describe",
    "policy_from_mapping",
]

Mode: TypeAlias = Literal["enforce", "observe", "off"]
_MODES: Final[Mapping[str, Mode]] = {"enforce": "enforce", "observe": "observe", "off": "off"}
_NONE: Final[Mapping[str, Duration]] = MappingProxyType({})
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """What one service has of its own.

    Attributes:
        overrides: limits over the global ones, in seconds, by their names in `Limits`.
        routes: routes that come before equally specific global ones.
    """

    overrides: Mapping[str, Duration] = field(default_factory=lambda: _NONE)
    routes: tuple[Route, ...] = ()


_NO_SERVICES: Final[Mapping[str, ServicePolicy]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of every request of a service.

    Attributes:
        service: name of this service.
        mode: `enforce` cuts, `observe` counts what it would have cut, `off` does neither.
        defaults: global limits.
        routes: global routes, for every service.
        services: what single services have of their own, by name.
        wire: which headers are read and sent.

    Raises:
        ConfigError: limits break a law in some layer.
    """

    service: str = ""
    mode: Mode = "enforce"
    defaults: Limits = field(default_factory=Limits)
    routes: tuple[Route, ...] = ()
    services: Mapping[str, ServicePolicy] = field(default_factory=lambda: _NO_SERVICES)
    wire: WireSettings = DEFAULT_WIRE
    _table: RouteTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check("timeouts", self.defaults)
        _check_routes("routes", self.defaults, self.routes)
        for name, service in self.services.items():
            limits = overridden(self.defaults, service.overrides)
            _check(f"services.{name}.timeouts", limits)
            _check_routes(f"services.{name}.routes", limits, service.routes)
        own = self.services.get(self.service, ServicePolicy())
        table = RouteTable(overridden(self.defaults, own.overrides), own.routes, self.routes)
        object.__setattr__(self, "_table", table)

    def limits(self, path: str, method: str = "") -> Resolved:
        """The limits of a request to this service.

        Args:
            path: path of the request without its query, decoded.
            method: HTTP method in upper case; routes with methods need it.
        """
        return self._table.find(path, method)

    def for_service(self, name: str) -> Policy:
        """The same policy seen from another service, for example from one that this one calls."""
        return replace(self, service=name)


def _check(path: str, limits: Limits) -> None:
    if broken := check_limits(limits):
        raise ConfigError(f"{path}.{broken[0]}", broken[1])


def _check_routes(path: str, limits: Limits, routes: Sequence[Route]) -> None:
    for index, route in enumerate(routes):
        _check(f"{path}[{index}]", overridden(limits, route.overrides))


DEFAULT_POLICY: Final = Policy()
"""Request 10 s, headers 5 s, no routes."""

EXAMPLE_ROUTES: Final = (
    Route("/api/v2/payment*", {"request": 3.0}),
    Route("/reports*", {"request": 30.0}),
)
"""Routes that many services begin with: payments are short, reports are long."""


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
    return {
        name: _duration(table[name], f"{path}.{name}") for name in LIMIT_NAMES if name in table
    }


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
    headers = _table(data.get("headers", {}), "headers", ("inbound", "outbound"))
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
        sample=_get(identity, "identity", "sample", _ratio, DEFAULT_WIRE.sample),
    )


def _mode(value: object, path: str) -> Mode:
    text = _text(value, path)
    if text not in _MODES:
        raise ConfigError(path, f"{text!r} is not a mode; use one of: {', '.join(_MODES)}")
    return _MODES[text]


_TOP_KEYS: Final = ("service", "mode", "timeouts", "routes", "services", "headers", "identity")


def policy_from_mapping(data: Mapping[str, object], service: str = "") -> Policy:
    """The policy in a parsed configuration file.

    Keys: `service`, `mode`, `[timeouts]` with the names of `Limits`, `[[routes]]` with `path`,
    `stream`, `methods`, `name` and limits, `[services.<name>.timeouts]`,
    `[[services.<name>.routes]]`, `[headers]` with `inbound` and `outbound` (see
    `wire.budget.budget_headers`), `[identity]` with `sample`, `trust_stage`, `stage_header`.
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
    )


def _row(path: str, methods: frozenset[str], resolved: Resolved) -> tuple[str, ...]:
    limits = resolved.limits
    whole = "stream" if resolved.stream else format_duration(limits.request)
    rest = (limits.header, limits.idle, limits.grace, limits.reserve)
    method = ",".join(sorted(methods)) or "any"
    return path, method, whole, *(format_duration(value) if value else "-" for value in rest)


def describe(policy: Policy) -> str:
    """A short table for people: one line for each route of this service, the default last."""
    own = policy.services.get(policy.service, ServicePolicy())
    limits = overridden(policy.defaults, own.overrides)
    rows: list[tuple[str, ...]] = [("path", "method", "request", "header", "idle", "grace", "reserve")]
    for route in (*own.routes, *policy.routes):
        resolved = Resolved(overridden(limits, route.overrides), route.stream, route.label)
        rows.append(_row(route.path, route.methods, resolved))
    rows.append(_row("(other)", frozenset(), Resolved(limits)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"time-out policy of {policy.service or '(no name)'}: {policy.mode}"]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
