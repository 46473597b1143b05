"""The lifespan of an ASGI application, as a component of the host.

Rule 1. An application that fails with `lifespan.startup.failed` cannot start. One that raises, or
        returns, before it has said anything does not know the protocol, and goes without it.
Rule 2. Its shutdown is bounded by whoever stops it; when the time is over it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any, Final

from holdfast.adapters.asgi.types import App, Message, Receive, Send, ServerScope
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.ports.component import ApplicationFailed
from holdfast.runtime.scope import AMBIENT
from holdfast.runtime.tasks import aside

__all__ = ["Lifespan"]

_log: Final = logging.getLogger("holdfast.asgi")


class Lifespan:
    """See the module.

    Args:
        app: the application.
        scope: the lifespan scope of a server; one of its own by default.

    Attributes:
        state: what the application shares with its requests.
        supported: whether the application knows the protocol; until it is known, true.
        failure: what its shutdown failed with; empty when it did not.
    """

    def __init__(self, app: App, scope: ServerScope | None = None) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._scope: ServerScope = (
            {
                "type": "lifespan",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "state": self.state,
            }
            if scope is None
            else scope
        )
        self.supported = True
        self.failure = ""
        self._task: asyncio.Task[None] | None = None
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None
        self._stopping = False

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """The application, for a server that knows nothing of its lifespan."""
        scope["state"] = self.state.copy()
        await self._app(scope, receive, send)

    # -- the component ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Run the start-up of the application.

        Raises:
            ApplicationFailed: it failed.
        """
        context = contextvars.copy_context()
        context.run(AMBIENT.set, None)  # it outlives whatever scope is around here
        # What it is asked exists before it takes its first step.
        asked = self._ask("lifespan.startup")
        self._task = aside(self._run(), name="holdfast lifespan", context=context)
        said = await self._said(asked, self._task)
        if said["type"] == "lifespan.startup.failed":
            raise ApplicationFailed(f"the start-up failed: {_text(said)}")

    async def prepare(self, request: ShutdownRequest) -> None:
        """There is nothing to prepare: the protocol has no message for that."""

    async def stop(self, deadline: Instant) -> None:
        """Run the shutdown of the application; whoever calls this bounds it.

        Raises:
            ApplicationFailed: it failed.
        """
        task = self._task
        if task is None or task.done() or not self.supported:
            return
        self._stopping = True
        said = await self._said(self._ask("lifespan.shutdown"), task)
        if said["type"] == "lifespan.shutdown.failed":
            self.failure = _text(said)
            raise ApplicationFailed(f"the shutdown failed: {self.failure}")

    async def wait(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()

    # -- the protocol ----------------------------------------------------------------------------

    def _ask(self, kind: str) -> asyncio.Future[Message]:
        self._answer = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": kind})
        return self._answer

    async def _said(self, asked: asyncio.Future[Message], task: asyncio.Task[None]) -> Message:
        try:
            said = await asked
            if self._stopping:
                await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            raise
        return said

    async def _send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            await self._app(self._scope, self._messages.get, self._send)
        except Exception as raised:
            error = raised
        answer = self._answer
        if answer is None or answer.cancelled():
            return
        if not answer.done():
            answer.set_result(self._instead(error))
        elif error is not None and not answer.result()["type"].endswith(".failed"):
            # Else a framework has told of it, and raises it as well.
            _log.error("the lifespan of the application broke off", exc_info=error)

    def _instead(self, error: Exception | None) -> Message:
        """What counts as said by an application that ended without an answer."""
        if not self._stopping:
            self.supported = False
            if error is not None:
                _log.info("the application goes without a lifespan: it answered with %r", error)
            return {"type": "lifespan.startup.complete"}
        if error is not None:
            return {"type": "lifespan.shutdown.failed", "message": repr(error)}
        return {"type": "lifespan.shutdown.complete"}


def _text(message: Message) -> str:
    return str(message.get("message") or "it did not say why").strip()
