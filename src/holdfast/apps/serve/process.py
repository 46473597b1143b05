"""One process that serves: its parts put together, from the application to the signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from holdfast.adapters.uvicorn import Settings, UvicornApplication, UvicornServer
from holdfast.apps.serve.hosted import Hosted, drain_limit
from holdfast.apps.serve.operator import Operator, pages
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.policyfile import PolicyFile
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.target import load_target
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.domain.policy import describe
from holdfast.runtime.clock import monotonic

__all__ = ["ServiceProcess"]
_log = logging.getLogger("holdfast.serve")


class ServiceProcess:
    def __init__(
        self,
        plan: Plan,
        file: PolicyFile,
        sock: socket.socket,
        url: str,
        ready: Callable[[], None] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.plan, self.file, self.url, self._ready = plan, file, url, ready
        self.sock, self.shared = sock, shared

    def run(self, *_: Any) -> int:
        try:
            import uvloop

            factory: Any = uvloop.new_event_loop
        except ImportError:
            factory = None
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(self._live())

    async def _live(self) -> int:
        loop = asyncio.get_running_loop()
        hosted = Hosted(
            load_target(self.plan.target, factory=self.plan.factory), self.plan.policy()
        )
        self.hosted = hosted
        settings = Settings(hosted, hosted, access_log=self.plan.access_log)
        application = UvicornApplication(settings)
        stop: StopSettings = self.file.lifecycle.stop
        server = UvicornServer(
            settings,
            application,
            [self.sock],
            lambda: DrainTerms(calm=stop.calm, quiet=stop.quiet, most=8.0),
            lambda kind, subject, detail="", **data: _log.info("%s %s %s", kind, subject, detail),
            shared=self.shared,
        )
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(
                number, lambda: server.hurry() if asked.is_set() else asked.set()
            )
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        operator = Operator(pages(self._about, lambda: describe(hosted.file.policy), hosted.counts))
        if self.plan.admin:
            await operator.start()
        await application.start()
        await server.start()
        if self._ready:
            self._ready()
        await asked.wait()
        await server.stop(monotonic() + drain_limit(hosted.file.policy))
        await application.stop(0.0)
        operator.close()
        return 0

    def _reload(self) -> None:
        try:
            self.hosted.use(self.plan.read())
        except ServeError as error:
            _log.error("the policy was not changed, the old one holds: %s", error)
            return
        _log.info("the policy was read again\n%s", describe(self.hosted.file.policy))

    def _about(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "parent": 0,
            "service": self.hosted.file.policy.service,
            "target": self.plan.target,
            "url": self.url,
            "mode": self.hosted.file.policy.mode,
        }
