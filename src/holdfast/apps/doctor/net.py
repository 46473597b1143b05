"""Measure and read everything, one step after the other."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from holdfast.apps.doctor.facts import Facts, HostFacts, Lateness
from holdfast.apps.doctor.lateness import measurements
from holdfast.apps.doctor.limits import files, kernel, ports
from holdfast.apps.doctor.servers import LIMIT, names
from holdfast.domain.instant import Duration
from holdfast.runtime.cgroup import read_quota

__all__ = ["Tell", "examine"]

Tell = Callable[[str, float], object]
"""Is told what is being done, and which part of the whole is over, from 0 to 1."""

_ROOT: Final = Path("/")


def examine(
    seconds: Duration, asked: Sequence[str] = (), tell: Tell = lambda doing, part: None
) -> Facts:
    """Everything about this host.

    Args:
        seconds: for the timers; the names take at most 1 s for each that nobody answers, and 1 s
            for the servers.
        asked: names to look up.
        tell: is told how far it is.
    """
    whole = seconds + LIMIT
    tell("names", 0.0)
    found_names = names(asked, root=_ROOT)
    over = LIMIT
    timers: list[Lateness] = []
    for step in measurements(seconds):
        tell(step.name, over / whole)
        timers += step.run()
        over += step.seconds
    tell("limits", 1.0)
    return Facts(_host(), tuple(timers), found_names, ports(_ROOT), kernel(_ROOT), files(_ROOT))


def _host() -> HostFacts:
    quota = read_quota()
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    return HostFacts(
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        quota.cpus,
        quota.reason,
        load,
        sys.getswitchinterval(),
    )
