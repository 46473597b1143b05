"""Our errors, as programs of redis-py expect them: each is a `redis.exceptions.TimeoutError` too.

So `except redis.TimeoutError` goes on to work. That redis-py would try again for such an error is
seen to in `retrying`.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, OutcomeUnknown
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.shares import Phase
from holdfast.runtime.bounded import Bounded
from holdfast.runtime.outbound import both
from holdfast.runtime.scope import ambient

__all__ = ["Command", "Late", "admitted", "mark_sent", "named", "sent_by", "unsent"]


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
_OF_TWO_WORDS: Final = {
    "ACL",
    "CLIENT",
    "CLUSTER",
    "COMMAND",
    "CONFIG",
    "DEBUG",
    "FUNCTION",
    "LATENCY",
    "MEMORY",
    "MODULE",
    "OBJECT",
    "PUBSUB",
    "SCRIPT",
    "SENTINEL",
    "SLOWLOG",
    "XGROUP",
    "XINFO",
}
_SENT: Final = "holdfast_sent"


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
    """A command as it is called in errors, without its arguments: they may be secret.

    redis-py takes commands that are written in one piece, as `AUTH default secret`.
    """
    if isinstance(command, bytes):
        command = command.decode("ascii", "replace")
    words = str(command).split(None, 2)
    count = 2 if words and words[0].upper() in _OF_TWO_WORDS else 1
    return " ".join(words[:count])[:_LONGEST_NAME]


def admitted(name: Any, needed: Duration) -> Instant | None:
    """Refuse when too little is left. The instant of now where there is a deadline.

    Raises:
        InsufficientBudget: nothing was sent.
    """
    here = ambient()
    if here is None or here.limit == NEVER:
        return None
    now = here.driver.now()
    left = here.limit - now
    if left <= 0 or left < needed:
        Command(named(name)).admit(needed)
    return now


def mark_sent(error: Exception, name: Any, begun: Instant) -> None:
    """Note with an error that a command, which began at `begun`, had been handed over before it."""
    command = Command(named(name))
    command.begun = min(command.begun, begun)
    error.__dict__[_SENT] = command


def sent_by(error: Exception) -> Command | None:
    """The command that had been handed over when `error` came; see `mark_sent`."""
    found: Command | None = error.__dict__.get(_SENT)
    return found


def unsent(error: OSError) -> RedisError:
    """What redis-py raises for an error of the socket."""
    if isinstance(error, TimeoutError):
        return RedisTimeout("Timeout writing to socket")
    return RedisConnectionError(f"Error while writing to socket. {error}.")
