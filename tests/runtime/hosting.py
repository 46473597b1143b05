"""What the tests of the host share: components that do as they are told, and what they did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from holdfast.domain import laws
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle import Host, HostTerms, Record, ShutdownRequest

TERMS = HostTerms(start=20, tell=1, acknowledge=1, drain=10, cleanup=4, hurried=1, unwinding=1)


def now() -> float:
    return asyncio.get_running_loop().time()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def stubborn(seconds: float) -> None:
    """Does not end for so long, however often it is told to."""
    until = now() + seconds
    while now() < until:
        try:
            await asyncio.sleep(until - now())
        except asyncio.CancelledError:
            continue


class Thing:
    """A component.

    Args:
        name: of it.
        story: what is called is noted here.
        start, prepare, stop: seconds, an error to raise, or what to await.
    """

    def __init__(
        self,
        name: str,
        story: list[str],
        *,
        start: Any = 0.0,
        prepare: Any = 0.0,
        stop: Any = 0.0,
    ) -> None:
        self.name, self.story = name, story
        self.plan = {"start": start, "prepare": prepare, "stop": stop}
        self.up = False
        self.requests: list[ShutdownRequest] = []
        self.deadlines: list[float] = []
        self.hurried: list[float] = []
        self._dead = asyncio.get_running_loop().create_future()

    async def _do(self, what: str) -> None:
        self.story.append(f"{what} {self.name}")
        plan = self.plan[what]
        try:
            if isinstance(plan, BaseException):
                raise plan
            await (asyncio.sleep(plan) if isinstance(plan, (int, float)) else plan())
        except asyncio.CancelledError:
            self.story.append(f"{what} {self.name} cancelled")
            raise

    async def start(self) -> None:
        await self._do("start")
        self.up = True

    async def prepare(self, request: ShutdownRequest) -> None:
        self.requests.append(request)
        await self._do("prepare")

    async def stop(self, deadline: float) -> None:
        self.deadlines.append(deadline)
        try:
            await self._do("stop")
        finally:
            self.up = False

    async def wait(self) -> None:
        error = await self._dead
        if error is not None:
            raise error

    def hurry(self) -> None:
        self.hurried.append(now())

    def die(self, error: BaseException | None = None) -> None:
        self._dead.set_result(error)


def host_of(*things: Thing, terms: HostTerms = TERMS, needs: Any = None) -> Host:
    host = Host("shop", terms=terms)
    for thing in things:
        host.add(thing.name, thing, needs=(needs or {}).get(thing.name))
    return host


def later(seconds: float, call: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_later(seconds, call, *arguments)


def lines(host: Host, *kinds: str) -> list[str]:
    return [f"{r.subject}: {r.detail}" if r.detail else r.subject for r in records(host, *kinds)]


def records(host: Host, *kinds: str) -> list[Record]:
    return [record for record in host.journal.records if record.kind in kinds]


def phases(host: Host) -> list[str]:
    return lines(host, "phase.entered")


def no_breach() -> None:
    """The laws hold, and nothing is left below the root."""
    root = driver_of(asyncio.get_running_loop()).root
    found: Iterable[laws.Breach] = [
        *laws.breaches_of_containment(root),
        *laws.breaches_of_reach(root),
        *laws.breaches_of_closure(root),
    ]
    assert not list(found)
    assert not root.children
    assert root.outcome is not None
