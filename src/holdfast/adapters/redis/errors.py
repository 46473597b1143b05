"""Our errors, as programs of redis-py expect them: each is a `redis.exceptions.TimeoutError` too.

So `except redis.TimeoutError` goes on to work. That redis-py would try again for such an error is
seen to in `retrying`.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import TimeoutError as RedisTimeout

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, OutcomeUnknown
from holdfast.domain.instant import NEVER
from holdfast.domain.shares import Phase
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both

__all__ = ["Command", "Late", "named"]


class Late(RedisTimeout):
    """The part of our errors that is redis-py's, whose constructor they do not run."""

    error_type: Any = getattr(RedisTimeout(), "error_type", None)
    status_code: Any = None
    __repr__ = Exception.__repr__


_HOME: Final = "holdfast.adapters.redis"
_EXCEEDED: Final = both(DeadlineExceeded, Late, _HOME)
_INSUFFICIENT: Final = both(InsufficientBudget, Late, _HOME)
_UNKNOWN: Final = both(OutcomeUnknown, Late, _HOME)
_LONGEST_NAME: Final = 64


class Command(Bounded):
    """One command and its bounds, see `Bounded`."""

    __slots__ = ()
    client = "redis"
    phase = Phase.COMMAND

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        """See `Bounded`."""
        made: DeadlineExceeded = _EXCEEDED(cause)
        return made

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        """See `Bounded`."""
        made: InsufficientBudget = _INSUFFICIENT(cause)
        return made

    def unknown(self, detail: str) -> OutcomeUnknown:
        """The error for a transaction that was sent whole, and whose answer never came."""
        here = self.here
        reached = None if here is None else here.reached()
        if reached is not None:
            kind = reached.kind
        else:
            kind = CauseKind.DEADLINE if self.limit <= self.now() else CauseKind.CALLER
        made: OutcomeUnknown = _UNKNOWN(self.cause(detail, kind=kind))
        return made

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.limit != NEVER and self.limit <= self.now()


def named(command: Any) -> str:
    """A command as it is called in errors, without its arguments."""
    if isinstance(command, bytes):
        command = command.decode("ascii", "replace")
    return str(command)[:_LONGEST_NAME]
