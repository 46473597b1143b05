"""The timeline: what is read from records, and that no list of records is too much for it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.lifecycle.timeline import Fate, Story, Timeline, Tone, timelines
from holdfast.domain.record import KINDS, Record

WALL = 1_000_000.0


def rec(at: float, kind: str, subject: str = "", pid: int = 7, **data: Any) -> Record:
    return Record(at, kind, subject, wall=WALL + at, pid=pid, data=data)


def one(*records: Record) -> Story:
    (timeline,) = timelines(records)
    (story,) = timeline.stories
    return story


BEGUN = (
    rec(10.0, "process.started", "shop"),
    rec(10.0, "phase.entered", "initializing"),
    rec(10.1, "component.started", "db"),
    rec(10.2, "component.started", "http"),
    rec(10.3, "phase.entered", "running"),
)
TOLD = (
    rec(50.0, "signal.received", "SIGTERM", meaning="stop", sender="process 1 (kubelet)"),
    rec(50.001, "phase.entered", "terminating"),
    rec(50.001, "stop.begun", until=60.0, end=65.0),
    rec(50.002, "shutdown.requested", "http"),
    rec(50.002, "shutdown.requested", "db"),
    rec(50.003, "drain.step", "announce", connections=60, in_flight=48),
    rec(50.004, "shutdown.acknowledged", "http"),
    rec(50.005, "shutdown.acknowledged", "db"),
    rec(50.01, "phase.entered", "draining"),
    rec(50.5, "drain.step", "lame_duck_over"),
)
ENDED = (
    rec(51.0, "drain.step", "done", left=0),
    rec(51.1, "component.stopped", "http"),
    rec(51.2, "component.stopped", "db"),
    rec(51.3, "hook.done", "flush"),
    rec(51.4, "phase.entered", "stopped"),
    rec(51.4, "process.snapshot", "shop", uptime_s=41.4, requests={"served": 9}),
    rec(51.4, "process.ended", "clean", code=0),
)


def test_a_clean_stop() -> None:
    story = one(*BEGUN, *TOLD, *ENDED)
    assert story.verdict == (
        "Clean stop in 1.4 s: SIGTERM by process 1 (kubelet); 48 requests finished, none cut"
    )
    assert (story.pid, story.service, story.role, story.tone) == (7, "shop", "process", Tone.GOOD)
    assert (story.began, story.stop, story.ended, story.exit_code) == (-40.0, 0.0, 1.4, 0)
    assert (story.deadline, story.grace) == (10.0, 15.0)
    assert [(span.name, span.began, span.open) for span in story.phases] == [
        ("initializing", -40.0, False),
        ("running", -39.7, False),
        ("terminating", 0.001, False),
        ("draining", 0.01, False),
        ("stopped", 1.4, False),
    ]
    assert [(span.name, span.began, span.ended) for span in story.drain] == [
        ("lame duck", 0.003, 0.5),
        ("letting go", 0.5, 1.0),
    ]
    db, http = story.lanes
    assert (db.name, db.started, db.asked, db.answered, db.ended, db.fate) == (
        "db", -39.9, 0.002, 0.005, 1.2, Fate.STOPPED,
    )  # fmt: skip
    assert http.ended == 1.1
    assert [(point.at, point.count) for point in story.flight] == [(0.003, 48), (1.0, 0)]
    assert [mark.subject for mark in story.hooks] == ["flush"]
    assert story.snapshot["requests"] == {"served": 9}


def test_the_order_of_the_records_does_not_matter() -> None:
    records = [*BEGUN, *TOLD, *ENDED]
    told = timelines(records)[0].as_dict()
    # Equal instants keep their order, so those are left out here.
    distinct = [Record(r.at + n / 1e4, r.kind, r.subject, wall=r.wall, pid=r.pid, data=r.data)
                for n, r in enumerate(records)]  # fmt: skip
    straight = timelines(distinct)[0]
    shuffled = list(distinct)
    random.Random(5).shuffle(shuffled)
    assert timelines(shuffled)[0] == straight
    assert len(told["stories"][0]["marks"]) == len(records)


def test_who_did_not_answer_is_named() -> None:
    unanswered = rec(51.0, "shutdown.unanswered", "db")
    forced = rec(51.2, "component.forced", "db")
    story = one(*BEGUN, *TOLD, unanswered, forced, *ENDED[:2], *ENDED[3:])
    assert story.verdict.endswith("none cut; component 'db' did not answer and was forced")
    assert story.verdict.startswith("Clean stop in 1.4 s")
    assert story.tone is Tone.WARN
    late = one(*BEGUN, *TOLD, unanswered, *ENDED)
    assert late.verdict.endswith("; component 'db' did not answer")
    assert late.lanes[0].fate is Fate.STOPPED
    without = one(*BEGUN, *TOLD, rec(51.0, "shutdown.unanswered", "db", forced=True), *ENDED)
    assert without.verdict.endswith("; component 'db' did not answer and was forced")
    assert (without.lanes[0].fate, without.lanes[0].ended) == (Fate.FORCED, 1.2)


@pytest.mark.parametrize(
    ("code", "head", "tone"),
    [
        (0, "Clean stop in 1.4 s: ", Tone.GOOD),
        (2, "Could not run: ", Tone.BAD),
        (3, "Failed to start, after 41.4 s: ", Tone.BAD),
        (4, "Stop in 1.4 s, its clean-up ran out of time: ", Tone.BAD),
        (5, "Forced stop in 1.4 s: ", Tone.BAD),
        (6, "Stop in 1.4 s, because a component died: ", Tone.BAD),
        (131, "Left at once, after a dump: ", Tone.BAD),
        (-9, "Killed by SIGKILL, while stopped: ", Tone.BAD),
        (137, "Killed by SIGKILL, while stopped: ", Tone.BAD),
        (163, "Killed by signal 35, while stopped: ", Tone.BAD),
        (1, "Ended with exit code 1 in 1.4 s: ", Tone.BAD),
        (None, "Stopped in 1.4 s: ", Tone.GOOD),
    ],
)
def test_the_exit_code_says_how_it_went(code: int | None, head: str, tone: Tone) -> None:
    end = rec(51.4, "process.ended", "x", **({} if code is None else {"code": code}))
    story = one(*BEGUN, *TOLD, *ENDED[:-1], end)
    assert story.verdict.startswith(head)
    assert (story.tone, story.exit_code) == (tone, code)


def test_where_the_time_was_over_is_said_as_it_was() -> None:
    end = rec(61.0, "process.ended", "timed_out", code=4)
    cut = rec(60.0, "drain.cut", "1", cut=1, work=[{"scope": "process/GET /"}])
    assert one(*BEGUN, *TOLD, cut, *ENDED[1:-1], end).verdict.startswith(
        "Stop in 11 s, at the drain deadline: "
    )
    hook = rec(60.0, "hook.failed", "flush")
    story = one(*BEGUN, *TOLD, *ENDED[:-1], hook, end)
    assert story.verdict.startswith("Stop in 11 s, its clean-up ran out of time: ")
    assert story.verdict.endswith("; hook 'flush' failed")


def test_a_component_that_died_is_named_once() -> None:
    died = rec(50.0, "component.died", "db")
    cause = "component 'db' died: gone"
    begun = replace(rec(50.001, "stop.begun", until=60.0, end=65.0), cause=cause)
    end = rec(51.4, "process.ended", "component_died", code=6)
    story = one(*BEGUN, died, begun, *ENDED[:-1], end)
    assert story.verdict.startswith(f"Stop in 1.4 s, because a component died: {cause}")
    assert story.verdict.count("died") == 2
    other = one(*BEGUN, died, rec(50.0, "component.died", "http"), begun, end)
    assert other.verdict.count("component 'db' died") == 1
    assert "component 'http' died" in other.verdict


def test_what_was_cut_is_counted_once() -> None:
    cut = (
        rec(60.0, "drain.cut", "3", cut=3, work=[{"scope": "process/GET /"}]),
        rec(60.0, "drain.step", "deadline", in_flight=2),
    )
    story = one(*BEGUN, *TOLD, *cut, *ENDED[1:-1], rec(61.0, "process.ended", "timed_out", code=4))
    assert story.cut == 3
    assert "3 requests cut" in story.verdict
    assert [span.name for span in story.drain] == ["lame duck", "letting go", "cutting"]
    named = one(*BEGUN, *TOLD, rec(60.0, "drain.cut", "GET /"), rec(60.0, "drain.cut", "GET /x"))
    assert named.cut == 2
    nothing = one(*BEGUN, *TOLD, rec(50.9, "drain.cut", "0", cut=0), *ENDED)
    assert (nothing.cut, nothing.tone) == (0, Tone.GOOD)
    lost = one(*BEGUN, *TOLD, rec(50.9, "drain.cut", "1", cut=1), *ENDED)
    assert lost.verdict.startswith("Stop in 1.4 s, not without loss: ")
    assert "47 requests finished, 1 cut" in lost.verdict


def test_a_process_without_an_end() -> None:
    story = one(*BEGUN, *TOLD)
    assert story.verdict == (
        "Killed, or still at it, 500 ms into the stop, while draining: "
        "SIGTERM by process 1 (kubelet); 48 requests were in flight at the last; "
        "components 'db' and 'http' had not stopped"
    )
    assert (story.complete, story.tone, story.unknown) == (False, Tone.BAD, 48)
    assert [lane.fate for lane in story.lanes] == [Fate.LOST, Fate.LOST]
    assert (story.phases[-1].open, story.drain[-1].open) == (True, True)
    running = one(*BEGUN)
    assert running.verdict == "Not told to stop, as far as the records go"
    assert (running.tone, running.stop, running.took) == (Tone.PLAIN, None, None)
    assert [lane.fate for lane in running.lanes] == [Fate.UP, Fate.UP]


def test_a_supervisor_and_its_workers_are_one_run() -> None:
    boss = [
        rec(1.0, "process.started", "shop", pid=1),
        rec(1.1, "worker.started", "worker 0", pid=1),
        Record(1.2, "worker.ready", "worker 0", pid=1, wall=WALL + 1.2, data={"pid": 7}),
        rec(20.0, "signal.received", "SIGHUP", pid=1, meaning="reload"),
        Record(
            50.9, "worker.died", "worker 0", pid=1, wall=WALL + 50.9, data={"pid": 7, "code": -9}
        ),
        Record(51.5, "worker.retired", "w", pid=1, wall=WALL + 51.5, data={"pid": 8, "code": 0}),
    ]
    second = [Record(r.at, r.kind, r.subject, wall=r.wall, pid=8, data=r.data)
              for r in (*BEGUN, *TOLD, *ENDED)]  # fmt: skip
    (timeline,) = timelines([*BEGUN, *TOLD, *second, *boss])
    assert [(s.pid, s.role) for s in timeline.stories] == [
        (1, "supervisor"),
        (7, "worker"),
        (8, "worker"),
    ]
    killed = timeline.stories[1]
    assert (killed.exit_code, killed.ended) == (-9, 0.9)
    assert timeline.verdict == (
        "2 of 2 workers stopped: SIGHUP; 1 worker ended clean; 48 requests finished, none cut; "
        "worker 7: killed by SIGKILL, while draining, with 48 requests in flight"
    )
    assert timeline.tone is Tone.BAD


def test_the_workers_of_a_supervisor_end_as_it_says() -> None:
    def worker(at: float, kind: str, pid: int, detail: str = "", **data: object) -> Record:
        told = {"pid": pid, **data}
        return Record(at, kind, f"worker {pid}", detail, wall=WALL + at, pid=1, data=told)

    story = one(
        rec(1.0, "process.started", pid=1, role="supervisor"),
        *(worker(1.1, "worker.started", pid) for pid in (6, 7, 8, 9)),
        worker(9.0, "worker.died", 6, "killed by SIGKILL", signal=9),  # was replaced
        rec(20.0, "stop.begun", pid=1),
        *(worker(20.1, "shutdown.requested", pid) for pid in (7, 8, 9)),
        worker(21.0, "worker.retired", 7, "ended with exit code 0", code=0),
        worker(22.0, "worker.died", 8, "killed by SIGSEGV", signal=11),
        worker(23.0, "component.forced", 9, "killed: not gone after 3 s"),
        worker(23.1, "worker.died", 9, "killed by SIGKILL", signal=9),
        rec(23.2, "process.ended", pid=1, code=6),
    )
    assert [(lane.name, lane.fate, lane.ended) for lane in story.lanes] == [
        ("worker 7", Fate.STOPPED, 1.0),
        ("worker 8", Fate.DIED, 2.0),
        ("worker 9", Fate.FORCED, 3.1),
    ]


def test_a_number_that_is_used_again_is_another_run() -> None:
    again = [Record(r.at + 100, r.kind, r.subject, wall=r.wall + 100, pid=r.pid, data=r.data)
             for r in (*BEGUN, *TOLD)]  # fmt: skip
    first, second = timelines([*again, *BEGUN, *TOLD, *ENDED])
    assert first.verdict.startswith("Clean stop")
    assert second.verdict.startswith("Killed, or still at it")
    assert second.zero == WALL + 150.0


def test_clocks_of_two_hosts_are_joined_by_the_wall_clock() -> None:
    here = [rec(100.0 + n, "worker.ready", str(n), pid=1) for n in range(3)]
    there = [
        Record(5.0 + n, "phase.entered", "running", pid=2, wall=WALL + 100.5 + n) for n in range(3)
    ]
    (timeline,) = timelines([*here, *there])
    assert [round(s.began, 6) for s in timeline.stories] == [0.0, 0.5]


def test_a_wall_clock_that_is_set_does_not_tear_a_process_apart() -> None:
    records = [rec(1.0, "process.started", "x"), rec(2.0, "phase.entered", "running")]
    records.append(Record(3.0, "phase.entered", "terminating", pid=7, wall=WALL + 3.0 - 2.5))
    assert len(one(*records).phases) == 2


def test_without_records_there_is_nothing() -> None:
    assert timelines([]) == ()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
KEYS = """pid code signal in_flight left finished cut work until end drain_s service role sender
meaning components uptime_s process parent x"""
keys = st.sampled_from(KEYS.split())
subjects = st.sampled_from(
    ["SIGTERM", "SIGHUP", "terminating", "draining", "announce", "done", "deadline", "http", ""]
) | st.text(max_size=12)
anything = st.lists(
    st.builds(
        Record,
        at=st.floats(-1e308, 1e308) | st.floats(0, 100) | st.sampled_from([0.0, 1.0]),
        kind=st.sampled_from(sorted(KINDS)),
        subject=subjects,
        detail=st.text(max_size=12),
        cause=st.text(max_size=12),
        wall=st.sampled_from([0.0, 1e9, 1e308, -1.0]) | st.floats(0, 2e9),
        pid=st.integers(0, 3) | st.integers(),
        data=st.dictionaries(keys, values, max_size=4),
    ),
    max_size=24,
)


@given(anything)
def test_any_records_have_a_timeline(records: list[Record]) -> None:
    found = timelines(records)
    assert bool(found) == bool(records)
    assert sum(len(s.marks) for t in found for s in t.stories) == len(records)
    for timeline in found:
        assert timeline.verdict
        assert json.loads(json.dumps(timeline.as_dict(), allow_nan=False))["verdict"]
        for story in timeline.stories:
            check(timeline, story)


def check(timeline: Timeline, story: Story) -> None:
    for span in (*story.phases, *story.drain):
        assert span.took >= 0
    for lane in story.lanes:
        assert lane.name
        assert lane.last <= story.ended
    assert story.verdict
    assert timeline.began <= story.began <= timeline.ended
