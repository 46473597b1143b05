"""The host: start, serve, stop; who dies, who fails, who hangs."""

# The block under test is what raises, and it is never a single statement.
from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast
from holdfast import ConfigError, UsageError, lifecycle
from holdfast.domain.cause import CauseKind
from holdfast.domain.tree import Outcome
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle import ComponentFailed, ExitCode, Host, Phase
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

ALL = ["initializing", "running", "terminating", "draining", "stopped"]


# -- start and stop --------------------------------------------------------------------------------


async def test_a_whole_life_in_order() -> None:
    story: list[str] = []
    host = host_of(Thing("db", story, start=1), Thing("web", story, start=1))
    began = now()
    later(10, host.stop, "enough")
    assert await host.run() is ExitCode.CLEAN
    assert story == [
        "start db", "start web", "prepare web", "prepare db", "stop web", "stop db"
    ]  # fmt: skip
    assert phases(host) == ALL
    assert now() == began + 10
    assert host.phase is Phase.STOPPED
    assert [r.data["ready"] for r in records(host, "ready.changed")] == [False, True, False]
    assert driver_of(asyncio.get_running_loop()).root.outcome is Outcome.DONE
    ended = host.journal.records[-1]
    assert (ended.kind, ended.subject, ended.cause) == (
        "process.ended", "clean", "the program: enough"
    )  # fmt: skip
    assert host.journal.records[-2].kind == "process.snapshot"
    no_breach()


async def test_what_needs_nothing_of_one_another_starts_and_stops_together() -> None:
    story: list[str] = []
    things = [Thing(name, story, start=1, stop=1) for name in "abc"]
    host = host_of(*things, needs={"a": (), "b": (), "c": ("a", "b")})
    began = now()
    await host.start()
    assert now() == began + 2
    host.stop()
    assert await host.ended() is ExitCode.CLEAN
    assert now() == began + 4
    assert story[:3] == ["start a", "start b", "start c"]
    assert story[-3:] == ["stop c", "stop a", "stop b"]


async def test_ready_only_when_all_are_up_and_no_longer_when_the_stop_begins() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, start=1), Thing("b", story, start=1, stop=1))
    seen: list[tuple[float, bool]] = []
    began = now()
    for at in (0.5, 1.5, 2.5, 5.5):
        later(at, lambda: seen.append((now() - began, host.ready)))
    later(5, host.stop)
    await host.run()
    assert seen == [(0.5, False), (1.5, False), (2.5, True), (5.5, False)]


async def test_functions_plain_and_not_and_a_task_whose_work_is_the_component() -> None:
    story: list[Any] = []
    host = Host(terms=TERMS)

    async def connect() -> None:
        story.append("connect")

    async def consume() -> None:
        story.append("consume")
        try:
            await forever()
        except asyncio.CancelledError:
            here = holdfast.current().scope
            (cause,) = [
                s.cancelled for s in holdfast.tree().roots[0].children if s.name == "consumer"
            ]
            story.append((here, cause.split(" in ")[0]))
            raise

    host.add("db", start=connect, stop=lambda: story.append("close"))
    host.add("flag", start=lambda: story.append("up"), stop=lambda deadline: story.append(deadline))
    host.add("consumer", run=consume)
    later(1, host.stop)
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert story == [
        "connect", "up", "consume", ("consumer", "the process is shutting down"),
        pytest.approx(began + 1 + 2), "close",
    ]  # fmt: skip


async def test_the_deadline_is_given_to_who_asks_for_it_and_not_to_who_has_another_argument() -> (
    None
):
    given: list[Any] = []
    host = Host(terms=TERMS)
    host.add("a", stop=lambda deadline: given.append("a"), serves=True)
    host.add("b", stop=lambda timeout=None: given.append(timeout))
    host.add("c", stop=lambda *, force=False: given.append(force))
    host.add("d", stop=lambda deadline=0.0: given.append(deadline > 0))
    later(1, host.stop)
    assert await host.run() is ExitCode.CLEAN
    assert given == [True, False, None, "a"]


async def test_servers_get_the_drain_deadline_and_the_rest_its_share_of_the_reserve() -> None:
    story: list[str] = []
    db, web = Thing("db", story), Thing("web", story)
    host = Host(terms=TERMS)
    host.add("db", db, serves=False)
    host.add("web", web)
    later(5, host.stop)
    began = now()
    await host.run()
    assert web.deadlines == [began + 15]
    assert began + 5 < db.deadlines[0] <= began + 9
    assert [r.deadline for r in web.requests] == [began + 15]
    assert [r.answer_by for r in web.requests] == [began + 6]
    assert web.requests[0].cause.kind is CauseKind.SHUTDOWN
    assert web.requests[0].cause.detail == "the program"


async def test_hooks_come_between_those_who_serve_and_the_rest() -> None:
    story: list[str] = []
    host = Host(terms=TERMS)
    host.add("db", Thing("db", story), serves=False)
    host.add("web", Thing("web", story))
    host.add("metrics", Thing("metrics", story), serves=False)  # stands on what serves
    host.at_exit(lambda: story.append("first"))
    host.at_exit(lambda: story.append("second"))
    later(5, host.stop)
    await host.run()
    assert story[-5:] == ["stop metrics", "stop web", "second", "first", "stop db"]


async def test_a_second_stop_of_the_program_changes_nothing() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, stop=2))
    answers: list[bool] = []
    later(1, lambda: answers.append(host.stop("first")))
    later(2, lambda: answers.append(host.stop("second")))
    assert await host.run() is ExitCode.CLEAN
    assert answers == [True, False]
    assert host.cause == "the program: first"
    assert host.stop("after the end") is False


async def test_a_thousand_components() -> None:
    story: list[str] = []
    things = [Thing(f"c{n}", story, start=1, prepare=0.1, stop=1) for n in range(1000)]
    needs = {f"c{n}": [f"c{n - 100}"] if n >= 100 else [] for n in range(1000)}
    host = host_of(*things, needs=needs, terms=lifecycle.HostTerms(drain=100))
    began = now()
    await host.start()
    assert now() - began == pytest.approx(10)
    assert all(thing.up for thing in things)
    host.stop()
    assert await host.ended() is ExitCode.CLEAN
    assert now() - began == pytest.approx(10 + 1 + 10)
    assert not any(thing.up for thing in things)
    assert len(records(host, "component.stopped")) == 1000
    no_breach()


# -- what can go wrong at the start ----------------------------------------------------------------


async def test_one_that_cannot_start_ends_the_rest_and_is_the_error() -> None:
    story: list[str] = []
    boom = ValueError("no such host")
    host = host_of(
        Thing("a", story),
        Thing("b", story, start=boom),
        Thing("c", story, start=100),
        Thing("d", story),
        needs={"b": ("a",), "c": ("a",), "d": ("b", "c")},
    )
    with pytest.raises(ComponentFailed, match="'b' cannot start: ValueError: no such host") as got:
        await host.start()
    assert got.value.__cause__ is boom
    assert got.value.component == "b"
    assert story == ["start a", "start b", "start c", "start c cancelled", "prepare a", "stop a"]
    assert phases(host) == ["initializing", "terminating", "draining", "stopped"]
    assert host.code is ExitCode.FAILED_TO_START
    no_breach()


async def test_run_answers_with_the_exit_code_of_a_failed_start() -> None:
    host = host_of(Thing("b", [], start=ValueError("no")))
    assert await host.run() is ExitCode.FAILED_TO_START
    assert lines(host, "component.failed") == ["b: cannot start: ValueError: no"]


async def test_the_start_is_bounded() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, start=15), Thing("b", story, start=forever))
    began = now()
    assert await host.run() is ExitCode.FAILED_TO_START
    assert now() - began == pytest.approx(20, abs=0.1)
    assert "start b cancelled" in story
    assert "stop a" in story
    assert "stop b" not in story
    assert "deadline exceeded" in host.cause


async def test_a_start_that_cannot_be_cancelled_does_not_hold_the_stop() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, start=lambda: stubborn(60)), terms=TERMS)
    began = now()
    assert await host.run() is ExitCode.FAILED_TO_START
    assert now() - began < 25
    assert host.abandoned == ("start a",)
    await asyncio.sleep(60)


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5])
async def test_a_stop_during_the_start_stops_what_has_started(at: float) -> None:
    story: list[str] = []
    host = host_of(*[Thing(name, story, start=1) for name in "abc"])
    later(at, host.stop, "changed my mind")
    began = now()
    assert await host.run() is ExitCode.CLEAN
    assert now() - began == pytest.approx(at)
    started = "abc"[: int(at)]
    assert [s for s in story if s.startswith("stop")] == [f"stop {n}" for n in reversed(started)]
    assert f"start {'abc'[int(at)]} cancelled" in story
    assert phases(host) == ["initializing", "terminating", "draining", "stopped"]
    no_breach()


async def test_start_returns_when_a_stop_came_meanwhile_and_all_is_over() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story, start=5))
    later(1, host.stop)
    await host.start()
    assert host.phase is Phase.STOPPED
    assert await host.ended() is ExitCode.CLEAN


async def test_orders_that_cannot_be_are_refused_before_anything_starts() -> None:
    story: list[str] = []
    host = host_of(Thing("a", story), Thing("b", story), needs={"a": ("b",), "b": ("a",)})
    with pytest.raises(ConfigError, match="a -> b -> a"):
        await host.run()
    host = host_of(Thing("a", story), needs={"a": ("dp",)})
    with pytest.raises(ConfigError, match="needs 'dp'"):
        await host.start()
    assert story == []
    with pytest.raises(UsageError):
        lifecycle.current()


# -- who dies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, OSError("the socket is gone")])
async def test_one_that_dies_takes_the_process_down_with_its_cause(error: Any) -> None:
    story: list[str] = []
    db, web = Thing("db", story), Thing("web", story, stop=1)
    host = host_of(db, web)
    later(5, db.die, error)
    began = now()
    assert await host.run() is ExitCode.COMPONENT_DIED
    why = "OSError: the socket is gone" if error else "ended by itself"
    assert host.cause == f"component 'db' died: {why}"
    assert lines(host, "component.died") == [f"db: {why}"]
    assert now() - began == pytest.approx(6)
    assert story[-3:] == ["prepare web", "stop web", "stop db"]  # it may have left something
    assert driver_of(asyncio.get_running_loop()).root.outcome is Outcome.FAILED
    no_breach()


async def test_work_that_returns_or_raises_has_died() -> None:
    async def returns() -> None:
        await asyncio.sleep(1)

    async def raises() -> None:
        await asyncio.sleep(1)
        raise KeyError("x")

    for run, why in ((returns, "ended by itself"), (raises, "KeyError: 'x'")):
        host = Host(terms=TERMS)
        host.add("worker", run=run)
        assert await host.run() is ExitCode.COMPONENT_DIED
        assert host.cause == f"component 'worker' died: {why}"


async def test_one_that_dies_while_others_start_ends_the_start() -> None:
    story: list[str] = []
    a = Thing("a", story)
    host = host_of(a, Thing("b", story, start=10))
    later(1, a.die)
    assert await host.run() is ExitCode.FAILED_TO_START
    assert "start b cancelled" in story


async def test_one_that_dies_while_the_process_stops_is_told_and_changes_nothing() -> None:
    story: list[str] = []
    a, b = Thing("a", story), Thing("b", story, stop=3)
    host = host_of(a, b)
    later(1, host.stop)
    later(2, a.die, OSError("x"))
    assert await host.run() is ExitCode.CLEAN
    assert lines(host, "component.died") == ["a: OSError: x"]
    assert host.cause == "the program"


# -- the face --------------------------------------------------------------------------------------


async def test_current_is_the_host_of_this_loop_and_says_what_to_do_without_one() -> None:
    with pytest.raises(UsageError, match=r"await its run\(\)"):
        lifecycle.current()
    seen: list[Host] = []
    host = Host("shop", terms=TERMS)
    host.add("a", start=lambda: seen.append(lifecycle.current()))
    await host.start()
    assert seen == [host]
    assert lifecycle.current() is host
    with pytest.raises(UsageError, match="another host runs"):
        await Host().start()
    host.stop()
    await host.ended()
    with pytest.raises(UsageError):
        lifecycle.current()


def test_current_without_a_loop() -> None:
    with pytest.raises(UsageError, match="keep the object"):
        lifecycle.current()


async def test_calls_that_make_no_sense() -> None:
    host = Host(terms=TERMS)
    thing = Thing("a", [])
    with pytest.raises(UsageError, match="an object or made of functions"):
        host.add("a", thing, start=lambda: None)
    with pytest.raises(UsageError, match="needs an object"):
        host.add("a")
    with pytest.raises(UsageError, match="name of its own"):
        host.add("", thing)
    with pytest.raises(UsageError, match="part of the drain"):
        host.add("a", run=forever, serves=False)
    work = forever()
    with pytest.raises(UsageError, match=r"not run\(\)"):
        host.add("a", run=work)  # type: ignore[arg-type]
    host.add("a", thing)
    with pytest.raises(UsageError, match="name of its own"):
        host.add("a", thing)
    with pytest.raises(UsageError, match="not started"):
        host.stop()
    with pytest.raises(UsageError, match="not started"):
        await host.ended()
    await host.start()
    with pytest.raises(UsageError, match="too late"):
        host.add("b", thing)
    with pytest.raises(UsageError, match="times are fixed"):
        host.terms = TERMS
    with pytest.raises(UsageError, match="started before"):
        await host.run()
    host.stop()
    await host.ended()


def test_terms_that_make_no_sense() -> None:
    for name in ("tell", "drain", "cleanup", "unwinding"):
        for value in (-1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=name):
                lifecycle.HostTerms(**{name: value})
    assert lifecycle.HostTerms(start=float("inf")).start == float("inf")


async def test_a_start_without_a_bound() -> None:
    host = host_of(Thing("a", [], start=100_000), terms=lifecycle.HostTerms(start=float("inf")))
    await host.start()
    host.stop()
    assert await host.ended() is ExitCode.CLEAN


async def test_two_processes_one_after_the_other_on_one_loop() -> None:
    for _ in range(2):
        host = host_of(Thing("a", []))
        later(1, host.stop)
        assert await host.run() is ExitCode.CLEAN
        with pytest.raises(holdfast.Cancelled) as caught:
            async with holdfast.timeout(1):
                pass
        assert caught.value.cause.kind is CauseKind.SHUTDOWN


async def test_what_starts_in_a_component_is_not_born_below_its_start() -> None:
    seen: list[Any] = []

    async def request() -> None:
        async with holdfast.timeout(5, name="request") as scope:
            seen.append((scope.path, scope.origin, scope.remaining()))

    async def start() -> None:
        seen.append(holdfast.remaining())
        asyncio.get_running_loop().create_task(request())

    host = Host(terms=TERMS)
    host.add("server", start=start)
    await host.start()
    await asyncio.sleep(1)
    host.stop()
    await host.ended()
    assert seen == [float("inf"), ("request", "", 5.0)]
