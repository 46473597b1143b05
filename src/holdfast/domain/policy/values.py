"""Plain values of a parsed configuration file, each read in the form that it is to have.

A reader takes the value and its path, and raises `ConfigError` with that path where the value has
another form. Every form of a table in `holdfast.toml` reads with these, so that all of them speak
of what is wrong in the same words.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, parse_duration

__all__ = [
    "as_duration",
    "as_flag",
    "as_list",
    "as_names",
    "as_ratio",
    "as_table",
    "as_text",
    "read",
    "unknown_key",
]

_T = TypeVar("_T")


def unknown_key(path: str, key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that is not one of the known ones; names the nearest of them."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return ConfigError(f"{path}.{key}" if path else key, f"unknown key; {hint}")


def as_table(value: object, path: str, known: Sequence[str] = ()) -> Mapping[str, object]:
    """A table whose keys are texts, and, where the known ones are given, no others."""
    if not isinstance(value, Mapping):
        raise ConfigError(path, f"must be a table, not {_kind(value)}")
    for key in cast("Mapping[object, object]", value):
        if not isinstance(key, str):
            raise ConfigError(path, f"keys must be texts, not {key!r}")
        if known and key not in known:
            raise unknown_key(path, key, known)
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


def as_list(value: object, path: str) -> Sequence[object]:
    """A list of whatever."""
    if not isinstance(value, list | tuple):
        raise ConfigError(path, f"must be a list, not {_kind(value)}")
    return cast("Sequence[object]", value)


def as_text(value: object, path: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ConfigError(path, f"must be a text, not {_kind(value)}")
    return value


def as_flag(value: object, path: str) -> bool:
    """True or false, and nothing that is only as good as."""
    if not isinstance(value, bool):
        raise ConfigError(path, f"must be true or false, not {_kind(value)}")
    return value


def as_duration(value: object, path: str) -> Duration:
    """Seconds, from a text such as `"30s"` or a number."""
    if not isinstance(value, str | int | float):
        raise ConfigError(path, f"must be a duration such as '30s', not {_kind(value)}")
    try:
        return parse_duration(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(path, str(error)) from None


def as_ratio(value: object, path: str) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(path, f"must be a number from 0 to 1, not {value!r}")
    return float(value)


def read(
    table: Mapping[str, object], path: str, key: str, form: Callable[[object, str], _T], default: _T
) -> _T:
    """The value of a key in the form that it is to have, or the default where it is not there."""
    return form(table[key], f"{path}.{key}" if path else key) if key in table else default


def as_names(value: object, path: str) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(as_text(item, f"{path}[{i}]") for i, item in enumerate(as_list(value, path)))
