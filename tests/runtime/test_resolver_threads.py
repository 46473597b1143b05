"""The resolver for threads, several loops, forked children; and threads that ask getaddrinfo."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.runtime.clock import monotonic
from holdfast.runtime.net import lookups
from holdfast.runtime.net.lookups import DaemonThreads, SystemLookup
from holdfast.runtime.net.resolver import Address, Addresses, Resolver, default_resolver
from tests.runtime.naming import (
    INET,
    INET6,
    LONG,
    NOBODY,
    Told,
    names,
)

# -- threads, loops, processes ---------------------------------------------------------------------


def in_threads(count: int, call: Callable[[int], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=[n], daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_threads_and_loops_share_one_question() -> None:
    told = Told()
    resolver = Resolver(told, hosts=NOBODY)
    found: list[Addresses] = []

    def get(number: int) -> None:
        if number % 2:
            found.append(asyncio.run(resolver.resolve("orders.test", 80)))
        else:
            found.append(resolver.resolve_blocking("orders.test", 80))

    threads = in_threads(20, get)
    until = time.monotonic() + LONG
    while resolver.stats().misses < 20 and time.monotonic() < until:
        time.sleep(0.001)
    told.say("192.0.2.1")
    for thread in threads:
        thread.join(LONG)
    assert [names(addresses) for addresses in found] == [["192.0.2.1"]] * 20
    assert len(told.asked) == 1
    assert resolver.resolve_blocking("orders.test", 80) is resolver.resolve_blocking(
        "orders.test", 80
    )


def test_a_thread_waits_until_its_limit() -> None:
    resolver = Resolver(Told(), hosts=NOBODY)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        resolver.resolve_blocking("orders.test", 80, limit=begun + 0.05)
    assert 0.05 <= time.monotonic() - begun < LONG / 10
    with pytest.raises(TimeoutError):
        resolver.resolve_blocking("others.test", 80, limit=begun)


def test_an_answer_for_a_loop_that_is_closed_reaches_the_others() -> None:
    told = Told()
    resolver = Resolver(told, hosts=NOBODY)

    async def gives_up() -> None:
        with pytest.raises(TimeoutError):
            await resolver.resolve("orders.test", 80, limit=monotonic() + 0.01)

    asyncio.run(gives_up())
    found: list[Addresses] = []
    (thread,) = in_threads(1, lambda _: found.append(resolver.resolve_blocking("orders.test", 80)))
    until = time.monotonic() + LONG
    while resolver.stats().shared < 1 and time.monotonic() < until:
        time.sleep(0.001)
    told.say("192.0.2.1")
    thread.join(LONG)
    assert names(found[0]) == ["192.0.2.1"]


@pytest.mark.real_time("asyncio", "uvloop")
async def test_an_answer_comes_from_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = threading.Event()

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        if name.startswith("dead"):
            dead.wait(LONG)
            raise socket.gaierror(socket.EAI_AGAIN, "dead")
        return [(INET, 1, 6, "", ("192.0.2.1", 0)), (INET6, 1, 6, "", ("fe80::1", 0, 0, 3))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    before = threading.enumerate()
    resolver = Resolver(hosts=NOBODY)
    waiting = [asyncio.ensure_future(resolver.resolve(f"dead{n}.test", 80)) for n in range(40)]
    await asyncio.sleep(0.01)
    begun = monotonic()
    found = await resolver.resolve("good.test", 80)
    assert monotonic() - begun < LONG / 6
    assert found == (
        Address(INET, ("192.0.2.1", 80)),
        Address(INET6, ("fe80::1", 80, 0, 3)),
    )
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    dead.set()
    resolver.close()
    await gone("holdfast names", before)


def test_second_questions_for_dead_names_leave_threads_for_good_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over, asked = threading.Event(), threading.Semaphore(0)

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        if name.startswith("dead"):
            asked.release()
            over.wait(LONG)
            raise socket.gaierror(socket.EAI_AGAIN, "dead")
        return [(INET, 1, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    turned = [0.0]
    resolver = Resolver(SystemLookup(most=8), hosts=NOBODY, clock=lambda: monotonic() + turned[0])

    def ask(numbers: range) -> None:
        for number in numbers:
            with pytest.raises(TimeoutError):
                resolver.resolve_blocking(f"dead{number}.test", 80, limit=monotonic() + 0.005)

    try:
        ask(range(2))
        turned[0] += 3.0
        ask(range(5))  # three are new, and of the others both are asked for once more
        turned[0] += 3.0
        ask(range(5))
        assert [asked.acquire(timeout=LONG) for _ in range(7)] == [True] * 7
        assert not asked.acquire(timeout=0.02)
        found = resolver.resolve_blocking("good.test", 80, limit=monotonic() + LONG)
        assert names(found) == ["192.0.2.1"]
    finally:
        over.set()
        resolver.close()


def test_as_many_resolvers_as_there_may_be_have_one_hook_for_forks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks: list[object] = []

    def register_at_fork(**hook: object) -> None:
        hooks.append(hook)

    monkeypatch.setattr(os, "register_at_fork", register_at_fork)
    gc.collect()
    before = len(lookups._IN_CHILD)  # pyright: ignore[reportPrivateUsage]
    kept = [Resolver() for _ in range(20)]
    assert len(lookups._IN_CHILD) >= 40  # pyright: ignore[reportPrivateUsage]
    del kept
    gc.collect()  # what other tests have left may go with them
    assert len(lookups._IN_CHILD) <= before  # pyright: ignore[reportPrivateUsage]
    assert not hooks


def test_a_forked_child_resets_all_also_when_one_fails() -> None:
    class Has:
        def __init__(self, problem: str = "") -> None:
            self.problem = problem
            self.done = 0
            lookups.after_fork(self.reset)

        def reset(self) -> None:
            self.done += 1
            if self.problem:
                raise ValueError(self.problem)

    all_of_them = [Has(), Has("broken"), Has()]
    with pytest.raises(ValueError, match="broken"):
        lookups._forked()  # pyright: ignore[reportPrivateUsage]
    assert [has.done for has in all_of_them] == [1, 1, 1]


def _running(name: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == name}


async def gone(name: str, before: list[threading.Thread]) -> None:
    async with asyncio.timeout(LONG):
        while _running(name) - set(before):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("raised", "result"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "'orders.test' does not exist"),
        (socket.gaierror(socket.EAI_NODATA, "x"), "'orders.test' has no address"),
        (UnicodeError("label too long"), "'orders.test' does not exist"),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), "try again"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
)
def test_what_getaddrinfo_says(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, result: str
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise raised

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver(hosts=NOBODY)
    with pytest.raises(OSError, match=result):
        resolver.resolve_blocking("orders.test", 80, limit=monotonic() + LONG)
    resolver.close()


def test_getaddrinfo_is_said_to_be_asked_and_its_servers() -> None:
    assert SystemLookup().asks.startswith("getaddrinfo (")
    assert Resolver().asks == SystemLookup().asks


def test_the_process_has_one_resolver() -> None:
    assert default_resolver() is default_resolver()


def test_threads_are_as_many_as_there_is_work_for_and_no_more() -> None:
    threads = DaemonThreads("holdfast test", most=3, idle=0.01)
    at_work, go = threading.Semaphore(0), threading.Event()

    def work() -> None:
        at_work.release()
        go.wait(LONG)

    def count() -> int:
        return sum(thread.name == "holdfast test" for thread in threading.enumerate())

    for _ in range(10):
        threads.start(work)
    for _ in range(3):
        assert at_work.acquire(timeout=LONG)
    assert not at_work.acquire(timeout=0.02)
    assert count() == 3
    go.set()
    for _ in range(7):
        assert at_work.acquire(timeout=LONG)
    until = time.monotonic() + LONG
    while count() and time.monotonic() < until:
        time.sleep(0.002)
    assert count() == 0
    threads.start(work)
    assert at_work.acquire(timeout=LONG)


def test_a_thread_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(lookups.threading, "Thread", Full)
        threads = DaemonThreads("holdfast test")
        with pytest.raises(RuntimeError):
            threads.start(lambda: None)
    done = threading.Event()
    threads.start(done.set)
    assert done.wait(LONG)
    threads.close()


def test_a_process_ends_while_getaddrinfo_hangs_and_a_child_has_a_cache_of_its_own() -> None:
    program = """
import os, socket, sys, time
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import default_resolver

def getaddrinfo(name, *_, **__):
    if name == "dead.test":
        time.sleep(60)
    return [(socket.AF_INET, 1, 6, "", ("192.0.2.1", 0))]

socket.getaddrinfo = getaddrinfo
resolver = default_resolver()
found = resolver.resolve_blocking("good.test", 80)
try:
    resolver.resolve_blocking("dead.test", 80, limit=monotonic() + 0.05)
except TimeoutError:
    pass
if not os.fork():
    code = 1
    try:
        assert resolver.stats().asked == resolver.stats().size == 0
        assert resolver.resolve_blocking("good.test", 80, limit=monotonic() + 30) == found
        assert resolver.stats().asked == 1
        code = 0
    finally:
        os._exit(code)
assert os.wait()[1] == 0
assert resolver.stats().asked == 2
sys.exit(7)
"""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, timeout=LONG, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert time.monotonic() - begun < 10


def test_a_resolver_that_nobody_has_any_more_is_gone() -> None:
    import weakref

    resolver = Resolver(Told())
    dead = weakref.ref(resolver)
    del resolver
    gc.collect()
    assert dead() is None
