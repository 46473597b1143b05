"""The pages that tell a platform whether the process lives, and whether to send requests here.

Rule 1. Alive is whoever answers: that page asks nobody, and is answered before anything else.
Rule 2. Ready is what the report says, and only while no stop has begun: from that moment on the
        answer is 503, whatever is reported.
Rule 3. Nobody may keep an answer, and nobody may keep a connection for the next one once a stop
        has begun.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from holdfast.adapters.asgi.types import App, Headers, Receive, Send, ServerScope
from holdfast.domain.instant import Duration
from holdfast.domain.lifecycle.settings import HealthSettings
from holdfast.domain.wire.answer import retry_after as retry_after_value

__all__ = ["HealthPages", "Report"]

Report: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives plain values for JSON; ready is whose `status` is `ready`."""

_Page: TypeAlias = Callable[[], Awaitable[tuple[int, Mapping[str, Any]]]]
_log: Final = logging.getLogger("holdfast.asgi")


def _never() -> str:
    return ""


class HealthPages:
    """Answers the pages of health, and hands on everything else: one look-up in a dict.

    Put it outside of everything that limits, counts or refuses.

    Args:
        app: the application.
        ready: gives the report, for example that of `holdfast.lifecycle.Host.health`.
        settings: the paths.
        stopping: says why nothing should be sent here any more; empty while no stop has begun.
        retry_after: seconds after which an unready process may be asked again.
        details: whether the page shows the errors of checks, which may name hosts and users.
    """

    def __init__(
        self,
        app: App,
        ready: Report,
        settings: HealthSettings | None = None,
        *,
        stopping: Callable[[], str] = _never,
        retry_after: Duration = 1.0,
        details: bool = False,
    ) -> None:
        found = HealthSettings() if settings is None else settings
        self.app = app
        self._ready = ready
        self._stopping = stopping
        self._retry_after = retry_after_value(retry_after)
        self._details = details
        self._pages: dict[str | None, _Page] = {}
        if found.enabled:
            self._pages[found.live] = self._live_page
            if found.alias:
                self._pages[found.alias] = self._live_page
            self._pages[found.ready] = self._ready_page

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        await self.serve(scope, receive, send)

    def serve(self, scope: ServerScope, receive: Receive, send: Send) -> Awaitable[None]:
        """The same, for servers that do not look for a coroutine function: nothing of ours is on
        the way of what is handed on."""
        page = self._pages.get(scope.get("path"))
        if page is None or scope["type"] != "http":
            return self.app(scope, receive, send)
        return self._show(page, scope, send)

    async def _show(self, page: _Page, scope: ServerScope, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            extra = [(b"allow", b"GET, HEAD")]
            await self._answer(scope, send, 405, {"status": "only GET and HEAD"}, extra)
        else:
            status, content = await page()
            extra = [] if status == 200 else [(b"retry-after", self._retry_after)]
            await self._answer(scope, send, status, content, extra)

    async def _live_page(self) -> tuple[int, Mapping[str, Any]]:
        return 200, {"status": "alive"}

    async def _ready_page(self) -> tuple[int, Mapping[str, Any]]:
        if why := self._stopping():
            return 503, {"status": "unready", "why": why, "checks": {}}
        try:
            report = await self._ready()
        except Exception:  # the probe must get an answer; what is wrong is for the log
            _log.exception("the report of health failed, so this process is unready")
            return 503, {"status": "unready", "why": "the report failed", "checks": {}}
        if why := self._stopping():  # it has begun while the checks were asked
            return 503, {"status": "unready", "why": why, "checks": {}}
        shown = report if self._details else _without_errors(report)
        return (200 if report.get("status") == "ready" else 503), shown

    async def _answer(
        self,
        scope: ServerScope,
        send: Send,
        status: int,
        content: Mapping[str, Any],
        extra: Headers,
    ) -> None:
        body = json.dumps(content, default=str).encode() + b"\n"
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            *extra,
        ]
        if self._stopping() and scope.get("http_version", "1.1").startswith("1"):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        empty = scope["method"] == "HEAD"
        await send({"type": "http.response.body", "body": b"" if empty else body})


def _without_errors(report: Mapping[str, Any]) -> Mapping[str, Any]:
    checks = report.get("checks")
    if not isinstance(checks, Mapping):
        return report
    plain: dict[str, Any] = {}
    for name, check in cast("Mapping[str, Any]", checks).items():
        if isinstance(check, Mapping):
            found = cast("Mapping[str, Any]", check)
            plain[name] = {key: value for key, value in found.items() if key != "error"}
        else:
            plain[name] = check
    return {**report, "checks": plain}
