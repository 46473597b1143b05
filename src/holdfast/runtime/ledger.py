"""What a request learnt from the hops below it: where its time went, and who said it was spent.

Client carriers write into the ledger of the request they work for; the server carrier reads it when
it answers. So adapters that do not know each other still tell one story.
"""

from __future__ import annotations

from typing import Final

from holdfast.domain.cause import Cause
from holdfast.domain.instant import Duration

__all__ = ["Ledger"]

_MOST_ENTRIES: Final = 32


class Ledger:
    """Bounded notes of one request.

    Attributes:
        spent: name of a hop, and seconds it spent, in the order in which answers came.
        below: causes that hops below reported.
    """

    __slots__ = ("below", "spent")

    def __init__(self) -> None:
        self.spent: list[tuple[str, Duration]] = []
        self.below: list[Cause] = []

    def note(self, hop: str, seconds: Duration) -> None:
        """A hop below spent `seconds`. Beyond 32 entries nothing more is kept."""
        if len(self.spent) < _MOST_ENTRIES:
            self.spent.append((hop, seconds))

    def blame(self, cause: Cause) -> None:
        """A hop below reported why it ended early. Beyond 32 entries nothing more is kept."""
        if len(self.below) < _MOST_ENTRIES:
            self.below.append(cause)
