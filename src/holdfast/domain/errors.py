"""Every error that Holdfast raises.

    HoldfastError
    +-- ScopeEnded                   carries `.cause`
    |   +-- DeadlineExceeded         also a TimeoutError: the limit of a scope is spent
    |   |   +-- InsufficientBudget   not begun: what is left cannot suffice
    |   +-- Cancelled                a scope was cancelled for another reason
    |   +-- OutcomeUnknown           cut where it may have been done: after a commit was sent
    +-- PhaseTimeout                 also a TimeoutError: a phase of a call has used up its share
    +-- StreamTimeout                also a TimeoutError: a deadline of a stream has passed
    +-- LimitExceeded                also a ValueError: more came than a reader may deliver
    +-- UsageError                   also a RuntimeError: the call itself is wrong
    +-- ConfigError                  also a ValueError: a setting is wrong, with its path

Cancellation while it travels is always `asyncio.CancelledError`, as the event loop demands; the
errors here appear where a scope ends, and only there.
"""

from __future__ import annotations

from holdfast.domain.cause import Cause
from holdfast.domain.phases import Phase, Trail

__all__ = [
    "Cancelled",
    "ConfigError",
    "DeadlineExceeded",
    "HoldfastError",
    "InsufficientBudget",
    "LimitExceeded",
    "OutcomeUnknown",
    "PhaseTimeout",
    "ScopeEnded",
    "StreamTimeout",
    "UsageError",
]


class HoldfastError(Exception):
    """Root of all errors that Holdfast raises."""


class ScopeEnded(HoldfastError):
    """A scope ended before its work did. `cause` says who, why, when and on which hop."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return self.cause.line()


class DeadlineExceeded(ScopeEnded, TimeoutError):
    """The limit of a scope is spent. A `TimeoutError`, so `except TimeoutError` sees it.

    Attributes:
        trail: record of the call over the network that was under way then; none when the time was
            not spent in one.
    """

    trail: Trail | None = None

    @property
    def phase(self) -> Phase | None:
        """The phase of that call in which the time ran out, `Phase.HEADER`; none without one."""
        return None if self.trail is None else self.trail.phase

    # OSError, a base of TimeoutError, has a __str__ of its own that comes first in C.
    def __str__(self) -> str:
        return self.cause.line()


class InsufficientBudget(DeadlineExceeded):
    """Work was refused before it began, because what is left of the limit cannot suffice."""


class Cancelled(ScopeEnded):
    """A scope was cancelled, and not by its deadline."""


class OutcomeUnknown(ScopeEnded):
    """Work was cut after it was handed over, and the answer never came: it may have been done.

    Of a transaction whose commit was sent, a message whose confirmation is missing, an `EXEC`.
    Never tried again by itself: whoever knows how to ask whether it was done can.
    """

    def __str__(self) -> str:
        return f"the outcome is unknown, it may have been done: {self.cause.line()}"


class PhaseTimeout(HoldfastError, TimeoutError):
    """A phase of a call has used up its share, while the whole has time left.

    So, unlike after a `DeadlineExceeded`, trying again can help.

    Attributes:
        trail: record of the call: what every phase took, and every address.
    """

    def __init__(self, trail: Trail) -> None:
        super().__init__(trail)
        self.trail = trail

    @property
    def phase(self) -> Phase | None:
        """The phase whose share is spent, for example `Phase.CONNECT`."""
        return self.trail.phase

    def __str__(self) -> str:
        return self.trail.line()


class StreamTimeout(HoldfastError, TimeoutError):
    """A deadline of a stream has passed. No byte is lost: with a later one it can be used again.

    Attributes:
        what: `read`, `write`, `lingering read`, `TLS handshake`, `read of at least N bytes/s`, or
            `forced break`; after the last the connection is gone.
        peer: the other side, for people.
        moved: bytes that this call had moved; of a read they come with the next one.
    """

    def __init__(self, what: str, peer: str, moved: int = 0) -> None:
        super().__init__(what, peer, moved)
        self.what = what
        self.peer = peer
        self.moved = moved

    def __str__(self) -> str:
        text = f"the deadline for a {self.what} has passed, peer {self.peer}"
        return f"{text}, {self.moved} bytes moved" if self.moved else text


class LimitExceeded(HoldfastError, ValueError):
    """More came than a reader was to deliver.

    Attributes:
        most: bytes that it delivers.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most

    def __str__(self) -> str:
        return f"there is more than the {self.most} bytes that are allowed"


class UsageError(HoldfastError, RuntimeError):
    """The call itself is wrong: a scope entered twice, used from another thread, and the like."""


class ConfigError(HoldfastError, ValueError):
    """A setting is wrong.

    Attributes:
        path: where the setting is, for example `timeouts.request`.
        problem: what is wrong with it and what to write instead.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem
