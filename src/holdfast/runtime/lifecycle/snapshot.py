"""How a process was when it ended: one plain table for the record `process.snapshot`."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import threading
from collections import Counter
from typing import Any, Final

from holdfast.domain.instant import Instant
from holdfast.domain.tree import Node
from holdfast.runtime.driver import Driver

__all__ = ["snapshot"]

_KIB: Final = 1024
_STATM: Final = "/proc/self/statm"
_FDS: Final = "/proc/self/fd"
_THREADS: Final = "/proc/self/task"


def snapshot(driver: Driver, requests: Counter[str], began: Instant) -> dict[str, Any]:
    """What the process is made of now. Never raises; what the system does not tell is `None`.

    The keys: `uptime_s`; `requests` as they were counted by whoever serves; `cancelled` by kind of
    cause; `swallowed` (cancellations that did not end their scope), `escaped` (scopes that
    outlived their parent) and `leaked` (scopes that are open now); `gc` with collections,
    collected and uncollectable objects by generation; `memory` in bytes; `tasks` of this loop that
    are not done, `threads` and `fds` of the process.
    """
    counts = driver.counts
    prefix = "cancelled."
    return {
        "uptime_s": round(driver.now() - began, 6),
        "requests": dict(requests),
        "cancelled": {
            kind.removeprefix(prefix): n for kind, n in counts.items() if kind.startswith(prefix)
        },
        "swallowed": counts["swallowed"],
        "escaped": counts["escaped"],
        "leaked": _open_below(driver.root),
        "gc": {
            "collections": [each["collections"] for each in gc.get_stats()],
            "collected": [each["collected"] for each in gc.get_stats()],
            "uncollectable": [each["uncollectable"] for each in gc.get_stats()],
            "pending": list(gc.get_count()),
        },
        "memory": {"rss": _rss(), "peak": _peak()},
        "tasks": len(asyncio.all_tasks(driver.loop)),
        "threads": _entries(_THREADS) or threading.active_count(),
        "fds": _entries(_FDS),
    }


def _open_below(root: Node) -> int:
    found, stack = 0, list(root.children or ())
    while stack:
        node = stack.pop()
        found += not node.shielded
        stack.extend(node.children or ())
    return found


def _rss() -> int | None:
    try:
        with open(_STATM, encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no /proc here
        return None


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB


def _entries(path: str) -> int | None:
    try:
        return len(os.listdir(path))
    except OSError:
        return None
