"""Time-out policy: which limits a request gets, by layer, service and route.

The layers are the built-in limits, the global ones, those of the service, and those of the route;
the nearest layer that says something wins, setting by setting. A policy is frozen: a change while
running is a new policy in the place of the old one, and requests under way keep the limits that
they began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.policy.route import (
    Limits,
    Resolved,
    Route,
    RouteTable,
    check_limits,
    overridden,
)
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings

__all__ = ["DEFAULT_POLICY", "EXAMPLE_ROUTES", "Mode", "Policy", "ServicePolicy", "describe"]

Mode: TypeAlias = Literal["enforce", "observe", "off"]
_NONE: Final[Mapping[str, Duration]] = MappingProxyType({})


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
        debug_tree: whether the live tree answers to HTTP clients on this machine.

    Raises:
        ConfigError: limits break a law in some layer.
    """

    service: str = ""
    mode: Mode = "enforce"
    defaults: Limits = field(default_factory=Limits)
    routes: tuple[Route, ...] = ()
    services: Mapping[str, ServicePolicy] = field(default_factory=lambda: _NO_SERVICES)
    wire: WireSettings = DEFAULT_WIRE
    debug_tree: bool = False
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
    rows: list[tuple[str, ...]] = [
        ("path", "method", "request", "header", "idle", "grace", "reserve")
    ]
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
