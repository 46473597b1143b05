"""Limits, and the routes that they are for.

Among the routes that match a path the most specific one wins: an exact path first, then the longest
text before the first `{parameter}` or `*`, then a pattern without `*` before one with it, then the
longest text beside the parameters. Where two are equal, one of the service comes before a global
one, and one with methods before one without.

    /health                 exactly this path
    /orders/{id}/items      one segment for each parameter
    /api/v2/payment*        everything that begins so; a `*` can only be the last character
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Final

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration

__all__ = [
    "LIMIT_NAMES",
    "Limits",
    "Resolved",
    "Route",
    "RouteTable",
    "check_limits",
    "check_path",
    "overridden",
]

_MEMO: Final = 1024
_MEMO_PATH: Final = 256
_PARAMETER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request, in seconds; infinite for none.

    Attributes:
        header: from the first byte to the end of the headers.
        request: the whole request, from its arrival; not for streams.
        idle: between two messages of a stream; five minutes, as Envoy has it.
        grace: clean-up after the limit, carved out of it beforehand.
        reserve: what this hop keeps of the budget when it calls another, so that there is time to
            hear from below who spent it.
        refuse_below: work with less than this left is refused before it begins.
    """

    header: Duration = 5.0
    request: Duration = 10.0
    idle: Duration = 300.0
    grace: Duration = 0.0
    reserve: Duration = 0.01
    refuse_below: Duration = 0.0


LIMIT_NAMES: Final = tuple(item.name for item in fields(Limits))
_NO_OVERRIDES: Final[Mapping[str, Duration]] = MappingProxyType({})


def check_limits(limits: Limits) -> tuple[str, str] | None:
    """The first law that limits break, as the name of the limit and the reason; `None` for none."""
    for name in LIMIT_NAMES:
        value: float = getattr(limits, name)
        if not value >= 0:
            return name, "must be a duration of at least 0"
    if limits.request == 0:
        return "request", "must be longer than 0; to have no limit write 'inf'"
    whole = format_duration(limits.request)
    for name, why in (
        ("grace", "the grace is carved out of the request"),
        ("reserve", "a hop cannot keep all of the budget for itself"),
        ("refuse_below", "otherwise every request is refused"),
    ):
        part: float = getattr(limits, name)
        if part and part >= limits.request:
            return name, f"{format_duration(part)} must be shorter than request ({whole}): {why}"
    if limits.header > limits.request:
        return "header", f"must not be longer than request ({whole}), of which it is a part"
    if limits.grace + limits.reserve >= limits.request:
        return "grace", f"grace and reserve together must be shorter than request ({whole})"
    return None


def check_path(path: str) -> str:
    """What is wrong with a path pattern; empty when nothing is."""
    if not path.startswith(("/", "*")):
        return f"{path!r} must begin with '/'"
    if "*" in path[:-1]:
        return f"{path!r} must have '*' only at the end; for one segment write '{{name}}'"
    for segment in path.split("/"):
        if ("{" in segment or "}" in segment) and not _PARAMETER.fullmatch(segment.rstrip("*")):
            return (
                f"{path!r} must have a parameter as a whole segment, for example '/orders/{{id}}'"
            )
    return ""


@dataclass(frozen=True, slots=True)
class Route:
    """Limits for some paths.

    Attributes:
        path: the pattern; see the module.
        overrides: limits that this route sets itself, in seconds, by their names in `Limits`.
        stream: whether its responses are streams, which have an idle limit and no whole one;
            `None` leaves it to the one who serves it.
        methods: HTTP methods that it is for, upper-case; empty for all.
        name: name in metrics and logs; the path when empty.

    Raises:
        ConfigError: the pattern or a name of a limit is wrong.
    """

    path: str
    overrides: Mapping[str, Duration] = field(default_factory=lambda: _NO_OVERRIDES)
    stream: bool | None = None
    methods: frozenset[str] = frozenset()
    name: str = ""

    def __post_init__(self) -> None:
        if problem := check_path(self.path):
            raise ConfigError("path", problem)
        for name in self.overrides:
            if name not in LIMIT_NAMES:
                raise ConfigError(name, f"no such limit; use one of: {', '.join(LIMIT_NAMES)}")

    @property
    def label(self) -> str:
        """The name of the route in metrics and logs."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class Resolved:
    """The limits of a request after all layers. Made beforehand, shared by requests.

    Attributes:
        limits: what holds, in seconds.
        stream: whether the response is a stream; `None` when no route says.
        route: name of the route; empty when none matched.
    """

    limits: Limits
    stream: bool | None = None
    route: str = ""

    def budget(self, left: Duration | None = None) -> Duration:
        """Seconds for the whole request: the policy's or what the caller has left, the smaller.

        A stream has only what its caller set. Infinite, `None` and NaN from the caller mean no
        limit of its own, so the policy's holds.
        """
        own = NEVER if self.stream else self.limits.request
        return left if left is not None and left < own else own

    def deadline(self, arrival: Instant, left: Duration | None = None) -> Instant:
        """The instant by which a request that arrived at `arrival` must be done."""
        return arrival + self.budget(left)

    def refuses(self, left: Duration) -> bool:
        """Whether work must not begin with so many seconds left."""
        return left <= 0 or left < self.limits.refuse_below


def overridden(limits: Limits, overrides: Mapping[str, Duration]) -> Limits:
    """Limits with some of them set anew, in seconds.

    A header limit or a reserve that is only inherited shrinks with the request that it is part of.
    """
    if not overrides:
        return limits
    found = replace(limits, **overrides)
    if "header" not in overrides and found.header > found.request:
        found = replace(found, header=found.request)
    if "reserve" not in overrides and found.reserve > found.request / 10:
        found = replace(found, reserve=found.request / 10)
    return found


def _pattern(path: str) -> re.Pattern[str]:
    prefix = path.endswith("*")
    parts = _PARAMETER.split(path[:-1] if prefix else path)
    text = "[^/]+".join(re.escape(part) for part in parts)
    return re.compile(text if prefix else text + r"\Z")


def _rank(path: str) -> tuple[int, bool, int]:
    literal = re.split(r"[{*]", path, maxsplit=1)[0]
    # What a parameter is called must not decide: only the text around it is specific.
    return -len(literal), path.endswith("*"), -len(_PARAMETER.sub("", path))


class RouteTable:
    """Routes compiled for looking up; every result is made beforehand.

    Args:
        limits: what holds where no route matches, and what the routes override.
        own: routes of the service.
        common: global routes, which yield to equally specific ones of the service.
    """

    __slots__ = ("_by_method", "_default", "_exact", "_memo", "_patterns")

    def __init__(self, limits: Limits, own: Iterable[Route], common: Iterable[Route]) -> None:
        exact: dict[str, list[tuple[tuple[bool, bool], frozenset[str], Resolved]]] = {}
        found: list[
            tuple[
                tuple[tuple[int, bool, int], bool, bool], re.Pattern[str], frozenset[str], Resolved
            ]
        ] = []
        self._by_method = False
        for is_common, routes in ((False, own), (True, common)):
            for route in routes:
                path, methods = route.path, route.methods
                here = Resolved(overridden(limits, route.overrides), route.stream, route.label)
                self._by_method = self._by_method or bool(methods)
                if "{" in path or path.endswith("*"):
                    rank = (_rank(path), is_common, not methods)
                    found.append((rank, _pattern(path), methods, here))
                else:
                    exact.setdefault(path, []).append(((is_common, not methods), methods, here))
        self._default = Resolved(limits)
        self._memo: dict[str, Resolved] = {}
        self._exact = {
            path: tuple((m, r) for _, m, r in sorted(same, key=lambda item: item[0]))
            for path, same in exact.items()
        }
        self._patterns = tuple((p, m, r) for _, p, m, r in sorted(found, key=lambda item: item[0]))

    @property
    def default(self) -> Resolved:
        """What holds where no route matches."""
        return self._default

    def find(self, path: str, method: str) -> Resolved:
        """The limits for a path; looked up once for each path, as far as the memo reaches."""
        key = f"{method} {path}" if self._by_method else path
        memo = self._memo
        result = memo.get(key)
        if result is None:
            result = self._search(path, method)
            # Paths come from outside: neither their number nor their length may fill the memory.
            if len(memo) >= _MEMO:
                memo.clear()
            if len(path) <= _MEMO_PATH:
                memo[key] = result
        return result

    def _search(self, path: str, method: str) -> Resolved:
        for methods, result in self._exact.get(path, ()):
            if not methods or method in methods:
                return result
        for pattern, methods, result in self._patterns:
            if (not methods or method in methods) and pattern.match(path):
                return result
        return self._default
