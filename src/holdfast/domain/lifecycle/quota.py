"""The processors that a container may use, and how many workers and threads that is good for.

    cgroup v2   cpu.max                  "150000 100000": so many microseconds in each period;
                                         "max 100000": no quota
    cgroup v1   cpu.cfs_quota_us         "150000", with cpu.cfs_period_us "100000"; "-1": no quota
    affinity    the processors that the kernel lets a process run on, a whole number

What counts is the smallest of them: a quota is bandwidth, an affinity is places, and neither is of
use without the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Advice",
    "Quota",
    "cpus_of_v1",
    "cpus_of_v2",
    "memory_of",
    "smallest",
    "threads_for",
    "workers_for",
]

_PERIOD: Final = 100_000
"""Microseconds; the kernel's own, where a file leaves it out."""
_NO_MEMORY_LIMIT: Final = 1 << 60
"""Bytes; cgroup v1 says 2**63 less a page for "none"."""
_MOST_THREADS: Final = 32
_SPARE_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Quota:
    """The processors that this process may use.

    Attributes:
        cpus: how many, with fractions; at least something.
        source: who says so, for example `cgroup v2 cpu.max`; empty where nothing is limited.
        machine: how many the machine has; 0 when unknown.
    """

    cpus: float
    source: str = ""
    machine: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.cpus < math.inf:
            raise ValueError(f"{self.cpus!r} is not a number of processors")

    @property
    def reason(self) -> str:
        """In words: `cgroup v2 cpu.max allows 1.5 CPUs of 8`."""
        count = _counted(self.cpus)
        if not self.source:
            return f"the machine has {count}"
        return f"{self.source} allows {count}" + (f" of {self.machine}" if self.machine else "")


@dataclass(frozen=True, slots=True)
class Advice:
    """How many of something, and why, in one sentence."""

    count: int
    why: str


def cpus_of_v2(text: str) -> float:
    """Processors in a `cpu.max`; infinite for no quota.

    Raises:
        ValueError: it is none.
    """
    words = text.split()
    if not 1 <= len(words) <= 2:
        raise ValueError(f"{text!r} is not a cpu.max")
    period = _positive(words[1]) if len(words) == 2 else _PERIOD
    return math.inf if words[0] == "max" else _positive(words[0]) / period


def cpus_of_v1(quota: str, period: str) -> float:
    """Processors in a `cpu.cfs_quota_us` with its `cpu.cfs_period_us`; infinite for no quota.

    Raises:
        ValueError: they are none.
    """
    whole = _positive(period)
    return math.inf if quota.strip() == "-1" else _positive(quota) / whole


def memory_of(text: str) -> int | None:
    """Bytes in a `memory.max` or `memory.limit_in_bytes`; `None` for no limit.

    Raises:
        ValueError: it is none.
    """
    if text.strip() == "max":
        return None
    limit = _positive(text)
    return None if limit >= _NO_MEMORY_LIMIT else limit


def _positive(text: str) -> int:
    word = text.strip()
    if not word.isascii() or not word.isdigit() or len(word) >= 20 or int(word) == 0:
        raise ValueError(f"{text!r} is not a positive whole number")
    return int(word)


def smallest(limits: Iterable[tuple[float, str]], affinity: int, machine: int) -> Quota:
    """The quota that counts.

    Args:
        limits: processors, infinite for none, each with who says so.
        affinity: processors that this process may run on; 0 when unknown.
        machine: processors that the machine has; 0 when unknown.
    """
    best = (float(machine or affinity or 1), "")
    if 0 < affinity < best[0]:
        best = (float(affinity), "the CPU affinity")
    # The first of equals: it is the innermost, and an affinity is more than a quota as large.
    for cpus, source in limits:
        if 0 < cpus < best[0]:
            best = (cpus, source)
    return Quota(best[0], best[1], machine)


def workers_for(quota: Quota) -> Advice:
    """Processes that serve: as many as there are processors, a part of one counting as one.

    One less would leave some of the quota unused; one more would be throttled.
    """
    count = math.ceil(quota.cpus)
    return Advice(count, f"{_plural(count, 'worker')}: {quota.reason}")


def threads_for(quota: Quota) -> Advice:
    """Threads of a pool for blocking calls, as `concurrent.futures` has it: 4 more, at most 32.

    Python itself counts the processors of the machine, or of the affinity, and no quota.
    """
    count = min(_MOST_THREADS, math.ceil(quota.cpus) + _SPARE_THREADS)
    return Advice(count, f"{_plural(count, 'thread')}: {quota.reason}")


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _counted(cpus: float) -> str:
    shown = f"{cpus:.3g}"
    return "1 CPU" if shown == "1" else f"{shown} CPUs"
