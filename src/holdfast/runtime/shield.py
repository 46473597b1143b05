"""The shield: a bounded time for clean-up, out of reach of the cancellation around it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.tree import Node
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import AMBIENT, Scope, ambient
from holdfast.runtime.shields import anyio_shield, shield_mark

__all__ = ["Shield", "let_come"]

_DELIVERY: Final[Duration] = 0.05
"""Seconds in which a cancellation that waited outside of a shield is delivered; it takes a turn."""


class Shield(Scope):
    """Clean-up that a cancellation around it does not reach for `wish` seconds.

    The grace runs from when the cancellation begins, or from the entry when that was before.
    """

    _inner: Any = None

    def __init__(self, name: str, grace: Duration) -> None:
        super().__init__(name, grace)
        self.special = True

    def enter(self, task: asyncio.Task[Any]) -> None:
        """See `Scope`; a shield is never refused."""
        if self.parent is not None:
            raise self.used_before()
        outer = AMBIENT.get()
        driver = driver_of(task.get_loop())
        driver.settle()
        self.driver, self.outer = driver, outer
        parent: Node = driver.root
        if outer is not None and outer.driver is driver:
            parent = outer.nearest_open()
        self.open_shield(parent, driver.now(), self.wish)
        self.settled = True
        self.task = task
        self.baseline = task.cancelling()
        self._inner = anyio_shield(task)
        self.mark = shield_mark(task)
        self._count(+1)
        if self.tightens:
            driver.timers.add(self, self.limit)
        AMBIENT.set(self)

    def leave(self, exc: BaseException | None) -> None:
        """See `Scope`; a cancellation that waited outside is delivered now."""
        self._count(-1)
        if self._inner is not None:
            self._inner.__exit__(None, None, None)
        super().leave(exc)

    def shorten(self, now: Instant) -> None:
        """A cancellation has begun outside: the grace runs from now."""
        if now + self.wish < self.limit:
            self.retime(now + self.wish, True)

    def follow(self) -> None:
        assert self.parent is not None
        if self.parent.reached() is None:
            self.retime(self.shield_limit(self.driver.now(), self.wish), True)
        for node in tuple(self.children or ()):
            if isinstance(node, Scope):
                node.follow()

    def _count(self, by: int) -> None:
        node = self.parent
        while isinstance(node, Scope) and node.task is self.task:
            node.shields += by
            node = node.parent


async def let_come() -> None:
    """Let a cancellation that waited outside of a shield come here, where one waits.

    For whoever is about to raise something that matters more than the cancellation, as that the
    outcome of a commit is unknown. Else it would come in the clean-up of its caller, and the error
    of the scope take the place of that.
    """
    here = ambient()
    if here is not None and here.reached() is not None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(_DELIVERY)
