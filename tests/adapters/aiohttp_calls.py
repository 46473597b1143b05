"""Calls of aiohttp in tests: ours, bounded, and watched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

import holdfast
from holdfast.adapters.aiohttp import instrument
from holdfast.domain.discovery.names import Answer
from holdfast.domain.faults import Fault, classify
from holdfast.domain.phases import Phase, Trail
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic

BUDGET = 0.25
ENVOY = "x-envoy-expected-rq-timeout-ms"
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


@asynccontextmanager
async def client(connector: Any = None, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=connector) as session:
        yield instrument(session, **options)


async def text(session: aiohttp.ClientSession, url: str, **options: Any) -> str:
    async with session.get(url, **options) as response:
        return await response.text()


async def late(call: Callable[[], Awaitable[object]], phase: Phase) -> holdfast.DeadlineExceeded:
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        async with holdfast.timeout(BUDGET):
            await call()
    assert monotonic() - began < ENDED
    error = caught.value
    assert error.phase is phase, error
    assert error.trail is not None
    assert error.trail.event == phase.event
    assert phase.event in str(error)
    assert classify(error) is Fault.TIMED_OUT
    return error


class Known:
    """Every name has these addresses."""

    kinds = ("ADDRESS",)
    asks = "nobody"

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    def start(self, name: str, kind: str, done: Done) -> None:
        done(Answer(self._addresses, 60.0))

    def close(self) -> None:
        """Nothing is open."""


class Told:
    """An observer that keeps what it is told."""

    def __init__(self, trails: list[Trail]) -> None:
        self.trails = trails

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.trails.append(trail)
