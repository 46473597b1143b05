"""The file in which a service remembers its last stops."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import holdfast
from holdfast.domain.lifecycle.history import History, Outcome, Terms
from holdfast.runtime.memory import SUFFIX, StopMemory, place_of_memories

TERMS = Terms(drain=11.0, base=11.0, most=20.0, grace=30.0)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(holdfast.__file__).parents[1])}

BEGIN = """
import sys
from pathlib import Path
from holdfast.domain.lifecycle.history import Outcome, Terms
from holdfast.runtime.memory import StopMemory

memory = StopMemory(Path(sys.argv[1]))
memory.begun(Terms(11.0, 11.0, 20.0, 30.0), sys.argv[2])
print("begun", flush=True)
sys.stdin.readline()
memory.ended(Outcome.TIMED_OUT)
"""


def other(path: Path, stop: str = "") -> subprocess.Popen[str]:
    """Another process of the service, which has begun to stop and ends when it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(path), stop],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "shop.stops.json"


def strict(path: Path, now: float = 1000.0) -> tuple[StopMemory, list[str]]:
    told: list[str] = []
    return StopMemory(path, tell=told.append, now=lambda: now), told


def test_a_first_start_remembers_nothing(path: Path) -> None:
    memory, told = strict(path)
    assert memory.recall() == History()
    assert memory.read() == History()
    assert not path.exists()
    assert told == []


def test_a_stop_is_remembered_by_the_next_process(path: Path) -> None:
    memory, told = strict(path)
    memory.begun(TERMS)
    assert [stop.over for stop in memory.read().stops] == [False]
    assert memory.ended(Outcome.FORCED).failures == 1
    later, told_later = strict(path, 2000.0)
    (stop,) = later.recall().stops
    assert (stop.begun, stop.ended, stop.outcome) == (1000.0, 1000.0, Outcome.FORCED)
    assert stop.terms == TERMS
    assert told == told_later == []


def test_only_three_are_kept(path: Path) -> None:
    for outcome in (Outcome.FORCED, Outcome.FORCED, Outcome.CLEAN, Outcome.TIMED_OUT):
        memory, _ = strict(path, path.exists() * 5.0 + 5.0)
        memory.begun(TERMS, outcome + str(memory.read().failures))
        memory.ended(outcome)
    assert strict(path)[0].recall().failures == 2
    assert len(json.loads(path.read_text())["stops"]) == 3


def test_nobody_else_can_read_it(path: Path) -> None:
    strict(path)[0].begun(TERMS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    # The file and its lock: no draft is left.
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_a_process_that_never_began_does_not_end(path: Path) -> None:
    memory, told = strict(path)
    assert memory.ended(Outcome.FORCED) == History()
    assert told == []


def test_everything_can_be_forgotten(path: Path) -> None:
    memory, _ = strict(path)
    memory.begun(TERMS)
    memory.ended(Outcome.FORCED)
    memory.reset()
    assert memory.recall() == History()


def test_a_killed_process_counts_at_the_next_start(path: Path) -> None:
    process = other(path)
    alive = StopMemory(path).recall()
    assert [stop.over for stop in alive.stops] == [False]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = StopMemory(path).recall()
    assert [stop.outcome for stop in found.stops] == [Outcome.UNFINISHED]
    assert found.failures == 1


def test_a_zombie_counts_as_gone(path: Path) -> None:
    process = other(path)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert StopMemory(path).recall().failures == 1
    process.communicate()


def test_a_process_of_another_container_counts_when_its_time_is_over(path: Path) -> None:
    process = other(path)
    content = json.loads(path.read_text())
    (stop,) = content["stops"]
    begun = stop["begun"]
    (name,) = stop["members"]
    pid, began, _, boot = name.split(".")
    stop["members"] = {f"{pid}.{began}.1.{boot}": None}
    path.write_text(json.dumps(content))
    process.kill()
    process.communicate()
    assert strict(path, begun + 29.0)[0].recall().failures == 0
    assert strict(path, begun + 31.0)[0].recall().failures == 1


def test_workers_write_at_the_same_time(path: Path) -> None:
    workers = [other(path, "the one stop") for _ in range(4)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    (stop,) = StopMemory(path).read().stops
    assert len(stop.members) == 4
    assert stop.outcome is Outcome.TIMED_OUT
    assert StopMemory(path).recall().failures == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON, so nothing is remembered"),
        (b"\xff\xfe", "not JSON, so nothing is remembered"),
        (b"[" * 100_000, "not JSON, so nothing is remembered"),
        (b"5", "of another version, so nothing is remembered"),
        (b'{"version": 2, "stops": []}', "of another version, so nothing is remembered"),
        (b'{"version": 1}', "the stops are a list, not NoneType"),
        (b'{"version": 1, "stops": [7]}', "stop 1 is left out: a stop is an object, not int"),
        (b" " * 1_048_577, "larger than 1048576 bytes, so nothing of it is believed"),
    ],
)
def test_a_file_that_makes_no_sense(path: Path, content: bytes, problem: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    memory, told = strict(path)
    assert memory.recall() == memory.read() == History()
    assert told == [f"{path}: {problem}"]
    # It does not stay so.
    memory.begun(TERMS)
    memory.ended(Outcome.FORCED)
    after, told = strict(path)
    assert after.recall().failures == 1
    assert told == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "shop.stops.json"
    memory, told = strict(path)
    assert memory.recall() == History()
    assert memory.begun(TERMS) == History()
    assert memory.ended(Outcome.CLEAN) == History()
    (sentence,) = told  # once, and not at every call
    assert sentence.startswith(f"{path}: cannot be written: ")
    assert sentence.endswith("Name a writable file as memory in [stop]")
    with pytest.raises(OSError, match="File exists"):
        memory.reset()


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir(parents=True)
    memory, told = strict(path)
    assert memory.read() == History()
    assert told == [f"{path}: cannot be read: Is a directory"]


def test_a_draft_that_cannot_be_put_in_place_is_removed(path: Path) -> None:
    memory, told = strict(path)
    memory.recall()
    path.mkdir()  # while nobody looked
    memory._read = History  # type: ignore[method-assign]
    memory.begun(TERMS)
    assert "cannot be written: Is a directory" in told[0]
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_a_lock_that_is_never_given_back_does_not_hold_a_stop(path: Path) -> None:
    path.parent.mkdir()
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        memory, told = strict(path)
        assert memory.begun(TERMS) == History()
    assert "another process holds the lock" in told[0]


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert place_of_memories() == tmp_path / "holdfast"
    assert StopMemory.of("shop").path == tmp_path / "holdfast" / f"shop{SUFFIX}"
    assert StopMemory.of("").path.name == "unnamed.stops.json"
    assert StopMemory.of("../a b").path == tmp_path / "holdfast" / "..%2Fa%20b.stops.json"
    assert StopMemory.of("shop", "/x/y.json").path == Path("/x/y.json")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of_memories() == tmp_path / ".local" / "state" / "holdfast"
    monkeypatch.setenv("HOME", "")
    assert place_of_memories().is_absolute()


# -- without a home --------------------------------------------------------------------------------


@pytest.fixture
def beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default place of a user without a home, under a directory that others may write to."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = place_of_memories()
    assert place == tmp_path / f"holdfast-state-{os.getuid()}"
    return place


def test_a_directory_of_ones_own_is_made_under_the_temporary_one(beside_others: Path) -> None:
    memory, told = strict(beside_others / "shop.stops.json")
    assert memory.read() == History()
    memory.begun(TERMS)
    memory.ended(Outcome.CLEAN)
    assert stat.S_IMODE(beside_others.stat().st_mode) == 0o700
    assert memory.read().stops
    assert not told


@pytest.mark.parametrize("how", ["open", "link", "file", "other user"])
def test_a_directory_that_others_made_is_not_trusted(
    beside_others: Path, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    laid, _ = strict(elsewhere / "shop.stops.json")
    laid.begun(TERMS)
    laid.ended(Outcome.TIMED_OUT)
    before = sorted(path.name for path in elsewhere.iterdir())
    match how:
        case "link":
            beside_others.symlink_to(elsewhere)
        case "file":
            beside_others.write_text("")
        case _:
            elsewhere.rename(beside_others)
            elsewhere = beside_others
            if how == "open":
                beside_others.chmod(0o777)
            else:
                real = Path.lstat

                def lstat(path: Path) -> os.stat_result:
                    found = list(real(path))
                    found[4] = os.getuid() + 1
                    return os.stat_result(found)

                monkeypatch.setattr(Path, "lstat", lstat)
    memory, told = strict(place_of_memories() / "shop.stops.json")
    assert memory.read() == History()
    memory.begun(TERMS)
    memory.ended(Outcome.CLEAN)
    with pytest.raises(PermissionError):
        memory.reset()
    assert len(told) == 2
    assert "cannot be read" in told[0]
    assert "cannot be written" in told[1]
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_no_link_is_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    victim = tmp_path / "victim"
    Path(f"{path}.lock").symlink_to(victim)
    memory, told = strict(path)
    memory.begun(TERMS)
    assert not victim.exists()
    assert len(told) == 1
    Path(f"{path}.lock").unlink()
    memory.begun(TERMS)
    path.rename(victim)
    path.symlink_to(victim)
    assert memory.read() == History()
    assert "cannot be read" in told[1]
