"""What the kernel says about the limits of this process: control groups, version 1, 2 and both.

A process is in a group of each hierarchy (`/proc/self/cgroup`), a hierarchy is mounted somewhere
(`/proc/self/mountinfo`), and a group is limited by all those above it as well: every one from ours
up to the mount point is read, and the smallest limit counts. Above the mount point nothing can be
seen from inside of a container; what limits it is written at the mount point itself there.

What cannot be read or makes no sense is no limit: nothing here raises.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from holdfast.domain.lifecycle.quota import (
    Quota,
    cpus_of_v1,
    cpus_of_v2,
    memory_of,
    smallest,
)

__all__ = ["read_memory_limit", "read_quota"]

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_LARGEST: Final = 4 * 1024 * 1024
"""Characters of a file that are read; a machine with many containers has a long list of mounts."""


@dataclass(frozen=True, slots=True)
class _Mount:
    """A hierarchy: which part of it is mounted, where, and what it controls (empty for v2)."""

    root: str
    point: str
    controllers: frozenset[str]


def read_quota(root: Path = Path("/"), *, affinity: int = -1, machine: int = -1) -> Quota:
    """The processors that this process may use.

    Args:
        root: where `/proc` and `/sys` are; another one for tests.
        affinity: processors that it may run on; -1 to ask the kernel.
        machine: processors that there are; -1 to ask the kernel.
    """
    if affinity < 0:
        affinity = _affinity()
    if machine < 0:
        machine = os.cpu_count() or 0
    return smallest(_cpus(root), affinity, machine)


def read_memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process may use, together with its group; `None` for no limit.

    Args:
        root: where `/proc` and `/sys` are; another one for tests.
    """
    found: list[int] = []
    for version, group in _groups(root, "memory"):
        text = _text(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        try:
            limit = memory_of(text)
        except ValueError:
            continue
        if limit is not None:
            found.append(limit)
    return min(found, default=None)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this system
        return 0


def _cpus(root: Path) -> Iterator[tuple[float, str]]:
    for version, group in _groups(root, "cpu"):
        cpus = math.inf
        try:
            if version == 2:
                cpus = cpus_of_v2(_text(group / "cpu.max"))
            else:
                quota, period = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
                cpus = cpus_of_v1(_text(quota), _text(period))
        except ValueError:
            continue  # the root of a hierarchy has no such file
        yield cpus, "cgroup v2 cpu.max" if version == 2 else "cgroup v1 cpu.cfs_quota_us"


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The groups that limit this process, from the innermost outwards, each with its version."""
    mounts = tuple(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for mount in mounts:
            if controller in mount.controllers if version == 1 else not mount.controllers:
                for group in _upwards(mount, path):
                    yield version, root / group.lstrip("/")


def _upwards(mount: _Mount, path: str) -> Iterator[str]:
    """Directories of a group and of those above it, as far as they are mounted."""
    point = PurePosixPath(mount.point)
    group = PurePosixPath(path)
    try:
        below = group.relative_to(mount.root)
    except ValueError:
        below = PurePosixPath()  # it is elsewhere: what is mounted is all that we can see of it
    if ".." in below.parts:
        below = PurePosixPath()
    yield str(point / below)
    for above in below.parents:
        yield str(point / above)


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - cgroup cgroup rw,cpu,cpuacct
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset[str]()
        yield _Mount(_plain(fields[3]), _plain(fields[4]), controllers)


def _plain(field: str) -> str:
    """A path without the escapes of the kernel: `\\040` is a space."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST)
    except OSError:
        return ""
