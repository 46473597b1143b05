"""Connection pools, as far as a stop is concerned with them."""

from __future__ import annotations

from typing import Protocol

from holdfast.domain.instant import Duration

__all__ = ["Pool"]


class Pool(Protocol):
    """A pool of connections that are kept open between uses."""

    async def preclean(self, idle: Duration) -> int:
        """The process stops: close what is idle, and from now on close what is idle for `idle` s.

        What is in use stays in use. Returns how many connections were closed.
        """
        ...
