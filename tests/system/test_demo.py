"""`holdfast demo` as a user has it: what it measures, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import holdfast

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

SOURCE = Path(holdfast.__file__).parents[1]
HOPS = ["edge", "orders", "payments", "bank"]
LOAD = "3"
PATIENCE = 30.0


def demo(*words: str, **options: Any) -> subprocess.Popen[str]:
    """The demo in a session of its own, to which all its processes belong."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "holdfast.apps.demo", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, **options.pop("env", {})},
        **options,
    )


def members(session: int) -> dict[int, str]:
    """Processes of a session that are alive, with their command lines."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found[int(entry.name)] = words
    return found


def wait_until(true: Any, what: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


@contextmanager
def under_way(*, load: bool = True) -> Iterator[subprocess.Popen[str]]:
    """The demo while its four services run, or while they start."""
    process = demo("--seconds", "20")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if not load or "under load, 1 s" in line:
                break
        wait_until(lambda: len(members(process.pid)) == 1 + len(HOPS), "the services run")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def service(process: subprocess.Popen[str], name: str) -> int:
    """The process of a service."""
    (pid,) = [pid for pid, words in members(process.pid).items() if f"{name}:app" in words]
    return pid


def nothing_left(process: subprocess.Popen[str]) -> None:
    wait_until(lambda: not members(process.pid), f"still alive: {members(process.pid)}")


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The figures of one short demo."""
    process = demo("--json", "--seconds", LOAD)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert not members(process.pid)
    found: dict[str, Any] = json.loads(out)  # nothing else may be on standard output
    return found


def test_work_ends_with_its_caller_only_when_the_carriers_are_on(measured: dict[str, Any]) -> None:
    off, on = (measured["runs"][run]["after_the_caller_had_gone"] for run in ("off", "on"))
    assert off["work_s"] > 1
    assert on["work_s"] < off["work_s"] / 4
    assert on["held_s"] < off["held_s"] / 4


def test_every_hop_stops(measured: dict[str, Any]) -> None:
    runs = measured["runs"]
    assert list(runs["off"]["hops"]) == list(runs["on"]["hops"]) == HOPS
    for hop in HOPS:
        off, on = (runs[run]["hops"][hop]["after_the_caller_had_gone"] for run in ("off", "on"))
        assert on["held_s"] < off["held_s"] / 2, hop
        assert runs["on"]["hops"][hop]["ended_early"] > 0, hop
        assert runs["off"]["hops"][hop]["ended_early"] == 0, hop
        assert runs["on"]["hops"][hop]["tasks_left_after_1_s"] == 0, hop


def test_the_same_users_come_twice_and_are_all_accounted_for(measured: dict[str, Any]) -> None:
    off, on = (measured["runs"][run]["users"] for run in ("off", "on"))
    assert off["came"] == on["came"] > 50
    for users in (off, on):
        outcomes = ("bought", "told_why_not", "left_without_an_answer", "closed_the_tab", "failed")
        assert sum(users[name] for name in outcomes) == users["came"]
        assert users["failed"] == 0
        assert users["bought"] > 0
    assert off["told_why_not"] == 0 < off["left_without_an_answer"]


def test_answers_name_the_hop_that_spent_the_budget(measured: dict[str, Any]) -> None:
    on = measured["runs"]["on"]
    assert on["users"]["told_why_not"] > 0
    assert on["users"]["told_which_hop"].get("bank", 0) > 0
    assert on["example_chain"] == HOPS
    document = on["example_504"]
    assert document["status"] == 504
    assert document["hop"] == "edge"
    assert re.fullmatch("[0-9a-f]{32}", document["request_id"])


def test_an_answer_always_comes_with_carriers(measured: dict[str, Any]) -> None:
    off, on = (measured["runs"][run]["time_to_answer_s"] for run in ("off", "on"))
    assert off["max"] is None
    assert 0 < on["p50"] < measured["patience_s"]


def test_the_live_tree_is_a_real_one(measured: dict[str, Any]) -> None:
    tree = measured["runs"]["on"]["tree"]
    assert tree[0].startswith("payments  process ")
    assert not measured["runs"]["off"]["tree"]


def test_report_without_a_terminal_and_as_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "made" / "demo.svg"
    process = demo("--seconds", "1", "--export", str(picture), env={"COLUMNS": "100"})
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert "\x1b" not in out
    assert "without Holdfast: under load" in out
    assert "with Holdfast: under load" in out
    assert "Work done after the caller had gone" in out
    assert "What the users got" in out
    svg = picture.read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert not re.search(r"@font-face|@import|href|url\((?!#)", svg)  # it loads nothing
    assert not members(process.pid)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("load", [True, False])
def test_a_signal_leaves_nothing(number: signal.Signals, code: int, load: bool) -> None:
    with under_way(load=load) as process:
        process.send_signal(number)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        assert err == "holdfast demo: stopped, and no process is left behind\n"
        assert not members(process.pid)


def test_the_services_die_with_a_demo_that_was_killed() -> None:
    with under_way() as process:
        process.kill()
        process.wait()
        nothing_left(process)


@pytest.mark.parametrize("name", ["edge", "bank"])
def test_a_service_that_crashes_ends_the_demo_and_is_quoted(name: str) -> None:
    with under_way() as process:
        os.kill(service(process, name), signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert f"the service {name} was killed by signal 9; it said last:" in err
        assert "Traceback" not in err
        assert not members(process.pid)


def test_a_service_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise RuntimeError('broken on purpose')\n")
    path = os.pathsep.join([str(SOURCE), str(tmp_path)])
    process = demo("--json", env={"PYTHONPATH": path, "PYTHONSAFEPATH": ""})
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out == ""
    assert "ended with code 2; it said last:" in err
    assert "broken on purpose" in err
    assert not members(process.pid)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_load_needs_some_seconds(seconds: str) -> None:
    process = demo(f"--seconds={seconds}")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "the load must last for some seconds" in err
