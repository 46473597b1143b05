"""Health: alive depends on nothing; ready on the host and on checks that never block."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import holdfast
from holdfast import UsageError, lifecycle
from holdfast.runtime.lifecycle import Health, HealthReport, Host
from tests.runtime.hosting import TERMS, Thing, forever, host_of, now, stubborn


def statuses(report: HealthReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


async def test_without_checks_it_is_ready() -> None:
    health = Health()
    report = await health.ready()
    assert (report.ready, report.why, report.checks) == (True, "", ())
    assert report.as_dict() == {"status": "ready", "why": "", "checks": {}}
    assert health.live() == {"status": "alive"}


async def test_each_check_is_told_with_its_time_and_its_error() -> None:
    health = Health()

    async def fine() -> None:
        await asyncio.sleep(0.5)

    async def broken() -> None:
        await asyncio.sleep(0.25)
        raise OSError("refused")

    async def says_no() -> bool:
        return False

    health.check("fine", fine)
    health.check("broken", broken)
    health.check("no", says_no)
    health.check("slow", forever, timeout=2)
    health.check("plain", lambda: True)
    report = await health.ready()
    assert statuses(report) == {
        "fine": "up", "broken": "down", "no": "down", "slow": "late", "plain": "up"
    }  # fmt: skip
    assert not report.ready
    assert report.why == "broken is down, no is down, slow is late"
    found = report.as_dict()["checks"]
    assert found["broken"] == {
        "status": "down", "seconds": 0.25, "error": "OSError: refused", "critical": True
    }  # fmt: skip
    assert found["fine"]["seconds"] == 0.5
    assert found["no"]["error"] == "it said no"
    assert found["slow"]["error"] == "not done after 2 s"


async def test_what_is_not_critical_is_told_and_leaves_it_ready() -> None:
    health = Health()
    health.check("cache", lambda: 1 / 0, critical=False)
    report = await health.ready()
    assert report.ready
    assert statuses(report) == {"cache": "down"}
    assert "ZeroDivisionError" in report.checks[0].error


async def test_the_checks_of_one_refresh_run_together_each_in_its_own_time() -> None:
    health = Health()
    for n in range(50):
        health.check(str(n), lambda: asyncio.sleep(1))
    began = now()
    assert (await health.ready()).ready
    assert now() - began == pytest.approx(1)


async def test_a_report_is_given_again_while_it_is_fresh() -> None:
    calls: list[float] = []

    async def probe() -> None:
        calls.append(now())

    health = Health(cache=2)
    health.check("x", probe)
    first = await health.ready()
    await asyncio.sleep(1.5)
    assert await health.ready() is first
    await asyncio.sleep(0.5)
    assert await health.ready() is not first
    assert len(calls) == 2


async def test_a_thousand_who_ask_share_one_refresh_and_none_can_cancel_it() -> None:
    calls: list[float] = []

    async def probe() -> None:
        calls.append(now())
        await asyncio.sleep(1)

    health = Health()
    health.check("x", probe)
    first = asyncio.ensure_future(health.ready())
    others = [asyncio.ensure_future(health.ready()) for _ in range(1000)]
    await asyncio.sleep(0.5)
    first.cancel()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.1, name="impatient"):
            await health.ready()
    done = [await other for other in others]
    assert len(calls) == 1
    assert first.cancelled()
    assert all(report is done[0] and report.ready for report in done)


async def test_a_hung_check_does_not_pile_up() -> None:
    begun: list[float] = []

    async def hangs() -> None:
        begun.append(now())
        await stubborn(100)

    health = Health(cache=0)
    health.check("hangs", hangs, timeout=1)
    health.check("fine", lambda: asyncio.sleep(0))
    seen = []
    for _ in range(10):
        report = await health.ready()
        seen.append(report.checks[0].status)
        assert report.checks[1].status == "up"
        await asyncio.sleep(5)
    assert seen == ["late"] + ["stuck"] * 9
    assert len(begun) == 1
    await asyncio.sleep(100)
    assert (await health.ready()).checks[0].status == "late"
    assert len(begun) == 2
    await asyncio.sleep(200)


async def test_a_plain_check_runs_in_a_thread_and_never_blocks_the_loop() -> None:
    loop: Any = asyncio.get_running_loop()
    threads: list[str] = []
    release = threading.Event()

    def blocks() -> None:
        threads.append(threading.current_thread().name)
        release.wait(20)

    health = Health(cache=0)
    health.check("blocks", blocks, timeout=0.2)
    with loop.real_time():
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        counting = asyncio.ensure_future(count())
        first = await health.ready()
        second = await health.ready()
        release.set()
        counting.cancel()
        await asyncio.wait([counting])
        while any(t.name == "check blocks" for t in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        third = await health.ready()
    assert [r.checks[0].status for r in (first, second, third)] == ["late", "stuck", "up"]
    assert threads == ["check blocks"] * 2
    assert turns > 3


async def test_a_plain_function_may_hand_back_something_to_wait_for() -> None:
    health = Health()
    health.check("x", lambda: asyncio.sleep(1, False))
    assert (await health.ready()).checks[0].error == "it said no"


async def test_the_time_of_a_check_is_its_own_or_that_of_all() -> None:
    health = Health(cache=0, timeout=2)
    health.check("all", forever)
    health.check("own", forever, timeout=5)
    assert [round(c.seconds, 3) for c in (await health.ready()).checks] == [2.0, 5.0]


async def test_a_check_without_time_and_a_name_that_is_taken() -> None:
    health = Health()
    health.check("x", forever, timeout=0)
    assert (await health.ready()).checks[0].status == "late"
    with pytest.raises(UsageError, match="'x' already"):
        health.check("x", forever)


# -- with a host -----------------------------------------------------------------------------------


async def test_a_host_is_ready_between_start_and_stop_and_nothing_is_checked_outside() -> None:
    calls: list[str] = []
    host = host_of(Thing("a", [], start=2, stop=2))

    async def probe() -> None:
        calls.append(str(host.phase))

    host.health.check("x", probe)
    host.health.cache = 0
    assert (await host.health.ready()).why == "initializing"
    starting = asyncio.ensure_future(host.start())
    await asyncio.sleep(1)
    assert (await host.health.ready()).why == "initializing"
    await starting
    assert (await host.health.ready()).ready
    host.stop()
    report = await host.health.ready()
    assert (report.ready, report.why, report.checks) == (False, "terminating", ())
    await asyncio.sleep(1)
    assert (await host.health.ready()).why == "draining"
    await host.ended()
    assert (await host.health.ready()).why == "stopped"
    assert calls == ["running"]


async def test_a_fresh_report_does_not_outlive_the_stop() -> None:
    host = Host(terms=TERMS)
    host.add("a", start=lambda: None)
    await host.start()
    host.health.check("slow", lambda: asyncio.sleep(2))
    first = asyncio.ensure_future(host.health.ready())
    await asyncio.sleep(1)
    host.stop()
    # It was asked while the host was ready, and is answered when it is not.
    assert not (await first).ready
    assert not (await host.health.ready()).ready
    await host.ended()
    await asyncio.sleep(2)


async def test_checks_are_bounded_by_the_host_that_stops_under_them() -> None:
    host = Host(terms=TERMS)
    host.add("a", start=lambda: None)
    host.health.check("hangs", forever, timeout=60)
    await host.start()
    asked = asyncio.ensure_future(host.health.ready())
    await asyncio.sleep(1)
    host.stop()
    began = now()
    await host.ended()
    assert not (await asked).ready
    assert now() - began < 1.5
    assert lifecycle.Health is Health
