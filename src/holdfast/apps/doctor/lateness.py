"""How late timers and selectors wake here."""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from holdfast.adapters.uvloop import loop_factory
from holdfast.apps.doctor.facts import BUSY, IDLE, Lateness, lateness
from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.clock import monotonic
from holdfast.runtime.driver import Driver, driver_of

__all__ = ["ASKED", "Measurement", "measurements"]

ASKED: Final = (0.001, 0.005, 0.010, 0.050)
"""Seconds that are asked for."""

# Of the time of one loop under one load. The shorter wait has more tries in less time.
_PART: Final = {0.001: 0.15, 0.005: 0.20, 0.010: 0.25, 0.050: 0.40}
_SIDE_BY_SIDE: Final = {0.050: 4}
"""Where one after the other would be too few: so many, spread over the time that is asked for."""

_SELECTORS: Final = (
    ("epoll", "EpollSelector"),
    ("kqueue", "KqueueSelector"),
    ("poll", "PollSelector"),
    ("select", "SelectSelector"),
)
_SELECTOR_PART: Final = 0.25
"""Of the time of a loop: a selector is measured idle, with short waits only."""

_SPINS: Final = 200


@dataclass(frozen=True, slots=True)
class Measurement:
    """One step: some seconds of waiting.

    Attributes:
        name: for people.
        seconds: that it takes, about.
        run: does it.
    """

    name: str
    seconds: Duration
    run: Callable[[], list[Lateness]]


def measurements(seconds: Duration) -> Iterator[Measurement]:
    """What is to be measured, within `seconds` all together."""
    loops: list[tuple[str, Callable[[], asyncio.AbstractEventLoop] | None]] = [("asyncio", None)]
    if (factory := loop_factory()) is not None:
        loops.append(("uvloop", factory))
    kinds = [(name, kind) for name, kind in _SELECTORS if hasattr(selectors, kind)]
    each = seconds / (2 * len(loops) + _SELECTOR_PART * len(kinds))
    for load in (IDLE, BUSY):
        for name, make in loops:
            for asked in ASKED:
                part = each * _PART[asked]
                yield Measurement(
                    f"timers of {name}, {load}", part, _on_loop(name, make, load, asked, part)
                )
    for name, kind in kinds:
        part = each * _SELECTOR_PART
        yield Measurement(f"selector {name}, {IDLE}", part, _with_selector(name, kind, part))


# -- loops ---------------------------------------------------------------------------------------


def _on_loop(
    name: str,
    make: Callable[[], asyncio.AbstractEventLoop] | None,
    load: str,
    asked: Duration,
    seconds: Duration,
) -> Callable[[], list[Lateness]]:
    def run() -> list[Lateness]:
        with (
            _spinning() if load == BUSY else nullcontext(),
            asyncio.Runner(loop_factory=make) as runner,
        ):
            theirs, ours = runner.run(_wait(asked, seconds))
        return [
            lateness(name, "loop", load, asked, theirs),
            lateness(name, "holdfast", load, asked, ours),
        ]

    return run


async def _wait(asked: Duration, seconds: Duration) -> tuple[list[Duration], list[Duration]]:
    """What the timers of the loop, and deadlines of ours on it, woke late."""
    driver = driver_of(asyncio.get_running_loop())
    until = driver.now() + seconds
    over = driver.loop.create_future()
    chains = [_Chain(driver, asked, until) for _ in range(_SIDE_BY_SIDE.get(asked, 1))]

    def ended() -> None:
        if not over.done() and all(chain.over for chain in chains):
            over.set_result(None)

    for place, chain in enumerate(chains):
        chain.ended = ended
        driver.loop.call_later(asked * place / len(chains), chain.go)
    await over
    return (
        [late for chain in chains for late in chain.theirs],
        [late for chain in chains for late in chain.ours],
    )


class _Chain:
    """One wait after the other: each with a timer of the loop, and one of ours."""

    def __init__(self, driver: Driver, asked: Duration, until: Instant) -> None:
        self._driver = driver
        self._asked = asked
        self._until = until
        self._at: Instant = 0.0
        self._waits = 0
        self.theirs: list[Duration] = []
        self.ours: list[Duration] = []
        self.over = False
        self.ended: Callable[[], object] = _nothing

    def go(self) -> None:
        now = self._driver.now()
        if self.theirs and now >= self._until:
            self.over = True
            self.ended()
            return
        self._waits = 2
        self._at = now + self._asked
        self._driver.loop.call_later(self._asked, self._rung, self.theirs)
        self._driver.alarm(self._at, lambda: self._rung(self.ours))

    def _rung(self, kept: list[Duration]) -> None:
        kept.append(self._driver.now() - self._at)
        self._waits -= 1
        if not self._waits:
            self.go()


def _nothing() -> None:
    pass


@contextmanager
def _spinning() -> Generator[None]:
    """A thread that computes and never waits, as somebody's parser in a worker thread does."""
    stop = threading.Event()
    thread = threading.Thread(target=_spin, args=(stop,), name="holdfast doctor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _spin(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for at in range(_SPINS):
            number = (number * 31 + at) & 0xFFFF


# -- selectors -----------------------------------------------------------------------------------


def _with_selector(name: str, kind: str, seconds: Duration) -> Callable[[], list[Lateness]]:
    def run() -> list[Lateness]:
        one, other = socket.socketpair()
        with one, other, getattr(selectors, kind)() as selector:
            selector.register(one, selectors.EVENT_READ)
            return [
                lateness(name, "selector", IDLE, asked, _select(selector, asked, part))
                for asked, part in ((asked, seconds * _PART[asked]) for asked in ASKED)
            ]

    return run


def _select(selector: selectors.BaseSelector, asked: Duration, seconds: Duration) -> list[Duration]:
    found: list[Duration] = []
    until = monotonic() + seconds
    while not found or monotonic() < until:
        at = monotonic() + asked
        selector.select(asked)
        found.append(monotonic() - at)
    return found
