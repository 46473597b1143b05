"""What a worker process does in the laws: it notes what it sees, and sends that back.

The clock is the same for all processes of a host, so its instants can be compared with ours.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any, Final

import holdfast
from holdfast import carry

ASKS_EVERY: Final = 0.005
SPACE: Final = "fork"

_notes: Any = None


def begin(notes: Any) -> None:
    """Initializer of a worker."""
    global _notes
    _notes = notes


def far_side(key: str, takes: float) -> str:
    """Takes its time and asks what is left, as work in a process has to."""
    here, _, rest = key.partition(">")
    seen = holdfast.current()
    carried = (seen.identity, seen.stage, dict(seen.baggage))
    # A number for each visit: the one who reads cannot tell two of one key apart otherwise.
    number = time.monotonic_ns()
    _notes.put(("began", here, number, time.monotonic(), holdfast.remaining(), carried))
    end = "failed"
    try:
        if rest:
            pass_on(rest, takes)
        else:
            wait(takes)
        end = "done"
    except holdfast.ScopeEnded:
        end = "cancelled"
        raise
    finally:
        _notes.put(("ended", here, number, time.monotonic(), end, None))
    return key


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        holdfast.refuse_below(1e-9)
        time.sleep(min(left, ASKS_EVERY))


def pass_on(rest: str, takes: float) -> None:
    """The next hop is a process of this one."""
    context: Any = multiprocessing.get_context(SPACE)
    hop = context.Process(target=carry.bind(far_side), args=(rest, takes))
    hop.start()
    hop.join()
    assert hop.exitcode == 0
