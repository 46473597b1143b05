"""How a program stops, as the table `[stop]` of `holdfast.toml` says it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast.apps.run.problem import RunError
from holdfast.domain.instant import Duration
from holdfast.domain.lifecycle.history import Terms
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.domain.lifecycle.stopbudget import stop_budget
from holdfast.runtime.lifecycle import HostTerms
from holdfast.runtime.policyfile import PolicyFileError, find_policy

__all__ = ["read_settings", "terms_of"]

_LONGEST_START: Final[Duration] = 86_400.0


def read_settings(config: Path | None, here: Path) -> tuple[StopSettings, str]:
    """The settings, and the name of the service where the file says one.

    Args:
        config: the file; without one that in the directory `here`, if it has any.
        here: where to look.

    Raises:
        RunError: the file cannot be read, or something in it is wrong.
    """
    try:
        file = find_policy(config, "", here)
    except PolicyFileError as error:
        raise RunError(str(error)) from None
    return file.lifecycle.stop, file.policy.service


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
