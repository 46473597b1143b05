"""A probe that the health service of gRPC follows.

    health = grpc_health.v1.health.aio.HealthServicer()
    host.add("health", GrpcHealthFeed(health, database.ping, services=("", "shop.Orders")))

What the service says is what the last probe found: SERVING when it passed, NOT_SERVING when it
failed, or was not done in time. When the stop begins it is NOT_SERVING, and stays so. A service
that fails to take that up is told again after the next probe, until it has.
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
        timeout: seconds that a probe may take, where it is no `Health`, whose checks have their
            own; and that the service and the observer have each time for hearing of it.
        observer: is told at first and of every change, for example to have a registration follow
            the same probe. May be a coroutine function. It is told in a task of its own, always of
            the latest: when it raises, or is late, that is logged and it is told again after
            `every` seconds. So it may hear of one state twice.

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
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._to_tell: HealthReport | None = None  # what the observer has not heard
        self._again: Bell | None = None
        self._said: dict[str, int] = {}
        self._stopping = False
        self._last: HealthReport | None = None
        self._one = asyncio.Lock()

    async def start(self) -> None:
        """Look for the first time, and go on with that."""
        await self._look()
        self._task = aside(self._follow(), name="holdfast grpc health")

    async def prepare(self, request: ShutdownRequest) -> None:
        """NOT_SERVING from now on. Does not wait for the observer."""
        await self._end("the process stops")

    async def stop(self, deadline: Instant) -> None:
        """The last look is over; the observer has until `deadline` to hear of the end."""
        await self._end("the process stops")
        telling, self._telling = self._telling, None
        if telling is not None and not telling.done():
            left = min(self._timeout, deadline - _now())
            await asyncio.wait([telling], timeout=max(0.0, left))
        for task in (telling, self._task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._task = None

    async def wait(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()

    async def _follow(self) -> None:
        while not self._stopping:
            await Bell().wait(_now() + self._every)
            try:
                await self._look()
            except Exception:  # of the health service; it is told again after the next look
                _log.exception("the health feed failed")

    async def _look(self) -> None:
        await self._found(await self._health.ready())

    async def _end(self, why: str) -> None:
        if self._last is None:
            self._last = HealthReport(False, why, _now())
        self._stopping = True
        if self._again is not None:
            self._again.ring()
        try:
            await self._found(self._last)
        except Exception:  # of the health service; a stop is not held up by it
            _log.exception("the health feed failed")

    async def _found(self, report: HealthReport) -> None:
        async with self._one:
            if self._stopping and report is not self._last:
                return  # found out before the stop began
            before, self.report = self.report, report
            changed = before is None or before.ready != report.ready
            if changed and not report.ready:
                _log.warning("the health service of gRPC says NOT_SERVING: %s", report.why)
            if changed:
                self._to_tell = report
            self._begin_telling()
            await self._say(_SERVING if report.ready else _NOT_SERVING)

    async def _say(self, status: int) -> None:
        """Tell the service what it does not say yet; raises its last error, when all were tried."""
        failed: Exception | None = None
        for service in self._services:
            if self._said.get(service) == status:
                continue
            self._said.pop(service, None)  # one that fails may have been understood
            try:
                async with asyncio.timeout(self._timeout):
                    await _done(self._service.set(service, status))
            except Exception as error:  # raised below
                failed = error
            else:
                self._said[service] = status
        if failed is not None:
            raise failed

    def _begin_telling(self) -> None:
        """Have the observer told, in a task of its own: nobody waits for it."""
        if self._observer is None or self._to_tell is None:
            return
        if self._telling is None or self._telling.done():
            self._telling = aside(self._tell(self._observer), name="holdfast grpc health observer")

    async def _tell(self, observer: Callable[[HealthReport], object]) -> None:
        """Tell the observer the latest, until it has heard that."""
        while (report := self._to_tell) is not None:
            try:
                async with asyncio.timeout(self._timeout):
                    await _done(observer(report))
            except Exception:  # its own; it is told again
                _log.exception("the observer of the health feed failed")
                if self._stopping:
                    if self._to_tell is report:
                        return
                    continue
                self._again = Bell()
                await self._again.wait(_now() + self._every)
            else:
                if self._to_tell is report:
                    self._to_tell = None


def _now() -> Instant:
    return driver_of(asyncio.get_running_loop()).now()


async def _done(result: object) -> None:
    if inspect.isawaitable(result):
        await result
