"""`holdfast run` with real worker programs, told by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.apps.serving import PATIENCE, SOURCE

pytestmark = pytest.mark.system

WORKER = """
import asyncio, sys, time
from holdfast.lifecycle import Host

def say(*words):
    print(*words, flush=True)

def make(slow=0.0, hangs=False, fails=False, dies=False, stuck=False):
    host = Host("mailer")

    async def connect():
        if fails:
            raise ConnectionError("no route to the queue")
        say("connected")

    async def close():
        say("closed")

    async def consume():
        try:
            while True:
                await asyncio.sleep(0.05)
                if dies:
                    raise RuntimeError("the broker hung up")
        except asyncio.CancelledError:
            say("finishing")
            while hangs:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
            await asyncio.sleep(slow)
            say("finished")
            raise

    host.add("db", start=connect, stop=close)
    host.add("consumer", run=consume, needs=["db"])
    host.on_reload(lambda: say("reloaded"))
    host.at_exit(lambda: say("flushed"), name="flush")
    return host

def normal(): return make()
def hanging(): return make(hangs=True)
def failing(): return make(fails=True)
def dying(): return make(dies=True)
def block_the_loop():
    time.sleep(3600)
def blocking():
    host = make()
    host.at_exit(block_the_loop)
    return host
def threaded():
    host = make()
    async def block():
        await asyncio.to_thread(time.sleep, 3600)
    host.add("blocker", run=block)
    return host

async def job():
    say("working")
    await asyncio.sleep(0.05)
    say("done")
"""


class Running:
    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process = process
        self.home = home
        self.said: list[str] = []

    def records(self) -> list[dict[str, Any]]:
        path = self.home / "stop.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, kind: str, subject: str = "") -> dict[str, Any]:
        """The first record of that kind."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for record in self.records():
                if record["kind"] == kind and subject in ("", record["subject"]):
                    return record
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {kind} {subject} in {self.records()}")

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def verdict(self) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.apps.cli", "timeline", str(self.home / "stop.jsonl")],
            capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()[0]


@contextmanager
def running(home: Path, target: str, settings: str = "") -> Iterator[Running]:
    (home / "worker.py").write_text(WORKER)
    (home / "holdfast.toml").write_text(settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.apps.cli", "run", target, "--timeline", "stop.jsonl"],
        cwd=home, env=os.environ | {"PYTHONPATH": str(SOURCE), "XDG_STATE_HOME": str(home)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Running(process, home)
    finally:
        process.kill()
        process.communicate()


def test_a_worker_stops_in_order(tmp_path: Path) -> None:
    with running(tmp_path, "worker:normal") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGTERM)
        code, out, err = worker.end()
        assert code == 0, err
        assert out.split() == ["connected", "finishing", "finished", "flushed", "closed"]
        assert "runs worker:normal" in err
        assert worker.verdict().startswith("Clean stop in ")
        assert f"SIGTERM by process {os.getpid()}" in worker.verdict()
        remembered = json.loads((tmp_path / "holdfast" / "mailer.stops.json").read_text())
        assert list(remembered["stops"][0]["members"].values()) == ["clean"]


def test_a_second_signal_forces(tmp_path: Path) -> None:
    with running(tmp_path, "worker:hanging") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGTERM)
        worker.wait_for("phase.entered", "draining")
        worker.send(signal.SIGTERM)
        code, out, err = worker.end()
        assert code == 5, err
        assert "finished" not in out
        assert "flushed" in out
        assert worker.verdict().startswith("Forced stop in ")
        assert "'consumer' was forced" in worker.verdict()


def test_a_hang_ends_at_the_drain_deadline(tmp_path: Path) -> None:
    settings = "[stop]\ngrace = '2s'\nbase = '300ms'\ncleanup = '500ms'\n"
    with running(tmp_path, "worker:hanging", settings) as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGINT)
        code, out, err = worker.end()
        assert code == 4, err
        assert "closed" in out
        assert worker.verdict().startswith("Stop in ")
        assert ", at the drain deadline: SIGINT by " in worker.verdict()
        remembered = json.loads((tmp_path / "holdfast" / "mailer.stops.json").read_text())
        assert list(remembered["stops"][0]["members"].values()) == ["timed_out"]


def test_quit_writes_all_stacks_and_leaves_at_once(tmp_path: Path) -> None:
    with running(tmp_path, "worker:normal") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGQUIT)
        code, out, err = worker.end()
        assert code == 131
        assert "finishing" not in out
        assert "worker.py" in err
        assert "task consumer" in err
        assert worker.verdict().startswith("Left at once, after a dump: SIGQUIT")


def test_quit_can_mean_a_stop(tmp_path: Path) -> None:
    with running(tmp_path, "worker:normal", "[stop]\nquit = 'stop'\n") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGQUIT)
        code, out, err = worker.end()
        assert code == 0, err
        assert "closed" in out


def test_hang_up_reloads_and_usr1_dumps(tmp_path: Path) -> None:
    with running(tmp_path, "worker:normal") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGHUP)
        worker.wait_for("config.reloaded")
        worker.send(signal.SIGUSR1)
        worker.wait_for("dump.written")
        worker.send(signal.SIGTERM)
        code, out, err = worker.end()
        assert code == 0, err
        assert out.split().index("reloaded") < out.split().index("finishing")
        assert "task consumer" in err


def test_a_start_that_fails(tmp_path: Path) -> None:
    with running(tmp_path, "worker:failing") as worker:
        code, out, err = worker.end()
        assert code == 3
        assert "connected" not in out
        assert "ConnectionError: no route to the queue" in err
        assert "component 'db' failed" in worker.verdict()
        assert worker.verdict().startswith("Failed to start")


def test_who_dies_takes_the_program_down(tmp_path: Path) -> None:
    with running(tmp_path, "worker:dying") as worker:
        code, out, err = worker.end()
        assert code == 6
        assert "closed" in out
        assert "the broker hung up" in err
        assert ", because a component died" in worker.verdict()


def test_a_job_ends_when_it_is_done(tmp_path: Path) -> None:
    with running(tmp_path, "worker:job") as worker:
        code, out, err = worker.end()
        assert code == 0, err
        assert out.split() == ["working", "done"]
        assert worker.verdict().endswith(": job: its work is done")


def test_a_thread_that_never_returns_does_not_hold_the_exit(tmp_path: Path) -> None:
    with running(tmp_path, "worker:threaded") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGTERM)
        code, out, err = worker.end()
        assert code == 0, err
        assert "closed" in out


def test_a_stop_while_the_program_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    with running(tmp_path, "slow:host") as worker:
        assert worker.process.stdout is not None
        assert worker.process.stdout.readline() == "loading\n"
        worker.send(signal.SIGTERM)
        assert worker.end()[0] == 143


def test_a_program_that_is_killed_leaves_a_timeline(tmp_path: Path) -> None:
    with running(tmp_path, "worker:hanging") as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGTERM)
        worker.wait_for("phase.entered", "draining")
        worker.send(signal.SIGKILL)
        assert worker.end()[0] == -signal.SIGKILL
        assert worker.verdict().startswith("Killed, or still at it, ")
        assert ", while draining: SIGTERM by " in worker.verdict()


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    with running(tmp_path, "worker:zzz") as worker:
        code, out, err = worker.end()
        assert (code, out) == (2, "")
        assert err == (
            "holdfast: module 'worker' has no attribute 'zzz'; name the host that it defines\n"
        )


def test_a_hook_that_blocks_the_loop_does_not_hold_the_exit(tmp_path: Path) -> None:
    settings = "[stop]\ngrace = '3s'\nbase = '300ms'\ncleanup = '500ms'\n"
    with running(tmp_path, "worker:blocking", settings) as worker:
        worker.wait_for("ready.changed", "ready")
        worker.send(signal.SIGTERM)
        code, _, err = worker.end()
        assert code == 4, err
        assert "block_the_loop" in worker.wait_for("component.forced", "event loop")["detail"]
        assert worker.records()[-1]["data"] == {"code": 4}
