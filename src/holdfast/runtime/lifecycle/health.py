"""Whether the process lives, and whether to send requests here.

Rule 1. Alive is whoever answers: that depends on nothing.
Rule 2. Ready is whose host is, and whose critical checks pass. From the moment at which a stop
        begins it is unready, and nothing is checked any more.
Rule 3. A check never blocks the loop, and never another check: each has a time of its own, and a
        plain function runs in a thread of its own.
Rule 4. Whoever asks gets the last report while it is fresh, or waits for the refresh under way:
        there is one at a time, however many ask.
Rule 5. A check that did not end when its time was over is not begun again before it has.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from holdfast.domain.errors import ScopeEnded, UsageError
from holdfast.domain.instant import Duration, Instant, format_duration
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.lifecycle.shelter import why
from holdfast.runtime.tasks import aside, spawn

__all__ = ["CheckResult", "Health", "HealthReport", "Probe"]

Probe: TypeAlias = Callable[[], object] | Callable[[], Awaitable[object]]
"""Passes when it returns anything but `False`; fails when it raises. Plain ones run in a thread."""

_UNWINDING: Final[Duration] = 0.1
"""Seconds that a check which was cancelled may need to be seen as ended."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check said.

    Attributes:
        name: of the check.
        status: `up`, `down` (it failed), `late` (its time was over), or `stuck` (the one before has
            not ended yet, so that it was not begun).
        seconds: that it took.
        error: why it is not up, in one line.
        critical: whether the process is unready without it.
    """

    name: str
    status: str
    seconds: Duration
    error: str = ""
    critical: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "error": self.error,
            "critical": self.critical,
        }


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Whether the process is ready, and why not.

    Attributes:
        ready: whether to send requests here.
        why: why not, in one line; empty when it is ready.
        at: instant at which it was found out.
        checks: what each check said; empty when none was asked.
    """

    ready: bool
    why: str
    at: Instant
    checks: tuple[CheckResult, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "status": "ready" if self.ready else "unready",
            "why": self.why,
            "checks": {check.name: check.as_dict() for check in self.checks},
        }


@dataclass(slots=True)
class _Check:
    name: str
    probe: Probe
    timeout: Duration
    critical: bool
    under_way: asyncio.Future[Any] | Future[Any] | None = field(default=None)

    @property
    def stuck(self) -> bool:
        return self.under_way is not None and not self.under_way.done()


class Health:
    """The checks of one process.

    Args:
        gate: says why the process is not ready whatever the checks say; empty when it may be.
        cache: seconds for which a report is given again.
        timeout: seconds that a check may take which is added without a time of its own.
    """

    def __init__(
        self,
        *,
        gate: Callable[[], str] = str,
        cache: Duration = 1.0,
        timeout: Duration = 3.0,
    ) -> None:
        self.gate = gate
        self.cache = cache
        self.timeout = timeout
        self._checks: dict[str, _Check] = {}
        self._report: HealthReport | None = None
        self._refresh: asyncio.Task[HealthReport] | None = None

    def check(
        self,
        name: str,
        probe: Probe,
        *,
        timeout: Duration | None = None,
        critical: bool = True,
    ) -> None:
        """Add a check.

        Args:
            name: of what is looked at.
            probe: passes when it returns, and not `False`.
            timeout: seconds that it may take; what `self.timeout` says by default.
            critical: whether the process is unready while it fails; otherwise it is only told.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._checks:
            raise UsageError(f"there is a check '{name}' already")
        self._checks[name] = _Check(
            name, probe, self.timeout if timeout is None else timeout, critical
        )
        self._report = None

    def live(self) -> dict[str, Any]:
        """The process lives: it can answer."""
        return {"status": "alive"}

    async def ready(self) -> HealthReport:
        """Whether to send requests here; a report that is at most `cache` seconds old."""
        driver = driver_of(asyncio.get_running_loop())
        if closed := self._closed(driver):
            return closed
        report = self._report
        if report is not None and driver.now() < report.at + self.cache:
            return report
        if self._refresh is None or self._refresh.done():
            self._refresh = aside(self._look(driver), name="health")
        report = await asyncio.shield(self._refresh)
        return self._closed(driver) or report

    def _closed(self, driver: Driver) -> HealthReport | None:
        reason = self.gate()
        return HealthReport(False, reason, driver.now()) if reason else None

    async def _look(self, driver: Driver) -> HealthReport:
        checks = list(self._checks.values())
        tasks = {
            aside(self._ask(check, driver), name=f"check {check.name}"): check for check in checks
        }
        if tasks:
            await asyncio.wait(tasks)
        results = tuple(task.result() for task in tasks)
        bad = [f"{r.name} is {r.status}" for r in results if r.critical and r.status != "up"]
        report = HealthReport(not bad, ", ".join(bad), driver.now(), results)
        self._report = report
        return report

    async def _ask(self, check: _Check, driver: Driver) -> CheckResult:
        began = driver.now()

        def result(status: str, error: str = "") -> CheckResult:
            return CheckResult(check.name, status, driver.now() - began, error, check.critical)

        if check.stuck:
            return result("stuck", "the check before has not ended yet")
        if not check.timeout > 0:
            return result("late", "it has no time at all")
        try:
            task, _ = spawn(
                _probe(check, driver),
                name=f"check {check.name}",
                parent=driver.root,
                driver=driver,
                seconds=check.timeout,
                inside=True,
            )
        except ScopeEnded as error:
            return result("down", why(error))
        check.under_way = task  # a plain function puts its thread there
        await asyncio.wait([task], timeout=check.timeout + _UNWINDING)
        if not task.done():
            task.add_done_callback(_looked_at)
            return result("late", f"not done after {format_duration(check.timeout)}, nor ended")
        failed = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failed is None:
            return result("up") if task.result() is not False else result("down", "it said no")
        if isinstance(failed, TimeoutError | ScopeEnded) and driver.now() - began >= check.timeout:
            return result("late", f"not done after {format_duration(check.timeout)}")
        return result("down", why(failed))


async def _probe(check: _Check, driver: Driver) -> object:
    if inspect.iscoroutinefunction(check.probe):
        return await check.probe()
    threads = _OwnThread(f"check {check.name}")
    answer = driver.loop.run_in_executor(threads, check.probe)
    check.under_way = threads.call  # the thread goes on when its time is over
    found: Any = await answer
    return await found if inspect.isawaitable(found) else found


def _looked_at(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.exception()


class _OwnThread(Executor):
    """One thread for one call. A daemon: a check that hangs must not hold up the exit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.call: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`."""
        future: Future[Any] = Future()
        self.call = future

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future
