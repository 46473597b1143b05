"""A probe that the health service of gRPC follows.

    health = grpc_health.v1.health.aio.HealthServicer()
    host.add("health", GrpcHealthFeed(health, database.ping, services=("", "shop.Orders")))

What the service says is what the last probe found: SERVING when it passed, NOT_SERVING when it
failed, or was not done in time. When the stop begins it is NOT_SERVING, and stays so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle.health import Health, HealthReport, Probe
from holdfast.runtime.tasks import aside

__all__ = ["GrpcHealthFeed", "GrpcHealthStatus"]

_log: Final = logging.getLogger("holdfast.grpc")

# As they are in grpc.health.v1.
_SERVING: Final = 1
_NOT_SERVING: Final = 2


class GrpcHealthStatus(Protocol):
    """As much of `HealthServicer` as is needed, of `grpc_health.v1.health` or of its `aio`."""

    def set(self, service: str, status: Any) -> Any:
        """Say from now on that `service` is in `status`."""
        ...


class GrpcHealthFeed:
    """A component that looks every few seconds, and says what it saw to a health service.

    Args:
        health: the service.
        probe: passes when it returns anything but `False`, fails when it raises; a plain function
            runs in a thread. Or a `holdfast.lifecycle.Health` with checks of its own, for example
            that of the host.
        services: what is spoken for; the empty name is the server as a whole.
        every: seconds between the end of a probe and the next.
        timeout: seconds that a probe may take. Not for a `Health`, whose checks have their own.
        observer: is told at first and of every change, for example to have a registration follow
            the same probe. May be a coroutine function. What it raises is logged.

    Raises:
        UsageError: `every` or `timeout` is not positive.

    Attributes:
        report: of the last probe; none before the first.
    """

    def __init__(
        self,
        health: GrpcHealthStatus,
        probe: Probe | Health,
        *,
        services: Sequence[str] = ("",),
        every: Duration = 5.0,
        timeout: Duration = 3.0,
        observer: Callable[[HealthReport], object] | None = None,
    ) -> None:
        if not (every > 0 and timeout > 0):
            raise UsageError("every and timeout of a health feed must be positive")
        self.report: HealthReport | None = None
        self._service = health
        self._services = tuple(services)
        self._every = every
        self._observer = observer
        if isinstance(probe, Health):
            self._health = probe
        else:
            self._health = Health(cache=0.0)
            self._health.check("probe", probe, timeout=timeout)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._one = asyncio.Lock()

    async def start(self) -> None:
        """Look for the first time, and go on with that."""
        await self._look()
        self._task = aside(self._follow(), name="holdfast grpc health")

    async def prepare(self, request: ShutdownRequest) -> None:
        """NOT_SERVING from now on."""
        await self._end("the process stops")

    async def stop(self, deadline: Instant) -> None:
        """The last look is over."""
        await self._end("the process stops")
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()

    async def _follow(self) -> None:
        now = driver_of(asyncio.get_running_loop()).now
        while not self._stopping:
            await Bell().wait(now() + self._every)
            try:
                await self._look()
            except Exception:  # of the health service; the next look may do better
                _log.exception("the health feed failed")

    async def _look(self) -> None:
        await self._found(await self._health.ready())

    async def _end(self, why: str) -> None:
        if not self._stopping:
            self._stopping = True
            now = driver_of(asyncio.get_running_loop()).now()
            await self._found(HealthReport(False, why, now))

    async def _found(self, report: HealthReport) -> None:
        async with self._one:
            if self._stopping and report.ready:
                return  # found out before the stop began
            before, self.report = self.report, report
            if before is None or before.ready != report.ready:
                await self._tell(report)

    async def _tell(self, report: HealthReport) -> None:
        if not report.ready:
            _log.warning("the health service of gRPC says NOT_SERVING: %s", report.why)
        status = _SERVING if report.ready else _NOT_SERVING
        for service in self._services:
            await _done(self._service.set(service, status))
        if self._observer is not None:
            try:
                await _done(self._observer(report))
            except Exception:
                _log.exception("the observer of the health feed failed")


async def _done(result: object) -> None:
    if inspect.isawaitable(result):
        await result
