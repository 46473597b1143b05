"""Dials that are cancelled: at every await, and thousands of them at random points."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

import holdfast
from holdfast.domain.phases import Ended
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.attempt import SocketOptions
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.proxying import ProxyAddress
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.scope import Scope
from tests.runtime.dialling import (
    Names,
    Observer,
    Sockets,
    contexts,
    descriptors,
    dropping,
    loops,
    refusing,
    tls_echo,
    tunnel,
)
from tests.runtime.peering import echo, peer
from tests.runtime.test_cancel_everywhere import interrupted

STEPS = 60
DIALS = 10_000
AT_ONCE = 250


async def driven(coro: Coroutine[Any, Any, Any], at: int, act: Any, steps: list[int]) -> Any:
    return await interrupted(coro, at, act, steps)


Cancel = Callable[[Coroutine[Any, Any, Stream], int, list[int]], Coroutine[Any, Any, Any]]


async def by_a_stranger(dial: Coroutine[Any, Any, Stream], at: int, steps: list[int]) -> Any:
    task = asyncio.create_task(driven(dial, at, lambda: task.cancel(), steps))
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


async def by_the_scope(dial: Coroutine[Any, Any, Stream], at: int, steps: list[int]) -> Any:
    made: list[Stream] = []

    async def work() -> None:
        async with holdfast.scope("request") as scope:
            made.append(await driven(dial, at, scope.cancel, steps))

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    if isinstance(task.exception(), holdfast.Cancelled):
        for stream in made:  # it was there already, and is ours
            stream.abort()
        return None
    task.result()
    return made[0]


@pytest.mark.parametrize("cancel", [by_a_stranger, by_the_scope])
@pytest.mark.parametrize("way", ["plain", "tls", "proxy", "tls-proxy-tls"])
@loops
async def test_cancel_at_every_await(
    monkeypatch: pytest.MonkeyPatch, cancel: Cancel, way: str
) -> None:
    sockets, observer = Sockets(monkeypatch), Observer()
    dialer = Dialer(observer=observer)
    tls = contexts()[1] if way.endswith("tls") else None
    with ExitStack() as stack:
        host = stack.enter_context(peer(echo if tls is None else tls_echo))
        proxy = None
        if "proxy" in way:
            near = contexts()[1] if way.startswith("tls") else None
            port = stack.enter_context(peer(tunnel(tls=near is not None))).port
            proxy = ProxyAddress("127.0.0.1", port, tls=near)
        cancelled = 0
        for at in range(1, STEPS):
            steps = [0]
            dial = dialer.connect("127.0.0.1", host.port, tls=tls, proxy=proxy, timeout=30)
            stream = await cancel(dial, at, steps)
            if stream is None:
                cancelled += 1
                await asyncio.sleep(0)
                assert not sockets.open(), f"after await {at}"
            else:
                await stream.aclose()
                if steps[0] < at:
                    break
        else:
            pytest.fail("a dial should not have that many steps")
    assert cancelled >= 1 if way == "plain" else cancelled > 2
    assert not sockets.open()
    assert len(observer.calls) == at
    for trail, error in observer.calls:
        assert trail.current is None
        if isinstance(error, asyncio.CancelledError) and trail.steps:
            assert trail.steps[-1].ended in (Ended.CANCELLED, Ended.DONE)


class Places:
    """Where the dials go, so that they are at different points when they are cancelled."""

    def __init__(self, stack: ExitStack) -> None:
        # Connections are there as soon as the kernel of the listener has them; nobody answers.
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        self.listener.setblocking(False)
        self.silent: int = self.listener.getsockname()[1]
        self.refusing = stack.enter_context(refusing())
        self.dropping = stack.enter_context(dropping("127.0.0.2"))
        self.names = Names(
            one=("127.0.0.1",), two=("127.0.0.2", "127.0.0.1"), away=OSError(5, "no answer")
        )
        options = SocketOptions(attempt_delay=0.001)
        self.dialer = Dialer(resolver=self.names, options=options)  # type: ignore[arg-type]

    def dial(self, chance: random.Random, tls: ssl.SSLContext) -> Coroutine[Any, Any, Stream]:
        connect = self.dialer.connect
        limit = chance.choice([30.0, 0.002, 0.005])
        match chance.randrange(8):
            case 0:
                return connect("two", self.dropping, timeout=limit)
            case 1:
                return connect("one", self.refusing, timeout=limit)
            case 2:
                return connect("dead", self.silent, timeout=limit)
            case 3:
                return connect("away", self.silent, timeout=limit)
            case 4:
                return connect("one", self.silent, tls=tls, timeout=limit)
            case 5:
                proxy = ProxyAddress("one", self.silent)
                return connect("orders.test", 443, proxy=proxy, timeout=limit)
            case 6:
                proxy = ProxyAddress("one", self.silent, tls=tls)
                return connect("orders.test", 443, proxy=proxy, timeout=limit)
            case _:
                return connect("one", self.silent, timeout=limit, forced_break=True)

    def sweep(self) -> None:
        """Take what is in the queue, so that it does not fill."""
        while True:
            try:
                self.listener.accept()[0].close()
            except BlockingIOError:
                return


async def soon_cancelled(dial: Coroutine[Any, Any, Stream], chance: random.Random) -> str:
    """How a dial ended that is cancelled after a while, in one of two ways."""
    loop = asyncio.get_running_loop()
    task: asyncio.Task[Stream] = asyncio.ensure_future(dial)
    pause = chance.random() * chance.choice([0.0, 0.0005, 0.004])
    if pause:
        handle = loop.call_later(pause, task.cancel)
    else:
        handle = None
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    if handle is not None:
        handle.cancel()
    if task.cancelled():
        return "cancelled"
    if (error := task.exception()) is not None:
        return type(error).__name__
    task.result().abort()
    return "connected"


@loops
async def test_a_scope_that_ends_in_the_turn_in_which_the_loop_makes_the_transport() -> None:
    """uvloop frees the handle and then reads from it: the process would end here."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]

        async def work(scope: Scope) -> None:
            async with scope:
                (await Dialer().connect("127.0.0.1", port)).abort()

        for turns in [*range(12)] * 8:
            scope = holdfast.timeout(30)
            task = asyncio.create_task(work(scope))
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns:
                scope.cancel()
            await asyncio.wait([task])
            assert task.exception() is None or isinstance(task.exception(), holdfast.Cancelled)
            await asyncio.sleep(0.001)


@loops
async def test_ten_thousand_dials_cancelled_at_random_points() -> None:
    chance = random.Random(7)
    tls = contexts()[1]
    ends: dict[str, int] = {}
    with ExitStack() as stack:
        places = Places(stack)
        # libuv opens one descriptor in reserve with the first connection of a loop
        (await places.dialer.connect("one", places.silent)).abort()
        await asyncio.sleep(0.01)
        places.sweep()
        before, tasks = descriptors(), len(asyncio.all_tasks())
        for _ in range(DIALS // AT_ONCE):
            dials = [soon_cancelled(places.dial(chance, tls), chance) for _ in range(AT_ONCE)]
            for end in await asyncio.gather(*dials):
                ends[end] = ends.get(end, 0) + 1
            await asyncio.sleep(0)
            places.sweep()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == tasks
        assert descriptors() <= before
        await asyncio.sleep(0.05)  # what has been armed for them is gone as well
        assert len(driver_of(asyncio.get_running_loop()).timers) < 5
    gc.collect()  # a socket that somebody else has to close is a warning, and that a failure
    assert sum(ends.values()) == DIALS
    assert ends["cancelled"] > DIALS / 10
    assert set(ends) == {
        "cancelled",
        "connected",
        "ConnectionRefusedError",
        "DeadlineExceeded",
        "OSError",
    }
