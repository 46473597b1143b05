"""Who is asked for names in tests, and answers when the test says so; what looks names up there."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any, Final

import pytest

from holdfast.domain.discovery.names import Answer, CacheTerms
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import clock_of
from holdfast.runtime.net.hosts import Hosts
from holdfast.runtime.net.resolver import Addresses, Resolver

INET, INET6 = socket.AF_INET, socket.AF_INET6
NOBODY: Final = Hosts(Path("/nonexistent/hosts"))
LONG: Final = 30.0
"""Seconds that no test takes: what must end, ends before."""


class Told:
    """A `Lookup` that answers when the test says so."""

    asks = "192.0.2.53"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds or ("ADDRESS",)
        self.asked: list[tuple[str, str]] = []
        self.waiting: list[tuple[str, str, Done]] = []
        self.closed = 0
        self.changed = threading.Condition()

    def start(self, name: str, kind: str, done: Done) -> None:
        with self.changed:
            self.asked.append((name, kind))
            self.waiting.append((name, kind, done))
            self.changed.notify_all()

    def close(self) -> None:
        self.closed += 1

    def say(
        self, *addresses: str, ttl: float = 60.0, exists: bool = True, kind: str | None = None
    ) -> None:
        """Answer the oldest question, or the oldest one of a type."""
        self._end(Answer(addresses, ttl, exists), kind)

    def fail(self, kind: str | None = None) -> None:
        """Say that nobody could tell."""
        self._end(socket.gaierror(socket.EAI_AGAIN, "no answer"), kind)

    def _end(self, result: Answer | OSError, kind: str | None) -> None:
        with self.changed:
            here = self.changed.wait_for(
                lambda: [w for w in self.waiting if kind in (None, w[1])], LONG
            )
            self.waiting.remove(here[0])
        here[0][2](result)


def here(told: Told, **terms: Any) -> Resolver:
    """A resolver in the time of the running loop."""
    kept = CacheTerms(**{"aging": 0.0, **terms})
    clock = clock_of(asyncio.get_running_loop())
    return Resolver(told, terms=kept, hosts=NOBODY, clock=clock)


def now() -> float:
    return clock_of(asyncio.get_running_loop())()


def names(found: Addresses) -> list[str]:
    return [address.sockaddr[0] for address in found]


class Several(asyncio.TaskGroup):
    """Several look-ups at the same time."""

    def resolve(self, resolver: Resolver, name: str = "orders.test", **more: Any) -> Any:
        return self.create_task(resolver.resolve(name, 80, **more))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def failing(resolver: Resolver, **more: Any) -> OSError:
    with pytest.raises(socket.gaierror) as caught:
        await resolver.resolve("orders.test", 80, **more)
    return caught.value


async def known(resolver: Resolver, told: Told, **more: Any) -> None:
    async with Several() as several:
        several.resolve(resolver, family=INET)
        await settled()
        told.say("192.0.2.1", **more)
