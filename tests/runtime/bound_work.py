"""What worker processes run; a module of its own, so that they can import it."""

from __future__ import annotations

import math
import time
from typing import Any

import holdfast
from holdfast.domain.context import Carried
from holdfast.runtime.ambient import carried


def look(sleep: float = 0.0) -> tuple[float, float, Carried, str]:
    """The clock, what is left, who it is, and where."""
    time.sleep(sleep)
    who = carried()
    plain = who._replace(baggage=dict(who.baggage))
    return time.monotonic(), holdfast.remaining(), plain, holdfast.current().scope


def until_nothing_is_left(patience: float = 10.0) -> float:
    """Asks until nothing is left; how long that took."""
    began = time.monotonic()
    while holdfast.remaining() and time.monotonic() < began + patience:
        time.sleep(0.002)
    return time.monotonic() - began


def send(queue: Any) -> None:
    """What `look` says, for a process that has no result."""
    _, left, who, scope = look()
    queue.put((None if left == math.inf else left, who, scope))


def add(a: int, b: int = 0) -> int:
    return a + b


def overrun(seconds: float) -> str:
    time.sleep(seconds)
    return "too late"
