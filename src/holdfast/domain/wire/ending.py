"""How a request that a server serves has ended, and what it is called when that is told."""

from __future__ import annotations

from typing import Final, cast

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.wire.answer import title_of

__all__ = ["close_of", "ended_by", "is_late", "request_name"]

_LONGEST: Final = 128
_ROUNDING: Final[Duration] = 1e-6

# Codes of RFC 6455 and its registry: 1001 going away, 1012 service restart, 1013 try again later.
_GOING_AWAY: Final = 1001
_CODES: Final = {CauseKind.SHUTDOWN: 1012, CauseKind.OVERLOAD: 1013}
_LONGEST_REASON: Final = 120


def request_name(method: str, path: str) -> str:
    """Method and path, in the tree and in logs.

    Args:
        path: decoded, so a line break in it would be one in a log.
    """
    name = f"{method} {path}"[:_LONGEST]
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def ended_by(error: BaseException | None) -> Cause | None:
    """The cause in an error of ours, or in a group of nothing else."""
    if isinstance(error, ScopeEnded):
        return error.cause
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        causes = [ended_by(inner) for inner in group.exceptions]
        return causes[0] if all(causes) else None
    return None


def is_late(cause: Cause, end: Instant, now: Instant, kept: Duration) -> bool:
    """Whether what the caller gave is spent, so that another try is in vain for it.

    Not so where a cap of the policy or a scope of the handler was the limit. That it was the
    caller's is known before it is over: a hop below has less, and says first that it is spent.

    Args:
        cause: why the request has ended.
        end: the caller's deadline; infinite when it set none.
        now: when that is asked.
        kept: seconds before `end` that are for clean-up.
    """
    if end == NEVER or cause.kind is not CauseKind.DEADLINE:
        return False
    end -= kept
    limit = cause.at - cause.elapsed + cause.budget
    return abs(limit - end) < _ROUNDING or end - now <= _ROUNDING


def close_of(cause: Cause, details: bool) -> tuple[int, str]:
    """Code and reason with which a WebSocket is closed that `cause` has ended.

    Args:
        cause: why it has ended.
        details: whether the reason may name scopes and hops.
    """
    text = cause.line() if details else title_of(cause)
    reason = text.encode()[:_LONGEST_REASON].decode(errors="ignore")
    return _CODES.get(cause.kind, _GOING_AWAY), reason
