"""What a request that ended early is answered with, as ASGI messages."""

from __future__ import annotations

from holdfast.adapters.asgi.types import Message
from holdfast.domain.cause import Cause
from holdfast.domain.context import Identity
from holdfast.domain.wire.answer import answer_to

__all__ = ["problem_messages"]


def problem_messages(
    cause: Cause, identity: Identity, timing: bytes, *, spent: bool, details: bool, retry: bytes
) -> tuple[Message, Message]:
    """The ASGI messages of the answer to a request; see `answer_to`."""
    answer = answer_to(cause, identity, timing, spent=spent, details=details, retry=retry)
    return (
        {"type": "http.response.start", "status": answer.status, "headers": answer.headers},
        {"type": "http.response.body", "body": answer.body},
    )
