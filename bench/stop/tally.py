"""What a load saw, counted: which requests were lost, and where on which kind of connection."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

__all__ = ["LOST", "STALL", "Call", "tally"]

LOST: Final = {
    "reset": "the connection was reset",
    "eof": "it ended before the first byte of an answer",
    "part": "it ended within the answer",
    "silent": "no answer, and no end either",
}
"""How a request is lost."""

STALL: Final = 0.1
"""Seconds of waiting, beyond what the handler takes, from which on it counts as a stall."""


class Call(NamedTuple):
    """One request: bytes were sent on a connection that was up.

    Attributes:
        opened: when its connection was up.
        nth: answers that came on the connection before.
        sent: when it was sent.
        ended: when its answer was complete, or it was lost.
        how: `ok`, or a key of `LOST`.
        closes: the answer said `Connection: close`.
    """

    opened: float
    nth: int
    sent: float
    ended: float
    how: str
    status: int
    closes: bool


def tally(
    calls: Sequence[Call], terms: Sequence[float], refusals: Sequence[float]
) -> dict[str, Any]:
    """Counts of a run in which a server was told to stop at each instant of `terms`.

    Instants in the result are those of the clock of the calls.
    """
    first = terms[0] if terms else float("inf")
    lost = [call for call in calls if call.how != "ok"]
    fine = [call for call in calls if call.how == "ok"]
    late = [call for call in fine if call.sent >= first]
    before = [call for call in fine if call.sent < first]
    waits = sorted(call.ended - call.sent for call in fine)
    return {
        "calls": len(calls),
        "lost": len(lost),
        "lost_kept": sum(call.nth > 0 for call in lost),
        "lost_new": sum(call.nth == 0 for call in lost),
        "lost_in_flight": sum(_in_flight(call, terms) for call in lost),
        "lost_before": sum(call.ended < first for call in lost),
        "lost_how": dict(Counter(call.how for call in lost)),
        "lost_at": [round(call.ended - first, 4) for call in lost[:20]] if terms else [],
        "refused": len(refusals),
        "announced": sum(call.closes for call in fine if call.ended >= first),
        "late_kept": sum(call.nth > 0 for call in late),
        "late_new": sum(call.nth == 0 for call in late),
        "status": dict(Counter(call.status for call in fine)),
        "last_in_flight": max((call.ended for call in before if call.ended >= first), default=None),
        "last_answer": max((call.ended for call in fine), default=None),
        "median_wait": waits[len(waits) // 2] if waits else None,
        "longest_wait": waits[-1] if waits else None,
        "stalls": sum(wait > waits[len(waits) // 2] + STALL for wait in waits),
        "longest_silence": _silence([call.ended for call in fine]),
    }


def _in_flight(call: Call, terms: Sequence[float]) -> bool:
    """Whether a server was told to stop between the request and its end."""
    return bisect_right(terms, call.ended) > bisect_right(terms, call.sent)


def _silence(ends: Sequence[float]) -> float:
    """The longest time in which nobody had an answer."""
    ordered = sorted(ends)
    return max((b - a for a, b in pairwise(ordered)), default=0.0)
