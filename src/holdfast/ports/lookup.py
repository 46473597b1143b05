"""Who asks name servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from holdfast.domain.discovery.names import Answer

__all__ = ["Done", "Lookup"]

Done: TypeAlias = Callable[["Answer | OSError"], None]
"""Is told how a question ended; an `OSError` (`gaierror`) when nobody answered."""


class Lookup(Protocol):
    """Asks for the addresses of names. From any thread; answers come in any thread."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types that are asked for, `A` and `AAAA`, or `ADDRESS` for both at once."""
        ...

    @property
    def asks(self) -> str:
        """Who is asked, for people: the addresses of servers, or the name of a function."""
        ...

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        """Ask for `name`; `done` is called once. Call what is returned to give up."""
        ...
