"""The policy in `holdfast.toml`, with the line of what is wrong in it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast.domain.errors import ConfigError, HoldfastError
from holdfast.domain.instant import Duration, parse_duration
from holdfast.domain.lifecycle.settings import LifecycleSettings, lifecycle_from_mapping
from holdfast.domain.policy import Policy, policy_from_mapping

__all__ = [
    "DEFAULT_NAME",
    "GRACE",
    "PolicyFile",
    "PolicyFileError",
    "find_policy",
    "line_of",
    "platform_grace",
    "read_policy",
    "with_meaning",
]

DEFAULT_NAME: Final = "holdfast.toml"
GRACE: Final = "HOLDFAST_GRACE"
"""Environment variable with the grace period of the platform, over `grace` in the file.

For a pod whose manifest says the number once: an annotation, handed down by the downward API.
"""

_PART: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_.\"'-]+?)\s*=")
_LARGEST: Final = 1_048_576


class PolicyFileError(HoldfastError):
    """The file cannot be used. The text says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy with where it came from.

    Attributes:
        source: the file; `None` for the built-in policy.
        data: what the file says, for processes that are to read the same.
        policy: what that means for requests.
        lifecycle: what that means for the process.
    """

    source: Path | None
    data: Mapping[str, object]
    policy: Policy
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)


def with_meaning(source: Path | None, data: Mapping[str, object], service: str) -> PolicyFile:
    """What a parsed file says, with what that means.

    Raises:
        ConfigError: something in it is wrong.
        PolicyFileError: what the platform says is.
    """
    policy = policy_from_mapping(data, service)
    return PolicyFile(source, data, policy, lifecycle_from_mapping(data, platform_grace()))


def platform_grace() -> Duration | None:
    """Seconds that the platform says it gives; `None` when it says nothing.

    Raises:
        PolicyFileError: what it says is no duration, or none at all.
    """
    said = os.environ.get(GRACE, "").strip()
    if not said:
        return None
    try:
        # A bare number stands for seconds: `terminationGracePeriodSeconds` is one.
        grace = parse_duration(int(said) if said.isascii() and said.isdigit() else said)
    except ValueError as error:
        raise PolicyFileError(f"{GRACE}: {error}") from None
    if grace <= 0:
        raise PolicyFileError(f"{GRACE}: must be longer than 0, got {said!r}")
    return grace


def find_policy(config: Path | None, service: str, here: Path) -> PolicyFile:
    """The policy of a file, else of `holdfast.toml` in the directory `here`, else the built-in one.

    Raises:
        PolicyFileError: the file is missing or wrong.
    """
    if config is not None:
        return read_policy(config, service)
    default = here / DEFAULT_NAME
    if default.exists():
        return read_policy(default, service)
    try:
        return with_meaning(None, {}, service)
    except ConfigError as error:  # of the environment, since there is no file
        raise PolicyFileError(str(error)) from None


def read_policy(path: Path, service: str) -> PolicyFile:
    """The policy of a file.

    Raises:
        PolicyFileError: it is missing or wrong; with the file, the line and the key where known.
    """
    shown = _shown(path)
    text = _read(path, shown)
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyFileError(f"{shown}: not TOML: {error}") from None
    try:
        return with_meaning(path, data, service)
    except ConfigError as error:
        line = line_of(text, error.path)
        where = f"{shown}:{line}" if line else shown
        raise PolicyFileError(f"{where}: {error}") from None


def _read(path: Path, shown: str) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise PolicyFileError(
                f"{shown}: larger than {_LARGEST} bytes; this is not a policy file"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PolicyFileError(
            f"{shown}: no such file; give an existing one with --config, or leave --config away "
            "for the built-in limits"
        ) from None
    except UnicodeDecodeError as error:
        raise PolicyFileError(
            f"{shown}: not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    except OSError as error:
        raise PolicyFileError(f"{shown}: cannot be read: {error.strerror}") from None


def _shown(path: Path) -> str:
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _names(key: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in key.split("."))


def line_of(text: str, path: str) -> int:
    """Line of a key such as `routes[2].request` in a TOML text, or of what is nearest around it.

    A search, not a parser: it knows tables, arrays of tables and plain keys, which is what people
    write. 0 when even the table is not found.
    """
    wanted: list[tuple[str, int]] = []
    for match in _PART.finditer(path):
        if match[1] is not None:
            wanted.append((match[1], -1))
        elif wanted:
            wanted[-1] = (wanted[-1][0], int(match[2]))
    seen: dict[tuple[str, ...], int] = {}
    table: tuple[tuple[str, int], ...] = ()
    best = (0, 0)
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            names = _names(header[2])
            if header[1] == "[[":
                seen[names] = seen.get(names, -1) + 1
            table = tuple(
                (name, seen.get(names[: depth + 1], -1)) for depth, name in enumerate(names)
            )
            here = table
        elif key := _KEY.match(line):
            here = (*table, *((name, -1) for name in _names(key[1])))
        else:
            continue
        depth = _agreeing(here, wanted)
        if depth > best[0]:
            best = (depth, number)
    return best[1]


def _agreeing(here: tuple[tuple[str, int], ...], wanted: list[tuple[str, int]]) -> int:
    """How many steps of the path a place agrees with; 0 when it leads elsewhere."""
    for (name, index), (wish, number) in zip(here, wanted, strict=False):
        if name != wish or (number != index and number != -1 and index != -1):
            return 0
    return len(here) if len(here) <= len(wanted) else 0
