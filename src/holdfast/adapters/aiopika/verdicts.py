"""What becomes of a message when its handler has ended, or was never called.

Rule 1. Done is acknowledged, and nothing else is. What was cut goes back into the queue, first in
        line as it was: a stop loses nothing.
Rule 2. What expired, in the queue or in the hands of its handler, is not tried again: nobody waits.
Rule 3. What failed is tried again, at the end of the queue and a bounded number of times. Then it
        is refused, and goes where the queue sends its dead letters, if it has a place for them.
Rule 4. A message that was delivered too often without ever being settled has killed its consumers.
        It is refused unseen. Only queues that count deliveries (quorum queues) can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal, TypeAlias

__all__ = ["ATTEMPTS_HEADER", "Ending", "Expired", "Verdict", "attempts_of", "verdict"]

ATTEMPTS_HEADER: Final = "holdfast-attempts"
_DELIVERIES: Final = "x-delivery-count"

Expired: TypeAlias = Literal["reject", "ack"]


class Ending(StrEnum):
    """How the handling of a message ended. The values are names of counters."""

    DONE = "done"
    EXPIRED = "expired"
    LATE = "late"
    FAILED = "failed"
    CUT = "cut"
    POISON = "poison"


class Verdict(StrEnum):
    """What the broker is told."""

    ACK = "ack"
    REQUEUE = "requeue"
    AGAIN = "again"
    REJECT = "reject"


def attempts_of(headers: Mapping[str, object]) -> tuple[int, int]:
    """How often the message failed, and how often it was delivered before, as far as is known."""
    return _count(headers.get(ATTEMPTS_HEADER)), _count(headers.get(_DELIVERIES))


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    return 0


def verdict(ending: Ending, failed: int, attempts: int, expired: Expired) -> Verdict:
    """What is done with a message.

    Args:
        ending: of this attempt.
        failed: attempts that failed before this one.
        attempts: how many there may be.
        expired: what becomes of what nobody waits for.
    """
    match ending:
        case Ending.DONE:
            return Verdict.ACK
        case Ending.CUT:
            return Verdict.REQUEUE
        case Ending.EXPIRED | Ending.LATE:
            return Verdict.ACK if expired == "ack" else Verdict.REJECT
        case Ending.FAILED if failed + 1 < attempts:
            return Verdict.AGAIN
        case _:
            return Verdict.REJECT
