"""What becomes of a message when its handler has ended, or was never called.

Rule 1. Done is acknowledged, and nothing else is. What was cut goes back into the queue, first in
        line as it was: a stop loses nothing.
Rule 2. What expired, in the queue or in the hands of its handler, is not tried again: nobody waits.
Rule 3. What failed is tried again, at the end of the queue and a bounded number of times. Then it
        is refused, and goes where the queue sends its dead letters, if it has a place for them.
Rule 4. A message that was delivered too often without ever being settled has killed its consumers.
        It is refused unseen. Only queues that count deliveries (quorum queues) can tell.

The counts are headers, and headers go wherever a message goes: into the dead letters, from there to
another consumer, or back by hand. So a count of attempts says for which queue it is, and since
which death of the message there; and a count of deliveries is one of this queue only where it has
been delivered before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias, cast

__all__ = ["Ending", "Expired", "Verdict", "attempted", "attempts_of", "deliveries_of", "verdict"]

_ATTEMPTS: Final = "holdfast-attempts"
_PLACE: Final = "holdfast-attempts-of"
"""`DEATH@QUEUE`: where the attempts were made, and the last death there before them, if any."""
_DEATHS: Final = "x-death"
_DROPPED: Final = frozenset({"CC", "BCC", "x-delivery-count"})
"""Headers that would send a second copy elsewhere once more, or count what the copy has not had."""
_DELIVERIES: Final = "x-delivery-count"
_LONGEST: Final = 64

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


def attempts_of(headers: Mapping[str, object], queue: str) -> int:
    """How often the message failed at `queue`, since it was put there.

    Args:
        headers: of the message.
        queue: its name.
    """
    place = headers.get(_PLACE)
    then, _, where = place.partition("@") if isinstance(place, str) else ("", "", "")
    now = _last_death(headers, queue)
    if where != queue or (now and now != then):
        return 0  # of another queue; or it has died here since, and somebody has put it back
    return _count(headers.get(_ATTEMPTS))


def attempted(headers: Mapping[str, Any], queue: str, failed: int) -> dict[str, Any]:
    """The headers of a copy of the message for another attempt, after `failed` of them."""
    place = f"{_last_death(headers, queue)}@{queue}"
    kept = {name: value for name, value in headers.items() if name not in _DROPPED}
    return {**kept, _ATTEMPTS: failed, _PLACE: place}


def deliveries_of(
    headers: Mapping[str, object], arguments: object, redelivered: bool | None
) -> int:
    """How often the message was delivered before, where this queue counts that.

    Args:
        headers: of the message. Only a quorum queue writes the count; others hand on what a
            publisher has written, or the queue that it comes from.
        arguments: that the queue was declared with, as far as is known.
        redelivered: whether the broker says that it was delivered before.
    """
    kind: object = "quorum"
    if isinstance(arguments, Mapping):
        kind = cast("Mapping[str, object]", arguments).get("x-queue-type", kind)
    return _count(headers.get(_DELIVERIES)) if redelivered and kind == "quorum" else 0


def _last_death(headers: Mapping[str, object], queue: str) -> str:
    """How often and when the message became a dead letter of `queue`; empty when it never did."""
    deaths = headers.get(_DEATHS)
    if not isinstance(deaths, list):
        return ""
    for death in cast("Iterable[object]", deaths):  # the latest is the first
        if isinstance(death, Mapping):
            entry = cast("Mapping[str, object]", death)
            if entry.get("queue") == queue:
                return f"{entry.get('count')} {entry.get('time')}"[:_LONGEST]
    return ""


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
