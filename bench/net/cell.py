"""One call by one client, in a process of its own: how long, how it ended, what it left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench._harness import new_loop
from bench.net.bad import Ask
from bench.net.clients import Client

__all__ = ["Counts", "Left", "Result", "counted", "perform"]


@dataclass(frozen=True, slots=True)
class Left:
    """What there is more than before.

    Attributes:
        descriptors: how many of each kind: `tcp`, `udp`, `pipe`, `eventfd`, ...
        threads: that the process waits for when it ends.
        daemons: threads that it does not wait for.
    """

    descriptors: dict[str, int] = field(default_factory=dict[str, int])
    threads: int = 0
    daemons: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a call went.

    Attributes:
        client: its name.
        scenario: its name.
        took: seconds; none when it was given up on.
        status: of an answer; 0 without one.
        error: class of what was raised.
        bases: the classes above it.
        phase: that the error names; empty if none.
        event: that the record in the error ends with; empty if there is none.
        said: the error in its own words.
        called: what there was more, right after the call.
        closed: what there was more, once the client was closed.
        over: instant of the last count, on the clock of the host.
        exit: seconds from then to the end of the process; none when it was killed.
    """

    client: str
    scenario: str
    took: float | None = None
    status: int = 0
    error: str = ""
    bases: list[str] = field(default_factory=list[str])
    phase: str = ""
    event: str = ""
    said: str = ""
    called: Left = field(default_factory=Left)
    closed: Left = field(default_factory=Left)
    over: float = 0.0
    exit: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it came back as a success."""
        return self.status > 0


Told = Callable[["Result"], object]


def perform(
    client: Client, scenario: str, ask: Ask, begun: Callable[[], object], told: Told
) -> None:
    """Make the call; `begun` is called when its clock starts, `told` before the loop ends."""
    if not client.loop:
        _blocking(client, scenario, ask, begun, told)
        return
    with asyncio.Runner(loop_factory=lambda: new_loop(client.loop)) as runner:
        runner.run(_on_loop(client, scenario, ask, begun, told))


def _blocking(
    client: Client, scenario: str, ask: Ask, begun: Callable[[], object], told: Told
) -> None:
    before = counted()
    call, close = client.prepare(ask)
    begun()
    started = time.monotonic()
    try:
        found = {"status": call()}
    except Exception as exc:
        found = _told(exc)
    took = time.monotonic() - started
    called = _more(before)
    close()
    closed = _more(before)
    over = time.monotonic()
    told(Result(client.name, scenario, took, called=called, closed=closed, over=over, **found))


async def _on_loop(
    client: Client, scenario: str, ask: Ask, begun: Callable[[], object], told: Told
) -> None:
    before = counted()
    call, close = await client.prepare(ask)
    begun()
    started = time.monotonic()
    try:
        found = {"status": await call()}
    except Exception as exc:
        found = _told(exc)
    took = time.monotonic() - started
    await _turns()
    called = _more(before)
    await close()
    await _turns()
    closed = _more(before)
    over = time.monotonic()
    told(Result(client.name, scenario, took, called=called, closed=closed, over=over, **found))


async def _turns() -> None:
    """The one turn that a loop needs to close what was aborted, and one for what it calls."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def _told(exc: Exception) -> dict[str, Any]:
    return {
        "error": type(exc).__name__,
        "bases": [kind.__name__ for kind in type(exc).__mro__[1:-1]],
        "phase": str(getattr(exc, "phase", None) or ""),
        "event": str(getattr(getattr(exc, "trail", None), "event", "")),
        "said": f"{exc}"[:300],
    }


Counts = tuple[Counter[str], int, int]


def counted() -> Counts:
    gc.collect()
    kinds = Counter(filter(None, map(_kind, os.listdir("/proc/self/fd"))))
    threads = threading.enumerate()
    daemons = sum(thread.daemon for thread in threads)
    return kinds, len(threads) - daemons, daemons


def _kind(number: str) -> str:
    """What a descriptor is; empty for that of the folder itself, which is closed by now."""
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""
    if not target.startswith("socket:"):
        return target.partition("[")[2].rstrip("]") if "anon_inode" in target else target
    sock = socket.socket(fileno=int(number))
    family, kind = sock.family, sock.type
    sock.detach()
    if family == socket.AF_UNIX:
        return "unix"
    return "tcp" if kind == socket.SOCK_STREAM else "udp"


def _more(before: Counts) -> Left:
    kinds, threads, daemons = counted()
    kinds.subtract(before[0])
    more = {kind.partition(":")[0]: count for kind, count in kinds.items() if count}
    return Left(more, threads - before[1], daemons - before[2])
