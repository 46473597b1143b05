"""The virtual loop itself, and the plugin that runs tests on it."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: ASYNC251
from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import anyio.to_thread
import pytest

import holdfast
from holdfast.runtime.driver import driver_of
from holdfast.testing import Stuck, VirtualLoop, run_checked, run_virtual
from holdfast.testing.virtual import START

DAY = 86400.0


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_sleeping_takes_exactly_its_time_and_none() -> None:
    began = time.monotonic()
    assert now() == START
    await asyncio.sleep(40 * DAY)
    assert now() == START + 40 * DAY
    assert time.monotonic() - began < 5


async def test_timers_come_in_order_and_never_early() -> None:
    seen: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()
    for n in range(200):
        at = START + ((n * 7919) % 200) / 7 + 1e-10 * n
        loop.call_at(at, lambda at=at: seen.append((at, now())))
    await asyncio.sleep(60)
    assert [at for at, _ in seen] == sorted(at for at, _ in seen)
    assert all(at == when for at, when in seen)


async def test_a_callback_takes_no_virtual_time() -> None:
    before = now()
    time.sleep(0.002)
    assert now() == before


async def test_a_thread_is_waited_for_in_real_time() -> None:
    async def tick() -> None:
        await asyncio.sleep(30)

    ticking = asyncio.create_task(tick())
    assert await asyncio.to_thread(lambda: (time.sleep(0.02), 7)[1]) == 7
    assert not ticking.done()
    assert 0.015 < now() - START < 5
    await ticking


async def test_time_jumps_again_as_soon_as_a_thread_has_returned() -> None:
    began = time.monotonic()
    for _ in range(200):
        await asyncio.to_thread(int)
        await asyncio.sleep(60)
    assert time.monotonic() - began < 30


async def test_a_deadline_fires_while_a_thread_hangs() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await asyncio.to_thread(release.wait)
    release.set()


async def test_a_worker_thread_of_anyio_is_waited_for() -> None:
    other = asyncio.create_task(asyncio.sleep(30))
    assert await anyio.to_thread.run_sync(lambda: (time.sleep(0.02), 7)[1]) == 7
    assert not other.done()
    await other
    assert now() - START < 40


async def test_a_socket_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    def answer() -> None:
        time.sleep(0.02)
        theirs.send(b"x")

    thread = threading.Thread(target=answer)
    thread.start()
    other = asyncio.create_task(asyncio.sleep(30))
    assert await reader.read(1) == b"x"
    assert not other.done()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    thread.join()
    theirs.close()
    await other  # nothing real is left, so this is a jump


async def test_a_foreign_thread_may_wake_a_loop_without_timers() -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    threading.Timer(0.02, lambda: loop.call_soon_threadsafe(done.set)).start()
    await done.wait()


async def test_a_loop_that_is_never_idle_does_not_stop_the_time() -> None:
    over = asyncio.create_task(asyncio.sleep(0.5))
    while not over.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert now() - START == pytest.approx(0.5, abs=0.01)


async def test_real_time_on_demand() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    began = time.monotonic()
    with loop.real_time():
        await asyncio.sleep(0.03)
    assert time.monotonic() - began >= 0.029


def test_a_deadlock_is_told_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with (
        pytest.raises(Stuck, match="nothing can wake"),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(patience=0.01)) as runner,
    ):
        runner.run(main())


def test_scopes_use_virtual_time() -> None:
    async def main() -> float:
        began = now()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(3600):
                await asyncio.sleep(2 * 3600)
        return now() - began

    assert run_virtual(main()) == 3600


@pytest.mark.real_time("virtual", "asyncio", "uvloop")
async def test_the_marker_chooses_the_loop(holdfast_loop: str) -> None:
    kind = type(asyncio.get_running_loop())
    module = {"virtual": "holdfast.testing.virtual", "uvloop": "uvloop"}
    assert kind.__module__ == module.get(holdfast_loop, "asyncio.unix_events")


@pytest.mark.real_time
async def test_the_marker_alone_means_the_default_loop() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)


@pytest.mark.parametrize("number", [1, 2])
async def test_parameters_and_fixtures_reach_async_tests(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert number in (1, 2)
    assert monkeypatch is not None


# -- what is left behind --------------------------------------------------------------------------


async def leaves_a_task() -> None:
    leaves_a_task.kept = asyncio.create_task(asyncio.sleep(5))  # type: ignore[attr-defined]


async def leaves_a_scope() -> None:
    leaves_a_scope.kept = await holdfast.scope("left").__aenter__()  # type: ignore[attr-defined]


async def leaves_a_timer() -> None:
    driver = driver_of(asyncio.get_running_loop())
    driver.alarm(driver.now() + 1e6, print)


async def leaves_a_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def leaves_an_error() -> None:
    async def fail() -> None:
        raise ValueError("nobody asked")

    asyncio.create_task(fail())  # noqa: RUF006
    await asyncio.sleep(1)


@pytest.mark.parametrize(
    "main",
    [leaves_a_task, leaves_a_scope, leaves_a_timer, leaves_a_cancellation, leaves_an_error],
)
def test_what_is_left_behind_is_found(main) -> None:
    kind = main.__name__.rpartition("_")[2]
    with pytest.raises(AssertionError, match=f"left behind:\n  {kind}:"):
        run_checked(main)
