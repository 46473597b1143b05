"""The stop: everything is asked, ends, or is cut, and each of it is bounded."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import holdfast
from holdfast import Cancelled, CauseKind, lifecycle
from holdfast.domain.tree import Outcome
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle import ExitCode, Host, HostTerms
from tests.runtime.hosting import (
    TERMS,
    Thing,
    forever,
    host_of,
    later,
    lines,
    no_breach,
    now,
    phases,
    records,
    stubborn,
)


def server_of(work: Callable[[], Any], ends: list[Any], seconds: float = 0.0) -> Any:
    """A component that serves `work()` once, in a task of its own, as a server does."""

    class Server(Thing):
        async def start(self) -> None:
            await super().start()
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(self.serve(), name="request")

        async def serve(self) -> None:
            try:
                async with holdfast.timeout(seconds or 3600, name="request"):
                    await work()
                ends.append("done")
            except holdfast.ScopeEnded as error:
                ends.append((type(error).__name__, error.cause.kind, now()))

        async def stop(self, deadline: float) -> None:
            await super().stop(deadline)
            await asyncio.wait([self.task])

    return Server("web", [])


# -- work ------------------------------------------------------------------------------------------


async def test_work_in_flight_ends_and_the_stop_ends_with_it() -> None:
    ends: list[Any] = []
    host = host_of(server_of(lambda: asyncio.sleep(8), ends))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert ends == ["done"]
    assert now() - began == pytest.approx(8)
    no_breach()


async def test_work_that_does_not_end_is_cut_at_the_deadline_with_the_cause_shutdown() -> None:
    ends: list[Any] = []
    host = host_of(server_of(forever, ends))
    later(5, host.stop, "enough")
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert ends == [("Cancelled", CauseKind.SHUTDOWN, began + 15)]
    (cut,) = records(host, "drain.cut")
    assert (cut.subject, cut.cause) == ("1", "the drain deadline has passed")
    (work,) = cut.data["work"]
    assert work["scope"] == "request"
    assert work["task"] == "request"
    assert "forever" in work["waits"]
    assert work["age_s"] == 15
    assert driver_of(asyncio.get_running_loop()).root.outcome is Outcome.EXPIRED
    no_breach()


async def test_scopes_that_are_open_follow_the_process_and_new_ones_are_born_below_it() -> None:
    seen: list[Any] = []
    began = now()

    async def work() -> None:
        async with holdfast.timeout(1000) as mine, holdfast.timeout(8) as tight:
            before = mine.deadline, tight.deadline
            await lifecycle.current().stop_begun()
            seen.append((before, (mine.deadline, tight.deadline)))
            async with holdfast.timeout(500) as new, holdfast.timeout(0.5) as short:
                seen.append((new.deadline, short.deadline))

    host = host_of(server_of(work, []))
    later(5, host.stop)
    await host.run()
    assert seen == [
        ((began + 1000, began + 8), (began + 15, began + 8)),
        (began + 8, began + 5.5),
    ]


async def test_a_deadline_of_ones_own_that_passes_while_draining_is_still_ones_own() -> None:
    ends: list[Any] = []
    host = host_of(server_of(forever, ends, seconds=8))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert ends == [("DeadlineExceeded", CauseKind.DEADLINE, began + 8)]


async def test_grace_that_is_kept_for_shields_comes_out_of_the_drain_and_is_the_shutdowns() -> None:
    ends: list[Any] = []
    tidied: list[float] = []

    async def work() -> None:
        async with holdfast.timeout(1000, grace=2):
            try:
                await forever()
            finally:
                async with holdfast.shield(2):
                    await asyncio.sleep(1.5)
                    tidied.append(now())

    host = host_of(server_of(work, ends))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert tidied == [began + 14.5]
    assert ends == [("Cancelled", CauseKind.SHUTDOWN, began + 14.5)]


async def test_a_shield_that_is_open_at_the_cut_has_its_time_within_the_reserve() -> None:
    tidied: list[float] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            async with holdfast.shield(60):
                await asyncio.sleep(0.9)
                tidied.append(now())
                await forever()

    ends: list[Any] = []
    host = host_of(server_of(work, ends))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert tidied == [began + 15.9]
    assert now() <= began + 19.2
    await asyncio.sleep(10)
    assert len(ends) == 1  # the end of the process bounded it


async def test_after_the_end_nothing_opens() -> None:
    host = host_of(Thing("a", []))
    later(1, host.stop, "enough")
    await host.run()
    coro = forever()
    with pytest.raises(Cancelled, match="shutting down"):
        holdfast.detach(coro)
    with pytest.raises(Cancelled, match="enough"):
        async with holdfast.scope("late"):
            pass


async def test_work_that_swallows_its_cancellation_is_left_behind_by_name() -> None:
    ends: list[Any] = []
    host = host_of(server_of(lambda: stubborn(60), ends))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began < 19.2
    assert "request" in host.abandoned
    assert lines(host, "drain.step") == ["abandoned: 1 were told to end and did not"]
    await asyncio.sleep(60)


async def test_a_loop_that_was_blocked_over_the_deadline_is_told_of_the_shutdown() -> None:
    seen: list[Any] = []
    loop: Any = asyncio.get_running_loop()

    async def work() -> None:
        await lifecycle.current().stop_begun()
        loop.jump(30)  # plain code that ran on, past the deadline
        async with holdfast.timeout(1):
            seen.append("entered")

    ends: list[Any] = []
    host = host_of(server_of(work, ends))
    later(5, host.stop)
    assert await host.run() is ExitCode.TIMED_OUT
    assert seen == []
    assert [(name, kind) for name, kind, _ in ends] == [("Cancelled", CauseKind.SHUTDOWN)]


# -- detached work and background work -------------------------------------------------------------


async def test_detached_work_of_a_request_is_waited_for() -> None:
    done: list[float] = []

    async def audit() -> None:
        await asyncio.sleep(4)
        done.append(now())

    async def work() -> None:
        await asyncio.sleep(6)
        holdfast.detach(audit(), name="audit")

    host = Host(terms=TERMS)
    host.at_exit(lambda: done.append(-1.0))
    host.add("web", server_of(work, []))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert done == [began + 10, -1.0]
    no_breach()


async def test_detached_work_that_does_not_end_is_cut_with_its_origin_named() -> None:
    async def work() -> None:
        holdfast.detach(forever(), name="audit")

    host = host_of(server_of(work, []))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began == pytest.approx(15, abs=0.2)
    (cut,) = records(host, "drain.cut")
    assert [(w["scope"], w["origin"]) for w in cut.data["work"]] == [("audit", "request")]
    no_breach()


async def test_detached_work_that_detaches_more_is_waited_for_as_well() -> None:
    done: list[str] = []

    async def chain(n: int) -> None:
        await asyncio.sleep(1)
        done.append(str(n))
        if n:
            holdfast.detach(chain(n - 1), name=f"chain {n}")

    async def work() -> None:
        holdfast.detach(chain(3), name="chain")

    host = host_of(server_of(work, []))
    later(0.5, host.stop)
    assert await host.run() is ExitCode.CLEAN
    assert done == ["3", "2", "1", "0"]


async def test_background_work_is_cancelled_when_requests_are_over_and_before_hooks() -> None:
    story: list[Any] = []

    async def refresh() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            (me,) = [s for s in holdfast.tree().roots[0].children if s.name == "refresh"]
            story.append(("refresh", me.cancelled.split(" in ")[0], now()))
            raise

    async def start() -> None:
        holdfast.detach(refresh(), name="refresh")

    host = Host(terms=TERMS)
    host.add("cache", start=start)
    host.add("web", server_of(lambda: asyncio.sleep(8), []))
    host.at_exit(lambda: story.append("hook"))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert story == [("refresh", "the process is shutting down", began + 8), "hook"]
    assert lines(host, "drain.step") == ["background: 1 cancelled"]
    no_breach()


# -- components that do not do as they are told ----------------------------------------------------


async def test_who_does_not_answer_is_named_and_forced() -> None:
    story: list[str] = []
    deaf = Thing("deaf", story, prepare=forever)
    fine = Thing("fine", story)
    host = host_of(fine, deaf)
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert lines(host, "shutdown.unanswered") == ["deaf: did not answer in time"]
    assert lines(host, "shutdown.acknowledged") == ["fine"]
    assert story[-5:] == [
        "prepare deaf", "prepare deaf cancelled", "prepare fine", "stop deaf", "stop fine"
    ]  # fmt: skip
    assert deaf.deadlines == [began + 6]  # at once
    assert fine.deadlines == [began + 15]


async def test_who_answers_with_an_error_is_named_and_forced() -> None:
    story: list[str] = []
    host = host_of(Thing("odd", story, prepare=ValueError("what?"), stop=forever))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert lines(host, "shutdown.unanswered") == ["odd: failed: ValueError: what?"]
    (forced,) = lines(host, "component.forced")
    assert "not done in time" in forced
    assert now() - began == pytest.approx(6)  # a moment, and not the drain


async def test_one_whose_preparation_cannot_be_cancelled_does_not_hold_the_stop() -> None:
    host = host_of(Thing("odd", [], prepare=lambda: stubborn(30)), Thing("fine", []))
    later(5, host.stop)
    began = now()
    await host.run()
    assert now() - began == pytest.approx(6, abs=0.2)
    assert host.abandoned == ("prepare odd",)
    await asyncio.sleep(60)


async def test_an_error_at_a_stop_is_recorded_and_the_rest_goes_on() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story), Thing("b", story, stop=OSError("x")), Thing("c", story))
    later(1, host.stop)
    assert await host.run() is ExitCode.CLEAN
    assert lines(host, "component.failed") == ["b: stop: OSError: x"]
    assert story[-3:] == ["stop c", "stop b", "stop a"]
    no_breach()


async def test_a_stop_that_hangs_is_bounded_and_the_rest_goes_on() -> None:
    story: list[str] = []
    hanging = Thing("b", story, stop=forever)
    host = host_of(Thing("a", story), hanging)
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began == pytest.approx(16, abs=0.2)
    assert hanging.hurried == [began + 15]
    assert story[-3:] == ["stop b", "stop b cancelled", "stop a"]
    no_breach()


async def test_stops_that_cannot_be_cancelled_are_left_behind_by_name() -> None:
    story: list[str] = []
    host = Host(terms=TERMS)
    host.add("db", Thing("db", story, stop=lambda: stubborn(60)), serves=False)
    host.add("web", Thing("web", story, stop=lambda: stubborn(60)))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began < 19.5
    assert host.abandoned == ("stop web", "stop db")
    ended = host.journal.records[-1]
    assert ended.data["abandoned"] == ["stop web", "stop db"]
    await asyncio.sleep(60)


async def test_work_with_a_stop_of_its_own_has_until_the_deadline_to_end() -> None:
    story: list[Any] = []
    enough = asyncio.Event()

    async def consume() -> None:
        await enough.wait()
        await asyncio.sleep(3)
        story.append("the last message is done")

    host = Host(terms=TERMS)
    host.add("consumer", run=consume, stop=enough.set)
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert story == ["the last message is done"]
    assert now() - began == pytest.approx(8)


async def test_work_that_does_not_end_by_the_deadline_is_cut() -> None:
    host = Host(terms=TERMS)
    host.add("consumer", run=forever, stop=lambda: None)
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began == pytest.approx(15, abs=0.2)
    no_breach()


async def test_work_that_fails_when_it_is_cancelled_is_told_of() -> None:
    async def consume() -> None:
        try:
            await forever()
        finally:
            raise OSError("cannot say goodbye")

    host = Host(terms=TERMS)
    host.add("consumer", run=consume)
    later(5, host.stop)
    assert await host.run() is ExitCode.CLEAN
    assert lines(host, "component.failed") == ["consumer: stop: OSError: cannot say goodbye"]


async def test_where_everything_hangs_the_stop_is_over_when_the_platform_would_kill() -> None:
    story: list[str] = []
    host = Host(terms=TERMS)
    host.add("db", Thing("db", story, prepare=forever, stop=lambda: stubborn(99)), serves=False)
    host.add("web", Thing("web", story, prepare=forever, stop=lambda: stubborn(99)))
    host.add("worker", run=lambda: stubborn_work(99))
    host.on_stop(forever)
    for _ in range(5):
        host.at_exit(lambda: stubborn(99))
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began <= 5 + TERMS.drain + TERMS.cleanup
    await asyncio.sleep(200)


async def stubborn_work(seconds: float) -> None:
    await stubborn(seconds)


# -- force -----------------------------------------------------------------------------------------


async def test_force_cuts_what_is_under_way_and_names_it() -> None:
    ends: list[Any] = []
    host = Host(terms=TERMS)
    server = server_of(forever, ends)
    host.add("web", server)
    hooks: list[float] = []
    host.at_exit(lambda: hooks.append(now()))
    later(5, host.stop)
    later(7, host.force, "I mean it")
    began = now()
    assert await host.run() is ExitCode.FORCED
    assert ends == [("Cancelled", CauseKind.SHUTDOWN, began + 7)]
    assert now() - began < 8.1
    assert len(hooks) == 1
    assert server.hurried == [began + 7]
    (cut,) = records(host, "drain.cut")
    assert cut.data["forced"] is True
    assert [w["scope"] for w in cut.data["work"]] == ["request"]
    assert driver_of(asyncio.get_running_loop()).root.outcome is Outcome.CANCELLED
    no_breach()


async def test_force_without_a_stop_before_is_a_stop_and_a_force() -> None:
    ends: list[Any] = []
    host = host_of(server_of(forever, ends))
    later(5, host.force)
    began = now()
    assert await host.run() is ExitCode.FORCED
    assert now() - began < 6.1
    assert phases(host)[-3:] == ["terminating", "draining", "stopped"]


async def test_force_ends_the_wait_for_those_who_were_told_and_asked() -> None:
    for what in ("tell", "ask"):
        host = Host(terms=HostTerms(tell=9, acknowledge=9, drain=20, cleanup=4))
        host.add("a", Thing("a", [], prepare=forever))
        if what == "tell":
            host.on_stop(forever)
        later(1, host.stop)
        later(2, host.force)
        began = now()
        assert await host.run() is ExitCode.FORCED
        assert now() - began < 3.1
        assert lines(host, "shutdown.unanswered")[0].startswith("a: ")


async def test_force_again_gives_clean_up_up() -> None:
    story: list[str] = []
    host = Host(terms=HostTerms(drain=20, cleanup=60))
    host.add("db", Thing("db", story), serves=False)
    host.at_exit(lambda: story.append("never run"), name="later")
    host.at_exit(forever, name="hangs")
    later(1, host.stop)
    later(2, host.force)
    began = now()
    assert await host.run() is ExitCode.FORCED
    assert now() - began == pytest.approx(2, abs=0.3)
    assert lines(host, "hook.failed") == [
        "hangs: was not done in time", "later: not run: clean-up was given up"
    ]  # fmt: skip
    assert "never run" not in story


# -- hooks of the process, and who is told ---------------------------------------------------------


async def test_a_hook_that_hangs_has_its_share_and_the_rest_comes_after_it() -> None:
    ran: list[tuple[str, float]] = []
    host = Host(terms=TERMS)
    host.add("db", Thing("db", []), serves=False)
    host.at_exit(lambda: ran.append(("last", now())), name="last")
    host.at_exit(forever, name="hangs")
    host.at_exit(lambda: ran.append(("first", now())), name="first")
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    # 4 s of reserve: the first of four steps took nothing, so the second has a third of all.
    assert ran == [("first", began + 5), ("last", pytest.approx(began + 5 + 4 / 3))]
    assert lines(host, "hook.failed") == ["hangs: was not done in time"]
    assert lines(host, "hook.done") == ["first", "last"]
    assert lines(host, "component.stopped") == ["db"]
    no_breach()


async def test_a_hook_that_cannot_be_cancelled_is_left_behind_by_name() -> None:
    host = Host(terms=TERMS)
    host.at_exit(lambda: stubborn(60), name="rock")
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.TIMED_OUT
    assert now() - began < 9.5
    assert host.abandoned == ("at_exit rock",)
    await asyncio.sleep(60)


async def test_a_hook_that_fails_is_recorded_and_the_rest_goes_on() -> None:
    ran: list[str] = []

    async def bad() -> None:
        raise KeyError("x")

    host = Host(terms=TERMS)
    host.at_exit(lambda: ran.append("a"))
    host.at_exit(bad, name="bad")
    host.at_exit(lambda: 1 / 0, name="worse")
    later(1, host.stop)
    assert await host.run() is ExitCode.CLEAN
    assert ran == ["a"]
    assert lines(host, "hook.failed") == [
        "worse: ZeroDivisionError: division by zero", "bad: KeyError: 'x'"
    ]  # fmt: skip


async def test_hooks_see_what_is_left_and_may_open_scopes() -> None:
    seen: list[float] = []

    async def hook() -> None:
        seen.append(holdfast.remaining())
        async with holdfast.timeout(100), holdfast.tasks() as group:
            group.start(asyncio.sleep(0.5))
        seen.append(holdfast.remaining())

    host = host_of(server_of(forever, []))
    host.at_exit(hook)
    later(5, host.stop)
    await host.run()
    assert len(seen) == 2
    assert 0.5 < seen[0] <= 4
    assert seen[1] == pytest.approx(seen[0] - 0.5)


async def test_the_stop_is_announced_before_anybody_is_asked() -> None:
    story: list[str] = []
    host = Host(terms=TERMS)
    host.add("web", Thing("web", story))

    async def goodbye() -> None:
        await asyncio.sleep(0.5)
        story.append(f"goodbye, stopping={host.stopping}")

    async def waits() -> None:
        await host.stop_begun()
        story.append("begun")
        await forever()

    host.add("streams", run=waits)
    host.on_stop(goodbye)
    host.on_stop(lambda: story.append("plain"))
    host.on_stop(lambda: 1 / 0, name="bad")
    host.on_stop(forever, name="hangs")
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert story == [
        "start web", "begun", "plain", "goodbye, stopping=True", "prepare web", "stop web"
    ]  # fmt: skip
    assert lines(host, "hook.failed") == [
        "bad: ZeroDivisionError: division by zero", "hangs: was not done in time"
    ]  # fmt: skip
    assert now() - began == pytest.approx(6)
    await host.stop_begun()  # at once


async def test_pools_are_cleaned_while_others_are_told_and_asked() -> None:
    class Pool:
        def __init__(self, plan: Any) -> None:
            self.plan, self.idle = plan, 0.0

        async def preclean(self, idle: float) -> int:
            self.idle = idle
            if isinstance(self.plan, BaseException):
                raise self.plan
            await (forever() if self.plan is None else asyncio.sleep(self.plan))
            return 7

    pools = {"a": Pool(0.5), "b": Pool(OSError("x")), "c": Pool(None), "d": Pool(0.5)}
    host = host_of(Thing("web", []))
    for name, pool in pools.items():
        host.pool(name, pool)
    later(5, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert [pool.idle for pool in pools.values()] == [0.1] * 4
    cleaned = {r.subject: (r.detail, r.data["closed"], r.at) for r in records(host, "pool.cleaned")}
    assert cleaned == {
        "b": ("OSError: x", None, began + 5),
        "a": ("7 idle connections closed", 7, began + 5.5),
        "d": ("7 idle connections closed", 7, began + 5.5),
        "c": ("was not done in time", None, began + 7),
    }
    no_breach()


# -- whoever waits ---------------------------------------------------------------------------------


async def test_a_cancelled_run_stops_the_process_first() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, stop=1))
    task = asyncio.ensure_future(host.run())
    later(5, task.cancel)
    began = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert story[-1] == "stop a"
    assert now() - began == pytest.approx(6)
    assert host.code is ExitCode.CLEAN
    assert host.cause == "the program: the task that waits was cancelled"
    no_breach()


async def test_cancelled_again_it_is_forced() -> None:
    host = host_of(server_of(forever, []))
    task = asyncio.ensure_future(host.run())
    later(5, task.cancel)
    later(6, task.cancel)
    began = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() - began < 7.1
    assert host.code is ExitCode.FORCED
    no_breach()


async def test_scopes_around_the_run_are_not_cut_by_it() -> None:
    host = host_of(server_of(forever, []))
    later(5, host.stop)
    async with holdfast.timeout(3600, name="main"), holdfast.scope("inner"):
        assert await host.run() is ExitCode.TIMED_OUT
        await asyncio.sleep(1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    no_breach()


async def test_a_deadline_around_the_run_stops_the_process() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, stop=1))
    began = now()
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(5, name="main"):
            await host.run()
    assert now() - began == pytest.approx(6)
    assert story[-1] == "stop a"
    assert host.code is ExitCode.CLEAN
    no_breach()


async def test_a_run_in_a_group_of_tasks_is_not_forced_by_its_own_stop() -> None:
    host = host_of(server_of(lambda: asyncio.sleep(8), []))
    later(5, host.stop)
    with pytest.raises(Cancelled):
        async with holdfast.tasks("main") as group:
            task = group.start(host.run())
            await forever()
    assert host.code is ExitCode.CLEAN
    assert task.cancelled() or task.result() is ExitCode.CLEAN
    no_breach()


# -- every phase, every await ----------------------------------------------------------------------


async def busy_host() -> tuple[Host, list[str]]:
    """A host in which everything takes a while."""
    story: list[str] = []
    host = Host(terms=TERMS)
    host.add("db", Thing("db", story, start=1, prepare=0.3, stop=0.5), serves=False)
    host.add("web", Thing("web", story, start=1, prepare=0.3, stop=2))
    host.add("worker", run=forever)
    host.on_stop(lambda: asyncio.sleep(0.5))
    host.at_exit(lambda: asyncio.sleep(0.5))
    return host, story


@pytest.mark.parametrize("again", [None, 0.1, 0.6, 1.0, 2.0, 3.3, 3.8])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.5, 2.0, 5.0])
async def test_a_stop_at_any_time_and_a_force_at_any_time_after(
    at: float, again: float | None
) -> None:
    host, story = await busy_host()
    later(at, host.stop)
    if again is not None:
        later(at + again, host.force)
    began = now()
    code = await host.run()
    # A stop has a bound, whatever happens.
    assert now() - began <= at + TERMS.drain + TERMS.cleanup + 0.2
    assert code in (ExitCode.CLEAN, ExitCode.FORCED)
    found = phases(host)
    order = ["initializing", "running", "terminating", "draining", "stopped"]
    assert found == [phase for phase in order if phase in found]
    assert found[-3:] == order[-3:]
    # Exactly what has started is stopped.
    up = set(lines(host, "component.started"))
    stopped = {
        line.partition(":")[0] for line in lines(host, "component.stopped", "component.forced")
    }
    if code is ExitCode.CLEAN:
        assert up == stopped
    assert stopped <= up
    assert len([line for line in story if line == "stop web"]) <= 1
    no_breach()


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_at_every_await(native: bool) -> None:
    """Whatever the host waits for, a cancellation of `run` there ends in an orderly stop."""
    for step in range(1, 90):
        host, _ = await busy_host()
        later(3, host.stop)
        task = asyncio.ensure_future(host.run())
        began = now()
        turns = 0
        # The host wakes at most every tenth of a second of this plan; so look in between.
        while turns < step and not task.done():
            await asyncio.sleep(0.1)
            turns += 1
        if native:
            task.cancel()
        else:
            task.cancel()
            later(0.05, task.cancel)
        await asyncio.wait([task])
        assert now() - began <= 3 + 0.1 * step + 15
        assert host.phase == "stopped"
        no_breach()
        if turns < step:
            break
    else:
        pytest.fail("the plan never came to its end")


async def test_a_host_that_is_torn_down_with_its_loop_leaves_nobody_waiting() -> None:
    host = host_of(Thing("a", []))
    await host.start()
    (life,) = [t for t in asyncio.all_tasks() if t.get_name() == "host shop"]
    waits = asyncio.ensure_future(host.ended())
    await asyncio.sleep(1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait([life, waits])
    assert waits.cancelled()
    assert host.journal.records[-1].kind == "process.ended"
