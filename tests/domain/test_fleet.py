"""The fleet of a supervisor: random lives beside a plain model of the processes, and each rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.domain.lifecycle.fleet import (
    Decision,
    Died,
    Dump,
    DumpAsked,
    Event,
    Exit,
    Fleet,
    FleetTerms,
    ForceAsked,
    Kill,
    Mode,
    NotStarted,
    Ready,
    Report,
    Resize,
    Retire,
    RollAsked,
    Spawn,
    Stage,
    Started,
    StopAsked,
    Tick,
    opening,
    wake,
)

TERMS = FleetTerms(start=60.0, well=10.0, first=0.25, most=30.0, force=2.0, reap=5.0)
PATIENCE = 12.0


@dataclass
class Process:
    """A process as the kernel and its clients see it."""

    slot: int
    generation: int
    ready: bool = False
    told: bool = False
    final: bool = False
    forced: bool = False
    killed: bool = False
    dumped: bool = False

    @property
    def serves(self) -> bool:
        return self.ready and not self.told and not self.killed


class World:
    """Performs what is decided, and keeps what the fleet cannot know better than the kernel."""

    def __init__(self, wanted: int, *, at_once: bool = True) -> None:
        self.now = 1000.0
        self.wanted = wanted
        self.at_once = at_once
        self.state = opening(wanted, TERMS)
        self.alive: dict[int, Process] = {}
        self.pending: list[Spawn] = []
        self.reports: list[Report] = []
        self.spawned = 0
        self.killed = 0
        self.cut = 0
        self.exit: int | None = None
        self.tell(Tick())

    def tell(self, event: Event) -> Sequence[Decision]:
        self.state, decided = Fleet().step(self.state, event, self.now)
        for decision in decided:
            self.perform(decision)
        return decided

    def perform(self, decision: Decision) -> None:
        assert self.exit is None
        match decision:
            case Spawn():
                self.spawned += 1
                self.pending.append(decision)
                if self.at_once:
                    self.answer()
            case Retire(pid, _, final, force):
                process = self.alive[pid]
                process.told = True
                process.final |= final
                process.forced |= force
            case Kill(pid):
                self.alive[pid].killed = True
                self.killed += 1
                self.cut += self.alive[pid].ready
            case Dump(pid):
                self.alive[pid].dumped = True
            case Report():
                self.reports.append(decision)
            case Exit(code):
                self.exit = code

    def answer(self) -> None:
        spawn = self.pending.pop(0)
        pid = 100 + self.spawned
        while pid in self.alive:
            pid += 1000
        self.alive[pid] = Process(spawn.slot, spawn.generation)
        self.tell(Started(spawn.ticket, pid, PATIENCE))

    def refuse(self) -> None:
        self.tell(NotStarted(self.pending.pop(0).ticket, "no memory"))

    def ready(self, pid: int) -> None:
        self.alive[pid].ready = True
        self.tell(Ready(pid))

    def die(self, pid: int, code: int | None) -> None:
        self.alive.pop(pid)
        self.tell(Died(pid, code))

    def wait(self, seconds: float) -> None:
        """Time passes; the supervisor wakes whenever it is due."""
        end = self.now + seconds
        while (at := wake(self.state)) <= end:
            assert at > self.now
            self.now = at
            self.tell(Tick())
        self.now = end
        self.tell(Tick())

    def serving(self) -> list[int]:
        return [pid for pid, process in self.alive.items() if process.serves]

    def starting(self) -> list[int]:
        return [
            pid
            for pid, process in self.alive.items()
            if not process.ready and not process.told and not process.killed
        ]

    def told(self) -> list[int]:
        return [pid for pid, process in self.alive.items() if process.told or process.killed]

    def up(self) -> World:
        """All that are wanted are ready."""
        while self.starting():
            self.ready(self.starting()[0])
        return self

    def generations(self) -> list[int]:
        return sorted(self.alive[pid].generation for pid in self.serving())

    def kinds(self, kind: str) -> list[Report]:
        return [report for report in self.reports if report.kind == kind]


# -- random lives ----------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, at_once=False)
        self.stopped = self.forced = self.dumped = False
        self.bad_end = False

    def pick(self, pids: list[int], data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(pids)))

    def quietly(self, event: Event) -> None:
        """An event that takes nobody away from the clients."""
        before = len(self.world.serving())
        self.world.tell(event)
        assert len(self.world.serving()) >= before

    @precondition(lambda self: self.world.pending)
    @rule()
    def answer(self) -> None:
        before = len(self.world.serving())
        self.world.answer()
        assert len(self.world.serving()) >= before

    @precondition(lambda self: self.world.pending)
    @rule()
    def refuse(self) -> None:
        self.world.refuse()
        self.look()

    @precondition(lambda self: any(not p.ready for p in self.world.alive.values()))
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        pid = self.pick([pid for pid, p in self.world.alive.items() if not p.ready], data)
        before = len(self.world.serving())
        self.world.ready(pid)
        assert len(self.world.serving()) >= before

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, -9, -15, None]))
    def die(self, data: st.DataObject, code: int | None) -> None:
        pid = self.pick(list(self.world.alive), data)
        process = self.world.alive[pid]
        if self.stopped and process.ready and not process.killed and code != 0:
            self.bad_end = True
        self.world.die(pid, code)
        self.look()

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0, 12.0, 61.0]))
    def wait(self, seconds: float) -> None:
        before = self.world.cut
        serving = len(self.world.serving())
        self.world.wait(seconds)
        self.bad_end |= self.stopped and self.world.cut > before
        assert len(self.world.serving()) >= serving
        self.look()

    @rule()
    def roll(self) -> None:
        self.quietly(RollAsked())

    @rule(by=st.sampled_from([1, -1]))
    def resize(self, by: int) -> None:
        if not self.stopped:
            self.world.wanted = max(1, self.world.wanted + by)
        self.world.tell(Resize(by))

    @rule()
    def stop(self) -> None:
        self.world.tell(StopAsked("TERM"))
        self.look()

    @rule()
    def force(self) -> None:
        there = [process for process in self.world.alive.values() if not process.killed]
        self.bad_end |= bool(there or self.world.pending)
        self.forced = True
        self.world.tell(ForceAsked("TERM"))
        self.look()

    @precondition(lambda self: self.world.now > 1100)
    @rule()
    def dump(self) -> None:
        self.dumped |= self.world.exit is None
        self.world.tell(DumpAsked())
        self.look()

    @rule(pid=st.integers(0, 9))
    def strangers_change_nothing(self, pid: int) -> None:
        before = self.world.state
        self.world.tell(Ready(pid))
        self.world.tell(Died(pid, 0))
        assert self.world.state == before

    def look(self) -> None:
        self.stopped = self.world.state.mode in (Mode.STOPPING, Mode.GONE)

    @invariant()
    def nobody_too_many(self) -> None:
        world = self.world
        assert len(world.serving()) <= world.wanted
        wanted = [p for p in world.alive.values() if not p.told and not p.killed]
        assert len(wanted) + len(world.pending) <= world.wanted + 1 + len(
            [w for w in world.state.workers if w.stage is Stage.RETIRING and not w.pid]
        )

    @invariant()
    def nobody_is_forgotten(self) -> None:
        world = self.world
        known = {worker.pid for worker in world.state.workers if worker.pid}
        # Those that the kernel did not end in time are left behind, and only at a stop.
        assert known <= set(world.alive)
        assert all(world.alive[pid].killed for pid in set(world.alive) - known)
        assert self.stopped or known == set(world.alive)
        tickets = {worker.ticket for worker in world.state.workers if not worker.pid}
        assert tickets == {spawn.ticket for spawn in world.pending}

    @invariant()
    def the_end_is_the_end_of_all(self) -> None:
        world = self.world
        if world.exit is None:
            assert world.state.mode is not Mode.GONE
            assert not self.stopped or world.state.workers
            return
        assert not world.pending
        assert all(process.killed for process in world.alive.values())
        if self.dumped:
            assert world.exit == 131
        elif world.exit == 0:
            assert not self.bad_end
        elif world.exit == 5:
            assert self.bad_end
        else:
            assert world.exit in (2, 3) or self.bad_end

    @invariant()
    def sleeps_until_something_changes(self) -> None:
        assert wake(self.world.state) > self.world.now

    @invariant()
    def at_a_stop_everybody_is_told(self) -> None:
        if self.stopped:
            assert not self.world.serving()
            assert not self.world.starting()

    def teardown(self) -> None:
        """Whatever happened: when all goes well from now on, all is well."""
        world = self.world
        world.wait(0)
        for _ in range(60):
            while world.pending:
                world.answer()
            for pid in list(world.told()):
                if pid in world.alive:
                    world.die(pid, 0)
            for pid in world.starting():
                if pid in world.alive:
                    world.ready(pid)
            if world.exit is None:
                world.wait(5.0)
        if self.stopped:
            assert world.exit is not None
            return
        assert world.state.target is None
        assert len(world.serving()) == world.wanted == len(world.alive)
        world.tell(StopAsked("TERM"))
        for pid in list(world.alive):
            assert world.alive[pid].final
            world.die(pid, 0)
        assert world.exit == 0


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# -- each rule -------------------------------------------------------------------------------------


def test_the_first_worker_starts_alone() -> None:
    world = World(3)
    assert [p.slot for p in world.alive.values()] == [0]
    world.ready(world.starting()[0])
    assert [p.slot for p in world.alive.values()] == [0, 1, 2]
    assert len(world.up().serving()) == 3


@pytest.mark.parametrize(("code", "ends"), [(3, 3), (1, 3), (-9, 3), (None, 3), (2, 2)])
def test_a_first_worker_that_cannot_start_is_the_end(code: int | None, ends: int) -> None:
    world = World(3)
    world.die(world.starting()[0], code)
    assert (world.spawned, world.exit) == (1, ends)
    assert "did not start" in world.kinds("component.failed")[0].detail


def test_a_first_worker_that_does_not_get_ready_is_killed() -> None:
    world = World(2)
    world.wait(59.9)
    assert not world.killed
    world.wait(0.2)
    (pid,) = world.alive
    assert world.alive[pid].killed
    assert world.exit is None
    world.die(pid, -9)
    assert world.exit == 3


def test_one_that_ran_well_is_replaced_at_once() -> None:
    world = World(2).up()
    world.wait(10.0)
    world.die(world.serving()[0], -9)
    assert len(world.starting()) == 1
    assert "SIGKILL after 10 s; another one starts at once" in world.kinds("worker.died")[0].detail


def test_a_crash_loop_is_slow_and_forgiven() -> None:
    world = World(1).up()
    began, pauses = world.now, list[float]()
    for _ in range(12):
        world.die(world.serving()[0], 1)
        assert not world.alive
        pauses.append(wake(world.state) - world.now)
        world.wait(pauses[-1])
        world.up()
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert world.now - began == sum(pauses)
    world.wait(10.0)
    world.die(world.serving()[0], 1)
    world.up()
    world.die(world.serving()[0], 1)
    assert wake(world.state) - world.now == 0.25


def test_a_worker_that_hangs_while_it_starts_is_killed_and_replaced() -> None:
    world = World(2).up()
    world.wait(20)
    world.die(world.serving()[0], 1)
    world.wait(60)
    assert world.killed == 1
    assert world.state.mode is Mode.RUNNING
    world.wait(0.25)
    assert len(world.starting()) == 1


def test_a_process_that_cannot_be_made_is_tried_again() -> None:
    world = World(2).up()
    world.wait(20)
    world.at_once = False
    world.die(world.serving()[0], 1)
    world.refuse()
    assert "no memory" in world.kinds("worker.died")[-1].detail
    world.wait(0.25)
    world.answer()
    world.up()
    assert len(world.serving()) == 2


def test_a_roll_is_new_before_old_and_one_after_the_other() -> None:
    world = World(2).up()
    old = world.serving()
    world.tell(RollAsked())
    assert world.serving() == old
    assert len(world.starting()) == 1
    world.up()
    assert len(world.serving()) == 2
    (gone,) = world.told()
    assert not world.alive[gone].final
    assert not world.starting()
    world.die(gone, 0)
    world.up()
    (gone,) = world.told()
    world.die(gone, 0)
    assert world.generations() == [1, 1]
    assert world.state.target is None
    assert world.kinds("config.reloaded")


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_roll_that_fails_keeps_the_old(how: str) -> None:
    world = World(2).up()
    old = world.serving()
    world.tell(RollAsked())
    (new,) = world.starting()
    if how == "hangs":
        world.wait(60)
        assert world.alive[new].killed
    world.die(new, 1)
    world.wait(300)
    assert world.serving() == old == list(world.alive)
    assert len(world.kinds("config.refused")) == 1
    world.die(old[0], 1)
    assert world.up().generations() == [0, 0]


def test_a_roll_given_up_half_way_leaves_each_slot_what_it_had() -> None:
    world = World(2).up()
    world.wait(20)
    world.tell(RollAsked())
    world.up()
    world.die(world.told()[0], 0)
    world.die(world.starting()[0], 1)
    assert world.generations() == [0, 1]
    for pid in world.serving():
        world.wait(20)
        world.die(pid, 1)
        world.up()
    assert world.generations() == [0, 1]
    world.tell(RollAsked())
    while world.starting() or world.told():
        world.up()
        for pid in world.told():
            world.die(pid, 0)
    assert world.generations() == [2, 2]


def test_a_second_roll_during_the_first_goes_on_to_the_newest() -> None:
    world = World(2).up()
    world.tell(RollAsked())
    world.tell(RollAsked())
    while world.starting() or world.told():
        world.up()
        for pid in world.told():
            world.die(pid, 0)
    assert world.generations() == [2, 2]
    assert world.spawned == 2 + 3


def test_a_roll_repairs_a_fleet_that_only_crashes() -> None:
    world = World(2).up()
    for pid in world.serving():
        world.die(pid, 1)
    world.wait(0.25)
    for pid in world.starting():
        world.die(pid, 1)
    assert not world.alive
    world.tell(RollAsked())
    (new,) = world.starting()
    assert world.alive[new].generation == 1
    world.ready(new)
    assert [world.alive[pid].generation for pid in world.starting()] == [1]
    assert world.up().generations() == [1, 1]


def test_a_retired_worker_that_does_not_go_is_killed() -> None:
    world = World(1).up()
    world.tell(RollAsked())
    world.up()
    (old,) = world.told()
    world.wait(PATIENCE)
    assert world.alive[old].killed
    assert "not gone after 12 s" in world.kinds("component.forced")[0].detail
    world.die(old, -9)
    world.tell(StopAsked("TERM"))
    world.die(world.told()[0], 0)
    assert world.exit == 0


def test_a_stop_during_a_roll_ends_the_roll() -> None:
    world = World(2).up()
    world.tell(RollAsked())
    decided = world.tell(StopAsked("TERM"))
    assert world.state.target is None
    assert len([d for d in decided if isinstance(d, Retire) and d.final]) == 3
    for pid in list(world.alive):
        world.die(pid, 0)
    assert (world.exit, world.spawned) == (0, 3)


@pytest.mark.parametrize(
    ("codes", "ends"),
    [((0, 0), 0), ((4, 0), 4), ((4, 5), 5), ((-9, 5), 6), ((1, 0), 6), ((None, 0), 6)],
)
def test_the_exit_code_is_that_of_the_worst(codes: tuple[int | None, ...], ends: int) -> None:
    world = World(2).up()
    world.tell(StopAsked("TERM"))
    for pid, code in zip(list(world.alive), codes, strict=True):
        world.die(pid, code)
    assert world.exit == ends


def test_a_worker_that_never_served_adds_nothing_to_the_exit_code() -> None:
    world = World(2)
    world.tell(StopAsked("TERM"))
    world.die(world.told()[0], -15)
    assert world.exit == 0


def test_who_does_not_stop_in_time_is_killed() -> None:
    world = World(2).up()
    world.tell(StopAsked("TERM"))
    world.wait(PATIENCE)
    assert world.killed == 2
    assert len(world.kinds("component.forced")) == 2
    for pid in list(world.alive):
        world.die(pid, -9)
    assert world.exit == 4


def test_a_second_stop_forces_and_names() -> None:
    world = World(2).up()
    world.tell(StopAsked("TERM"))
    world.tell(ForceAsked("INT"))
    assert all(process.forced for process in world.alive.values())
    assert not world.killed
    assert {report.pid for report in world.kinds("component.forced")} == set(world.alive)
    world.wait(TERMS.force)
    assert world.killed == 2
    for pid in list(world.alive):
        world.die(pid, -9)
    assert world.exit == 5


def test_force_without_a_stop_stops_and_a_third_one_kills() -> None:
    world = World(1).up()
    world.tell(ForceAsked("INT"))
    assert not world.killed
    world.tell(ForceAsked("INT"))
    assert world.killed == 1
    world.die(world.told()[0], -9)
    assert world.exit == 5


def test_what_the_kernel_does_not_end_is_left_behind() -> None:
    world = World(1).up()
    world.tell(StopAsked("TERM"))
    world.wait(PATIENCE + TERMS.reap)
    assert world.exit == 4
    assert "left behind" in world.kinds("component.forced")[-1].detail
    assert wake(world.state) == inf
    assert world.tell(RollAsked()) == ()


def test_what_the_kernel_did_not_end_before_a_stop_is_not_waited_for_either() -> None:
    world = World(1).up()
    world.tell(RollAsked())
    world.up()
    world.wait(100)
    (undead,) = world.told()
    world.tell(StopAsked("TERM"))
    world.die(next(pid for pid in world.told() if pid != undead), 0)
    world.wait(TERMS.reap)
    assert world.exit == 4


def test_a_dump_is_the_end_within_moments() -> None:
    world = World(2).up()
    world.tell(DumpAsked())
    assert all(process.dumped for process in world.alive.values())
    first, second = world.alive
    world.die(first, -3)
    world.wait(TERMS.force)
    assert world.alive[second].killed
    world.die(second, -9)
    assert world.exit == 131


def test_more_and_fewer() -> None:
    world = World(2).up()
    world.tell(Resize(+1))
    assert len(world.up().serving()) == 3
    world.tell(Resize(-1))
    world.tell(Resize(-1))
    assert len(world.serving()) == 1
    assert not any(world.alive[pid].final for pid in world.told())
    world.tell(Resize(-1))
    assert len(world.serving()) == 1
    for pid in world.told():
        world.die(pid, 0)
    world.wait(1000)
    assert len(world.alive) == 1
    world.tell(Resize(+1))
    assert len(world.up().serving()) == 2


def test_fewer_takes_the_new_one_of_a_roll_along() -> None:
    world = World(2).up()
    world.tell(RollAsked())
    world.up()
    world.die(world.told()[0], 0)
    assert len(world.starting()) == 1
    world.tell(Resize(-1))
    for pid in world.told():
        world.die(pid, 0)
    assert world.generations() == [1]
    assert world.state.target is None


def test_a_process_that_nobody_asked_for_is_killed() -> None:
    _, decided = Fleet().step(opening(1), Started(7, 4711, 1.0), 0.0)
    assert Kill(4711) in decided


def test_spawned_too_late_it_is_told_to_go() -> None:
    world = World(1, at_once=False)
    world.tell(StopAsked("TERM"))
    world.answer()
    assert world.alive[world.told()[0]].final
    world = World(1, at_once=False)
    world.tell(ForceAsked("TERM"))
    world.answer()
    assert world.killed == 1


def test_with_all_ready_nothing_is_waited_for() -> None:
    world = World(3).up()
    assert wake(world.state) == inf


def test_it_is_the_time_as_a_ready_worker_that_counts() -> None:
    world = World(1)
    world.wait(9)
    world.up()
    world.wait(9)
    world.die(world.serving()[0], 1)
    assert wake(world.state) - world.now == 0.25


def test_the_time_to_get_ready_begins_with_the_process() -> None:
    world = World(1, at_once=False)
    world.wait(70)
    world.answer()
    world.wait(5)
    world.up()
    assert world.kinds("worker.ready")[0].detail == "after 5 s"


def test_a_worker_that_never_got_ready_has_not_run_well() -> None:
    state = opening(2, FleetTerms(well=0.0))
    for event in (Tick(), Started(1, 101, 1.0), Ready(101), Started(2, 102, 1.0)):
        state, _ = Fleet().step(state, event, 0.0)
    at_once, _ = Fleet().step(state, Died(101, 1), 0.0)
    assert [slot.failures for slot in at_once.slots] == [0, 0]
    state = opening(2, FleetTerms(well=0.5))
    for event in (Tick(), Started(1, 101, 1.0), Ready(101), Started(2, 102, 1.0)):
        state, _ = Fleet().step(state, event, 0.0)
    later, _ = Fleet().step(state, Died(102, 1), 0.0)
    assert [slot.failures for slot in later.slots] == [0, 1]


def test_force_reaches_those_behind_one_that_is_not_there_yet() -> None:
    world = World(1).up()
    world.at_once = False
    world.tell(Resize(+2))
    late, early = world.pending
    world.alive[999] = Process(early.slot, early.generation)
    world.pending = [late]
    world.tell(Started(early.ticket, 999, PATIENCE))
    world.tell(ForceAsked("INT"))
    assert world.alive[999].forced
