"""Who asks name servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from holdfast.domain.discovery.names import Answer

__all__ = ["Done", "Lookup"]

Done: TypeAlias = Callable[["Answer | OSError"], None]
"""Is told how a question ended; an `OSError` (`gaierror`) when nobody answered."""


class Lookup(Protocol):
    """Asks for the addresses of names. Is used from any thread, and answers in any thread."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types that are asked for, `A` and `AAAA`, or `ADDRESS` for both at once."""
        ...

    @property
    def asks(self) -> str:
        """Who is asked, for people: the addresses of servers, or the name of a function. Cheap."""
        ...

    def start(self, name: str, kind: str, done: Done) -> None:
        """Ask for `name`, which no search domain is to be put behind if it ends in a dot.

        Does not wait. `done` is called once, however long that takes, with an answer or with why
        there is none. An implementation asks for no longer than it sees fit.
        """
        ...

    def close(self) -> None:
        """Let go of what is idle: threads, sockets. It may be used again afterwards."""
        ...
