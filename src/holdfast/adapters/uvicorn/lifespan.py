"""uvicorn's lifespan, that can be broken off.

uvicorn runs it in a task of its own that it keeps to itself: when a start-up or a shutdown is given
up, the application would go on with it, and be told by the end of the loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from uvicorn.lifespan.on import LifespanOn

__all__ = ["BoundLifespan"]


class BoundLifespan(LifespanOn):
    """Whoever cancels `startup` or `shutdown` cancels the application's part of it."""

    _task: asyncio.Task[None] | None = None

    async def main(self) -> None:
        self._task = asyncio.current_task()
        await super().main()

    async def startup(self) -> None:
        await self._bound(super().startup)
        if not (self.error_occurred or self.startup_failed):
            # It knows the protocol. Of one that raises later, uvicorn would say that it does not.
            self.config.lifespan = "on"

    async def shutdown(self) -> None:
        await self._bound(super().shutdown)

    async def _bound(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except asyncio.CancelledError:
            # Else uvicorn takes the cancellation for an application that knows no lifespan.
            self.startup_failed = self.shutdown_failed = True
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            raise
