"""What a call that ended early is answered with: status, text, and metadata that say why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
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

# A client refuses an answer whose metadata are more than 8 KiB, and then nobody learns why: what
# is said here, what the handler has set included, is kept to less than that, as it is encoded.
_MOST: Final = 6144
_MESSAGE: Final = 768
_HEADER: Final = 1536
_ENTRY: Final = 32
"""Bytes that an entry counts for besides its name and value (RFC 9113, section 6.5.2)."""
_ELLIPSIS: Final = "..."

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
    message = _cut("".join(c if c.isprintable() else "?" for c in text))
    told = cause if details else Cause(cause.kind, "")
    found: list[tuple[str, str | bytes]] = [*theirs, *trailers(rpc, now)]
    left = _MOST - _size(found) - _encoded(message)
    if rpc.is_late(cause, now):
        # Its presence tells the caller that to try again is in vain.
        entry = (CAUSE_HEADER, _header(cause, min(_HEADER, left // 3)) if details else "1")
        left -= _size([entry])
        found.append(entry)
    for status in _shorter(code, message, told):
        if _size([(DETAILS_KEY, status)]) <= left:
            found.append((DETAILS_KEY, status))
            break
    return Answer(code, message, tuple(found))


def _size(metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """Bytes on the wire, where those of a binary value are written in base64."""
    return sum(
        _ENTRY + len(key) + (len(value) if isinstance(value, str) else (len(value) + 2) // 3 * 4)
        for key, value in metadata
    )


def _encoded(text: str) -> int:
    """Bytes of a message on the wire: gRPC writes all but printable ASCII as `%E8`."""
    return sum(
        1 if " " <= c <= "~" and c != "%" else 3 * len(c.encode("utf-8", "replace")) for c in text
    )


def _cut(text: str) -> str:
    if len(text) <= _MESSAGE and _encoded(text) <= _MESSAGE:
        return text
    left = _MESSAGE - len(_ELLIPSIS)
    for at, char in enumerate(text):
        left -= _encoded(char)
        if left < 0:
            return text[:at] + _ELLIPSIS
    return text


def _header(cause: Cause, most: int) -> str:
    """The cause for the header, with as many of the hops below as there is room for."""
    said = encode_cause_header(cause)
    while len(said) > most and ", " in said:
        said = said.rpartition(", ")[0]
    if len(said) <= most:
        return said
    short = encode_cause_header(replace(cause, scope="", detail="", below=()))
    return short if len(short) <= most else "1"


def _shorter(code: grpc.StatusCode, message: str, cause: Cause) -> Iterator[bytes]:
    """The rich status, and what may stand for it where it is too long."""
    number: int = code.value[0]
    yield encode_status(number, message, cause)
    yield encode_status(number, message, replace(cause, below=()))
    yield encode_status(number, message, replace(cause, scope="", detail="", below=()))
    yield encode_status(number, message, Cause(cause.kind, ""))


def trailers(rpc: Rpc, now: Instant) -> Metadata:
    """What the answer to a call that ended early says: which it was, and what it spent."""
    return ((REQUEST_ID_HEADER, rpc.echo_id), *timing_of(rpc, now))


def timing_of(rpc: Rpc, now: Instant) -> Metadata:
    """What it spent; nothing where that is not told."""
    spent = rpc.timing(now)
    return ((TIMING_HEADER, spent),) if spent else ()
