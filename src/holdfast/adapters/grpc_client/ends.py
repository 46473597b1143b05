"""What a server says of the end of a call, and what is raised for it, with and without asyncio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import grpc

from holdfast.adapters.grpc_client.outward import Attempt, rounded
from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Ended
from holdfast.domain.wire.problem import CAUSE_HEADER, parse_cause_header
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status, printable, status_names
from holdfast.domain.wire.timing import TIMING_HEADER, parse_timing
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.outbound import Call

__all__ = ["EARLY", "came", "judged", "late", "note_times"]

EARLY: Final[Duration] = 0.005
"""Seconds that grpc may be ahead of the deadline that it was given: it goes by the wall clock."""

_LONGEST_TEXT: Final = 200
_FROM_CORE: Final = "Internal error from Core"


def late(rpc: Attempt, exc: Any, now: Instant) -> bool:
    """Whether an error of grpc at `now` is the end of the ambient limit, not the caller's own."""
    left = rounded(rpc.left - rpc.kept)
    own = NEVER if rpc.own is None else rpc.own
    return left <= own and rpc.begun + left - EARLY <= now and _by_time(rpc, exc)


def _late_for_caller(rpc: Attempt, exc: Any, now: Instant) -> bool:
    own = rpc.own
    return own is not None and rpc.begun + own - EARLY <= now and _by_time(rpc, exc)


def judged(rpc: Attempt, exc: Any, detail: str, *, over: bool) -> Exception:
    """What is raised for an error of grpc, with which the record of the call ends.

    Args:
        rpc: the call.
        exc: of grpc.
        detail: of the record; what the server says without one.
        over: whether it is the end of the ambient limit, see `late`.
    """
    call, trail, now = rpc.call, rpc.call.trail, rpc.call.now()
    below = _said_below(rpc, exc.trailing_metadata())
    if over:
        trail.end(now, Ended.TIMEOUT, detail)
        return call.over()
    over = _late_for_caller(rpc, exc, now)
    ended = Ended.TIMEOUT if over else Ended.CANCELLED if rpc.asked else Ended.FAILED
    trail.end(now, ended, detail or _spoken(exc))
    exc.add_note(trail.line())
    if below is not None:
        exc.add_note(f"the server said: {below.line()}")
    if over:
        exc.trail = trail
    error = None if over else _hop_error(call, exc, below)
    if error is None:
        found: Exception = exc
        return found
    error.__cause__ = exc
    return error


def _by_time(rpc: Attempt, exc: Any) -> bool:
    """Whether an error of grpc, where the time is over, says no more than that.

    grpc tells of its end in more than one way, where that comes while a request is on its way.
    """
    code = exc.code()
    if code is grpc.StatusCode.CANCELLED:
        return not rpc.asked
    if code is grpc.StatusCode.INTERNAL:
        return str(exc.details()).startswith(_FROM_CORE)
    return code is grpc.StatusCode.DEADLINE_EXCEEDED


def came(count: int) -> str:
    """How many messages of a stream came, for its record; nothing for none."""
    if not count:
        return ""
    return "1 message came" if count == 1 else f"{count} messages came"


def _said_below(rpc: Attempt, metadata: Iterable[Any] | None) -> Cause | None:
    """The cause that a server tells in its trailing metadata, in full before in one line.

    It is noted for whoever answers the request that the call was made for.
    """
    cause: Cause | None = None
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            cause = parse_status(value) or cause
        elif key == CAUSE_HEADER and isinstance(value, str) and cause is None:
            cause = parse_cause_header(value)
    if cause is not None and not cause.hop:
        cause = replace(cause, hop=rpc.line.hop)
    ledger = rpc.ledger
    if ledger is not None:
        note_times(ledger, metadata)
        if cause is not None:
            ledger.blame(cause)
    return cause


def note_times(ledger: Ledger, metadata: Iterable[Any] | None) -> None:
    """Note what a server says that it has spent."""
    for key, value in metadata or ():
        if key == TIMING_HEADER and isinstance(value, str):
            for entry in parse_timing(value):
                if entry.seconds is not None:
                    ledger.note(entry.name, entry.seconds)


def _spoken(error: Any) -> str:
    """The status of an error, its text, and what the server calls it, in one short line."""
    text = printable(f"{error.code().name}: {error.details() or ''}", _LONGEST_TEXT)
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            names = ", ".join(status_names(value))[:_LONGEST_TEXT]
            return f"{text} ({names})" if names else text
    return text


def _hop_error(call: Call, error: Any, cause: Cause | None) -> DeadlineExceeded | None:
    """What is raised where a server says that what it was given is spent; none elsewhere.

    The header says so. A server that has ended a call by a limit of its own tells its cause alone:
    there is time left, and another try may be worth it.
    """
    options = call.outbound.options
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or not options.raise_for_deadline:
        return None
    if not any(key == CAUSE_HEADER for key, _ in error.trailing_metadata() or ()):
        return None
    below = () if cause is None else (cause,)
    found = call.exceeded(call.cause("the server answered that its deadline is spent", *below))
    found.trail = call.trail
    return found
