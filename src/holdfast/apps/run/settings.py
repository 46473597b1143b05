"""How a program stops, as the table `[stop]` of `holdfast.toml` says it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from holdfast.apps.run.problem import RunError
from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration, parse_duration
from holdfast.domain.lifecycle.history import Terms
from holdfast.domain.lifecycle.settings import StopSettings, lifecycle_from_mapping
from holdfast.domain.lifecycle.stopbudget import stop_budget
from holdfast.runtime.lifecycle import HostTerms

__all__ = ["read_settings", "terms_of"]

_NAME: Final = "holdfast.toml"
_GRACE: Final = "HOLDFAST_GRACE"
_LONGEST_START: Final[Duration] = 86_400.0


def read_settings(config: Path | None, here: Path) -> tuple[StopSettings, str]:
    """The settings, and the name of the service where the file says one.

    Args:
        config: the file; without one that in the directory `here`, if it has any.
        here: where to look.

    Raises:
        RunError: the file cannot be read, or something in it is wrong.
    """
    path = config or here / _NAME
    data: Mapping[str, object] = {}
    if config is not None or path.exists():
        data = _parsed(path)
    try:
        stop = lifecycle_from_mapping(data, _platform_grace()).stop
    except ConfigError as error:
        raise RunError(f"{path.name}: {error}") from None
    service = data.get("service", "")
    return stop, service if isinstance(service, str) else ""


def _parsed(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: {error}") from None


def _platform_grace() -> Duration | None:
    """What the platform says that it gives, in seconds or as `30s`; `None` when it says nothing."""
    said = os.environ.get(_GRACE, "").strip()
    if not said:
        return None
    try:
        return parse_duration(int(said) if said.isascii() and said.isdigit() else said)
    except ValueError as error:
        raise RunError(f"{_GRACE}: {error}") from None


def terms_of(stop: StopSettings, failures: int) -> tuple[HostTerms, Terms]:
    """The times of a host after so many failed stops, and what is written down about them.

    There is no lame duck: nobody connects. Without a `base` work gets all that the clean-up leaves.
    """
    base = stop.grace - stop.cleanup if stop.base is None else stop.base
    budget = stop_budget(
        grace=stop.grace,
        cleanup=stop.cleanup,
        base=base,
        failures=failures,
        cap=stop.cap,
        lame_duck=0.0,
    )
    start = min(stop.start, _LONGEST_START)
    most = min(stop.cap, stop.grace - budget.cleanup)
    return (
        HostTerms(start=start, drain=budget.drain, cleanup=budget.cleanup),
        Terms(budget.drain, base, most, stop.grace),
    )
