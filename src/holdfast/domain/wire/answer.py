"""What a request that ended early is answered with, whatever the server."""

from __future__ import annotations

import json
import math
from typing import Final, NamedTuple

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Identity
from holdfast.domain.instant import Duration
from holdfast.domain.wire.problem import (
    CAUSE_HEADER,
    PROBLEM_TYPE,
    encode_cause_header,
    problem,
    problem_type,
)

__all__ = ["Answer", "answer_to", "retry_after", "status_of", "title_of"]

_TITLES: Final = {
    504: "The deadline of the request is spent",
    503: "The service cannot do this now",
}
_DETAILS: Final = {
    504: "It was not done in the time that there was.",
    503: "It was ended before it was done.",
}


class Answer(NamedTuple):
    """A response that says why there is no better one (RFC 9457).

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: a problem document.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def status_of(cause: Cause) -> int:
    """The HTTP status for `cause`; 499 is for logs only, there is nobody to send it to."""
    if cause.kind is CauseKind.DEADLINE:
        return 504
    return 499 if cause.kind is CauseKind.DISCONNECT else 503


def title_of(cause: Cause) -> str:
    """What may be told to anybody: no name, no number."""
    return _TITLES[_told_as(cause)]


def _told_as(cause: Cause) -> int:
    return 504 if cause.kind is CauseKind.DEADLINE else 503


def retry_after(seconds: Duration) -> bytes:
    """Value of `Retry-After`, which knows whole seconds only: at least one."""
    return b"%d" % max(1, math.ceil(seconds))


def answer_to(
    cause: Cause, identity: Identity, timing: bytes, *, spent: bool, details: bool, retry: bytes
) -> Answer:
    """The answer to a request that `cause` ended.

    Args:
        cause: what ended the request.
        identity: who it was.
        timing: value of `Server-Timing`.
        spent: whether the budget of the caller is spent, so that another try is in vain.
        details: whether it may say which hops and scopes spent how much time.
        retry: value of `Retry-After` where another try may succeed.
    """
    status = status_of(cause)
    body = _body(cause, status, identity.echo_id, details)
    headers = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if details:
        headers.append((b"server-timing", timing))
    if spent:
        # Its presence tells the caller that to try again is in vain.
        value = encode_cause_header(cause).encode("latin-1") if details else b"1"
        headers.append((CAUSE_HEADER.encode(), value))
    if status == 503:
        headers.append((b"retry-after", retry))
    if identity:
        headers.append((b"x-request-id", identity.echo_id.encode("latin-1")))
    return Answer(status, headers, body)


def _body(cause: Cause, status: int, request_id: str, details: bool) -> bytes:
    title = title_of(cause)
    if details:
        return problem(cause, status=status, title=title, request_id=request_id)
    members = {
        "type": problem_type(cause.kind),
        "title": title,
        "status": status,
        "detail": _DETAILS[_told_as(cause)],
        "request_id": request_id,
    }
    return json.dumps(members, ensure_ascii=False).encode()
