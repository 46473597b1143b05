"""What a call that ended early is answered with: status, text, and metadata that say why."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import grpc

from holdfast.adapters.grpc_server.rpc import Rpc
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Instant
from holdfast.domain.wire.problem import CAUSE_HEADER, encode_cause_header
from holdfast.domain.wire.richstatus import DETAILS_KEY, encode_status
from holdfast.domain.wire.timing import TIMING_HEADER
from holdfast.domain.wire.trace import REQUEST_ID_HEADER

__all__ = ["Answer", "answer_to", "code_of", "timing_of", "trailers"]

_CODES: Final = {
    CauseKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    CauseKind.SHUTDOWN: grpc.StatusCode.UNAVAILABLE,
    CauseKind.OVERLOAD: grpc.StatusCode.UNAVAILABLE,
    CauseKind.CHAOS: grpc.StatusCode.UNAVAILABLE,
}
_TITLES: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline of the call is spent",
    grpc.StatusCode.UNAVAILABLE: "the service cannot do this now",
    grpc.StatusCode.CANCELLED: "the call was ended before it was done",
}
_LONGEST: Final = 512

Metadata = tuple[tuple[str, str | bytes], ...]


class Answer(NamedTuple):
    """A status, and why."""

    code: grpc.StatusCode
    message: str
    trailers: Metadata


def code_of(cause: Cause) -> grpc.StatusCode:
    """The status for `cause`: UNAVAILABLE where another server may do it, else CANCELLED."""
    return _CODES.get(cause.kind, grpc.StatusCode.CANCELLED)


def answer_to(cause: Cause, rpc: Rpc, now: Instant, theirs: Any = ()) -> Answer:
    """The answer to a call that `cause` ended.

    Args:
        cause: what ended it.
        rpc: the call.
        now: monotonic instant.
        theirs: trailing metadata that the handler has set.
    """
    details = rpc.terms.details
    if rpc.ledger.below and not cause.below:
        cause = cause.with_below(*rpc.ledger.below)
    code = code_of(cause)
    text = cause.line() if details else _TITLES[code]
    message = "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])
    told = cause if details else Cause(cause.kind, "")
    found: list[tuple[str, str | bytes]] = list(theirs)
    if rpc.is_late(cause, now):
        # Its presence tells the caller that to try again is in vain.
        found.append((CAUSE_HEADER, encode_cause_header(cause) if details else "1"))
    number: int = code.value[0]
    found.append((DETAILS_KEY, encode_status(number, message, told)))
    found += trailers(rpc, now)
    return Answer(code, message, tuple(found))


def trailers(rpc: Rpc, now: Instant) -> Metadata:
    """What the answer to a call that ended early says: which it was, and what it spent."""
    return ((REQUEST_ID_HEADER, rpc.echo_id), *timing_of(rpc, now))


def timing_of(rpc: Rpc, now: Instant) -> Metadata:
    """What it spent; nothing where that is not told."""
    spent = rpc.timing(now)
    return ((TIMING_HEADER, spent),) if spent else ()
