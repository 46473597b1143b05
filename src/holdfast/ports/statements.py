"""Connections of database drivers that keep deadlines by themselves."""

from __future__ import annotations

from typing import Protocol

__all__ = ["BoundsStatements"]


class BoundsStatements(Protocol):
    """A connection of a driver, in the hands of a pool or a toolkit of another library.

    Attributes:
        bounds_statements: true: it tells its server the time that a statement has, and ends it
            there when it is cancelled. Nobody else need do it, then.
    """

    bounds_statements: bool
