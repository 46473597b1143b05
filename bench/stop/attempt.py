"""One server that cannot be measured must not cost the figures of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.stop.servers import Server

__all__ = ["Attempts"]


class Attempts:
    """What was measured, and which servers failed.

    A server that has failed is not tried again. The failures are told in the notes of the table.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}

    def __call__(self, server: Server, measure: Callable[[], dict[str, Any]]) -> None:
        if server.name in self.failed:
            return
        try:
            self.found.append(measure())
        except (RuntimeError, OSError, ValueError) as error:
            self.failed[server.name] = f"{type(error).__name__}: {error}"

    def notes(self) -> list[str]:
        """One for each failure; the last line of what it said."""
        lines = {name: said.strip().splitlines() for name, said in self.failed.items()}
        return [f"**{name} failed**: {said[0]} ... {said[-1]}" for name, said in lines.items()]
