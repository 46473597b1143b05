"""What the carrier was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.domain.instant import Duration

__all__ = ["KEEP", "MARGIN", "Settings"]

MARGIN: Final[Duration] = 0.12
"""Seconds. Redis looks for waiters whose time is over about ten times a second (`hz 10`) when it
has nothing else to do, so its answer may be 0.1 s late; the rest is for the way."""

KEEP: Final[Duration] = 1.0
"""Seconds. Measured with a server 5 ms away, a pool of ten and callers that leave after 0 to 30 ms:
of 2,000 calls about 1,500 are answered; where their connections are closed instead, fewer than 100,
as each new connection needs four answers before its first command, and is closed in the midst."""


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module.

    Attributes:
        refuse_below: seconds; a command with less left is refused before anything is sent.
        margin: seconds by which the time-out of a command that waits at the server is shorter than
            what is left.
        keep: seconds that the answer to a command which was cut may take to come, so that its
            connection is kept; 0.0 to close it at once.
    """

    refuse_below: Duration = 0.0
    margin: Duration = MARGIN
    keep: Duration = KEEP

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: a number of seconds is negative.
        """
        if not (self.refuse_below >= 0 and self.margin >= 0 and self.keep >= 0):
            raise ValueError("refuse_below, margin and keep must be zero or more seconds")
