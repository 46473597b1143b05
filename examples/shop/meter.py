"""The measuring instrument of the demo. Not a part of the shop: without it the shop is the same.

Every hop is wrapped in a `Meter`. It counts what the hop does, and how much of that it does after
the user had gone. For that the load generator says in a header at which instant its user gives up:
all hops run on one machine, where CLOCK_MONOTONIC is the same for all processes. `GET /stats` of
any hop answers with the figures.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from holdfast import ScopeEnded, remaining

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

GIVE_UP_AT: Final = "x-demo-give-up-at"
PIECE: Final = 0.01
RECENT: Final = 3.0
PAPER: Final = b"\0" * 65_536


class Visit:
    """One request at one hop."""

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at
        self.began = time.monotonic()
        self.after = False


VISIT: Final[contextvars.ContextVar[Visit]] = contextvars.ContextVar("visit")


class Meter:
    """The figures of one hop. Times are in seconds."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.open = 0
        self.requests = 0
        self.ended_early = 0
        self.work = 0.0
        self.after_requests = 0
        self.after_work = 0.0
        self.after_held = 0.0
        self.latencies: deque[tuple[float, float]] = deque(maxlen=1000)
        self.budgets: deque[tuple[float, float]] = deque(maxlen=1000)

    # -- for the services ------------------------------------------------------------------------

    async def do_work(self, seconds: float) -> None:
        """Work, in pieces of 10 ms: mostly waiting, as for a disk, and a little computing."""
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            whole = False
            try:
                await asyncio.sleep(min(PIECE, end - began))
                hashlib.sha256(PAPER).digest()
                whole = True
            finally:
                self._worked(began, time.monotonic(), whole)

    def passed_on(self) -> dict[str, str]:
        """The header for the next hop."""
        return {GIVE_UP_AT: repr(VISIT.get().give_up_at)}

    def wrap(self, app: App) -> App:
        """The same application, measured."""

        async def measured(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
            elif scope["path"] == "/stats":
                await self._show(send)
            else:
                await self._measure(app, scope, receive, send)

        return measured

    # -- inside ----------------------------------------------------------------------------------

    async def _measure(
        self, app: App, scope: MutableMapping[str, Any], receive: Any, send: Any
    ) -> None:
        visit = Visit(float(dict(scope["headers"]).get(GIVE_UP_AT.encode(), b"inf")))
        VISIT.set(visit)
        self.open += 1
        self.budgets.append((visit.began, remaining()))
        try:
            await app(scope, receive, send)
        except (asyncio.CancelledError, ScopeEnded):
            self.ended_early += 1
            raise
        finally:
            now = time.monotonic()
            self.open -= 1
            self.requests += 1
            self.latencies.append((now, now - visit.began))
            self.after_held += max(0.0, now - max(visit.began, visit.give_up_at))

    def _worked(self, began: float, ended: float, whole: bool) -> None:
        visit = VISIT.get()
        self.work += ended - began
        self.after_work += max(0.0, ended - max(began, visit.give_up_at))
        if whole and began >= visit.give_up_at and not visit.after:
            # Only whole pieces: to be told takes a moment, and that is not what is counted here.
            visit.after = True
            self.after_requests += 1

    async def _show(self, send: Any) -> None:
        body = json.dumps(self.figures()).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    def figures(self) -> dict[str, Any]:
        """What `/stats` shows. Latencies and budgets are those of the last 3 s."""
        since = time.monotonic() - RECENT
        took = sorted(seconds for at, seconds in self.latencies if at >= since)
        left = [seconds for at, seconds in self.budgets if at >= since]
        budget = statistics.median(left) if left else None
        return {
            "service": self.service,
            "pid": os.getpid(),
            "open": self.open,
            "tasks": len(asyncio.all_tasks()),
            "requests": self.requests,
            "ended_early": self.ended_early,
            "work_s": self.work,
            "after_requests": self.after_requests,
            "after_work_s": self.after_work,
            "after_held_s": self.after_held,
            "latency_p50_s": took[len(took) // 2] if took else None,
            "latency_p95_s": took[len(took) * 95 // 100] if took else None,
            "budget_p50_s": None if budget is None or budget == float("inf") else budget,
        }
