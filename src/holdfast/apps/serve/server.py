"""uvicorn's configuration, server and supervisor, as far as ours differ.

The seams used are not promised by uvicorn; `tests/apps/test_uvicorn_seams.py` pins each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, Final

from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE, Config
from uvicorn.server import HANDLED_SIGNALS, Server
from uvicorn.supervisors import multiprocess

from holdfast.apps.serve.hosted import Hosted, drain_limit
from holdfast.apps.serve.operator import Operator, pages
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.policyfile import PolicyFile
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.target import load_target
from holdfast.domain.policy import describe

__all__ = ["GuardedServer", "Settings", "Workers", "report"]

_log: Final = logging.getLogger("holdfast.serve")


def report(error: ServeError) -> None:
    """Tell whoever typed the command."""
    print(f"{error.trace}holdfast serve: {error}", file=sys.stderr, flush=True)


def _protocol() -> type[asyncio.Protocol]:
    try:
        import httptools  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        from holdfast.apps.serve.wire_h11 import GuardedH11

        return GuardedH11
    from holdfast.apps.serve.wire_httptools import GuardedHttpTools

    return GuardedHttpTools


def _logging() -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["holdfast"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config


class Settings(Config):
    """uvicorn's configuration, made from a plan. The application is loaded where it is served."""

    def __init__(self, plan: Plan, file: PolicyFile, url: str) -> None:
        self.plan = plan
        self.url = url
        self.hosted: Hosted | None = None
        super().__init__(
            plan.target,
            host=plan.host,
            port=plan.port,
            uds=plan.uds or None,
            http=_protocol(),
            interface="asgi3",
            workers=plan.workers,
            reload=plan.reload,
            access_log=plan.access_log,
            log_config=_logging(),
            timeout_graceful_shutdown=drain_limit(file.policy),
        )

    def load_app(self) -> Any:
        """The application under its policy."""
        app = load_target(self.plan.target, factory=self.plan.factory)
        self.hosted = Hosted(app, self.plan.policy())
        return self.hosted

    def use(self, file: PolicyFile) -> None:
        """Put another policy in the place of the one that holds."""
        assert self.hosted is not None
        self.hosted.use(file)
        self.timeout_graceful_shutdown = drain_limit(file.policy)


class GuardedServer(Server):
    """uvicorn's server, with an operator's socket, a policy that can change, and an exit code of 0.

    Args:
        config: its settings.
        ready: called once, when it accepts connections.
        child: whether a supervisor started it: then it reports for itself what prevents its start.
    """

    config: Settings

    def __init__(
        self, config: Settings, ready: Callable[[], None] | None = None, *, child: bool = False
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._child = child
        self._terminal = False

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop.

        Raises:
            ServeError: it cannot start.
        """
        if not self._child:
            super().run(sockets)
            return
        _die_with_parent()
        try:
            super().run(sockets)
        except ServeError as error:
            report(error)
            sys.exit(STARTUP_FAILURE)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        if not self.config.loaded:
            self.config.load()
        assert self.config.hosted is not None
        counts = self.config.hosted.guarded.counts
        operator = Operator(pages(self._about, self._policy, counts))
        loop = asyncio.get_running_loop()
        self._terminal = _has_terminal()
        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        try:
            if self.config.plan.admin:
                await operator.start()
            await super().serve(sockets)
        finally:
            operator.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections."""
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready()

    def hang_up(self) -> None:
        """SIGHUP: read the policy again; or the terminal is gone, and with it who started this."""
        if self._terminal and not _has_terminal():
            self.should_exit = True
            return
        try:
            file = self.config.plan.read()
        except ServeError as error:
            _log.error("the policy was not changed, the old one holds: %s", error)
            return
        self.config.use(file)
        _log.info("the policy was read again from %s\n%s", _source(file), describe(file.policy))

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop at SIGINT and SIGTERM.

        uvicorn raises the signal again in the end, so that it dies of it or, as the first process
        of a container, does not. Here an orderly stop is an exit code of 0 everywhere.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _about(self) -> dict[str, Any]:
        hosted = self.config.hosted
        assert hosted is not None
        return {
            "pid": os.getpid(),
            "parent": os.getppid() if self._child else 0,
            "service": hosted.file.policy.service,
            "target": self.config.plan.target,
            "url": self.config.url,
            "mode": hosted.file.policy.mode,
        }

    def _policy(self) -> str:
        hosted = self.config.hosted
        assert hosted is not None
        return f"{describe(hosted.file.policy)}\nfrom {_source(hosted.file)}\n"


def _source(file: PolicyFile) -> str:
    return "the built-in defaults" if file.source is None else str(file.source)


def _has_terminal() -> bool:
    try:
        return os.isatty(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        return False


def _die_with_parent() -> None:
    """Stop when the supervisor is gone: it cannot tell its workers when it was killed."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


class _Worker(multiprocess.Process):
    """A worker process with our server in it."""

    @property
    def server(self) -> Server:
        if self._server is None:
            assert isinstance(self.config, Settings)
            self._server = GuardedServer(self.config, child=True)
        return self._server


class Workers(multiprocess.Multiprocess):
    """uvicorn's supervisor. SIGHUP replaces the workers one by one, if the policy file is right."""

    config: Settings

    def __init__(self, config: Settings, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._terminal = _has_terminal()

    def run(self) -> None:
        """Supervise until told to stop."""
        before = multiprocess.Process
        multiprocess.Process = _Worker  # type: ignore[misc]
        try:
            super().run()
        finally:
            multiprocess.Process = before  # type: ignore[misc]

    def handle_hup(self) -> None:
        """Read the policy again, and give it to new workers; or stop with the terminal."""
        if self._terminal and not _has_terminal():
            self.should_exit.set()
            return
        plan = self.config.plan
        try:
            file = plan.read()
        except ServeError as error:
            _log.error("the policy was not changed, the old one holds: %s", error)
            return
        self.config.plan = replace(plan, source=file.source, data=file.data)
        self.config.timeout_graceful_shutdown = drain_limit(file.policy)
        super().handle_hup()

    def failed(self) -> bool:
        """Whether a worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)
