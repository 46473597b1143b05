"""Every signal in every phase of `holdfast serve`: what it does, the exit code, and its record."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import Home, everything
from tests.system.stopping import APP, Life, Stream, living, sent

pytestmark = pytest.mark.system

# Whoever is cut is cut soon, and nothing else depends on how fast this machine is.
SHORT = """
[stop]
grace = "6s"
base = "600ms"
cleanup = "1s"
lame_duck = "300ms"
calm = "100ms"
quiet = "200ms"
"""
PATIENT = SHORT.replace("600ms", "20s").replace("6s", "40s", 1).replace("1s", "10s", 1)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def told(life: Life, name: str, before: str, after: str) -> None:
    """There is a record of that signal with us as its sender."""
    found = life.signals(name)
    assert any(sent(data, before, after) for data in found), found


def ends_with(life: Life, code: int, subject: str) -> None:
    """The exit code, the last records, and that they agree."""
    assert life.ended() == code, life.story()
    snapshot, ended = life.records()[-2:]
    assert snapshot["kind"] == "process.snapshot"
    assert (ended["kind"], ended["subject"]) == ("process.ended", subject)
    assert ended["data"]["code"] == code
    assert "Traceback" not in life.served.log(), life.served.log()


def left_after_a_dump(life: Life, before: str) -> None:
    """QUIT: at once, with the stacks of everything, and nothing in order."""
    assert life.ended() == 131, life.story()
    (found,) = life.signals("SIGQUIT")
    assert (found["before"], found["after"], found["meaning"]) == (
        before, "stopped", "dump_and_exit",
    )  # fmt: skip
    log = life.served.log()
    assert "Thread 0x" in log  # by faulthandler, in C
    assert "tasks\n" in log
    assert "hard.py" in log
    assert "stopping" not in life.said()
    assert life.records()[-1]["subject"] == "quit"
    assert life.verdict().startswith("Left at once, after a dump: ")


# -- while it starts -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_application_starts(home: Home, number: signal.Signals) -> None:
    with living(home, "slow_start", SHORT, ready=False) as life:
        life.says("starting")
        life.send(number)
        ends_with(life, 0, "clean")
        told(life, number.name, "initializing", "terminating")
        # It did not come up, so it has no shutdown: it is cancelled, before the end of the process.
        assert life.said() == ["starting", "start broke off CancelledError"]
        assert "appears unsupported" not in life.served.log()
        assert [r["subject"] for r in life.records("phase.entered")] == [
            "initializing", "terminating", "draining", "stopped",
        ]  # fmt: skip


def test_others_while_the_application_starts_change_nothing(home: Home) -> None:
    with living(home, "late_start", SHORT, ready=False) as life:
        life.says("starting")
        life.send(signal.SIGUSR1)
        life.send(signal.SIGHUP)
        assert "not while the process is initializing" in life.wait_for("config.refused")["detail"]
        assert life.wait_for("dump.written")["cause"].startswith("SIGUSR1 from process")
        told(life, "SIGUSR1", "initializing", "initializing")
        told(life, "SIGHUP", "initializing", "initializing")
        life.served.url = life.served.wait_for(r"listens on +(\S+)")[1]
        assert life.served.get("/wait/0")[0] == 200
        life.send(signal.SIGTERM)
        ends_with(life, 0, "clean")


def test_quit_while_the_application_starts(home: Home) -> None:
    with living(home, "slow_start", SHORT, ready=False) as life:
        life.says("starting")
        life.send(signal.SIGQUIT)
        left_after_a_dump(life, "initializing")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGQUIT, 131)]
)
def test_while_the_application_is_loaded(home: Home, number: signal.Signals, code: int) -> None:
    home.write("slow.py", "import os, time\nos.write(2, b'loading\\n')\ntime.sleep(3600)\n")
    path = home.runtime / "web.sock"
    with home.serve("slow:app", "--uds", str(path), ready=False) as served:
        served.wait_for("loading")
        served.send(number)
        assert served.process.wait(15) == code, served.log()
    assert number == signal.SIGQUIT or not path.exists()


@pytest.mark.parametrize(("target", "code"), [("hard:slow_start", 0), ("slow:app", 129)])
def test_its_terminal_goes_while_it_starts(home: Home, target: str, code: int) -> None:
    home.write("hard.py", APP)
    home.write("slow.py", "import os, time\nos.write(2, b'SAY starting\\n')\ntime.sleep(3600)\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.apps.cli", "serve", target, "--port", "0"],
        cwd=home.path, env=home.environment(), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    try:
        os.close(theirs)
        text = b""
        while b"SAY starting" not in text:
            text += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()


# -- while it serves -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_a_response_streams(home: Home, number: signal.Signals) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/stream/1") as stream:
        assert b"200 OK" in stream.first()
        life.send(number)
        assert b"whole" in stream.rest()
        ends_with(life, 0, "clean")
        told(life, number.name, "running", "terminating")
        assert life.said()[-2:] == ["stopping", "stopped"]
        assert life.verdict().startswith("Clean stop in ")


def test_a_dump_and_a_reload_while_a_response_streams(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/stream/1.5") as stream:
        assert b"200 OK" in stream.first()
        life.send(signal.SIGUSR1)
        life.wait_for("dump.written")
        told(life, "SIGUSR1", "running", "running")
        assert "App.get_stream" in life.served.log()
        home.write("holdfast.toml", f'{PATIENT}\n[timeouts]\nrequest = "soon"\n')
        life.send(signal.SIGHUP)
        refused = life.wait_for("config.refused")["detail"]
        assert "timeouts.request" in refused
        assert refused.endswith("the old one stays")
        told(life, "SIGHUP", "running", "running")
        home.write("holdfast.toml", f'{PATIENT}\n[timeouts]\nrequest = "300ms"\n')
        life.send(signal.SIGHUP)
        life.wait_for("config.reloaded")
        assert life.served.get("/wait/5")[0] == 504
        assert b"whole" in stream.rest()
        life.send(signal.SIGTERM)
        ends_with(life, 0, "clean")


def test_what_a_reload_does_not_change_is_told(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        home.write("holdfast.toml", SHORT.replace("600ms", "700ms"))
        life.send(signal.SIGHUP)
        life.served.wait_for(r"\[stop\] and \[health\] were changed")
        life.send(signal.SIGTERM)
        ends_with(life, 0, "clean")


def test_quit_while_a_response_streams(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/stream/30") as stream:
        assert b"200 OK" in stream.first()
        life.send(signal.SIGQUIT)
        left_after_a_dump(life, "running")
        assert "App.get_stream" in life.served.log()
        assert b"whole" not in stream.rest()


def test_quit_while_the_loop_is_stuck(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/block/50"):
        life.says("blocking")
        began = time.monotonic()
        life.send(signal.SIGQUIT)
        left_after_a_dump(life, "running")
        assert time.monotonic() - began < 20
        assert "get_block" in life.served.log()


@pytest.mark.parametrize("stuck", [False, True])
def test_quit_can_mean_a_stop(home: Home, stuck: bool) -> None:
    settings = f'{PATIENT}quit = "stop"\n'
    with (
        living(home, "plain", settings) as life,
        Stream(life, f"/{['wait', 'block'][stuck]}/1") as s,
    ):
        if stuck:
            life.says("blocking")
        time.sleep(0.1)
        life.send(signal.SIGQUIT)
        assert b"200 OK" in s.rest()
        ends_with(life, 0, "clean")
        told(life, "SIGQUIT", "running", "terminating")


# -- while it stops --------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_and_names_what_it_cut(home: Home, second: signal.Signals) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/hang") as hang:
        time.sleep(0.2)
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "draining")
        life.send(second)
        head, _, body = hang.rest().partition(b"\r\n\r\n")
        assert b"503 Service Unavailable" in head
        assert json.loads(body)["kind"] == "shutdown"
        ends_with(life, 5, "forced")
        told(life, second.name, "draining", "draining")
        assert life.signals(second.name)[-1]["again"]
        (cut,) = life.records("drain.cut")
        assert [work["scope"] for work in cut["data"]["work"]] == ["GET /hang"]
        assert cut["data"]["work"][0]["waits"]
        assert life.said()[-3:] == ["cancelled CancelledError shutdown", "stopping", "stopped"]
        assert life.verdict().startswith("Forced stop in ")


def test_a_dump_and_a_reload_while_it_drains_change_nothing(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/stream/1.5") as stream:
        assert b"200 OK" in stream.first()
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "draining")
        life.send(signal.SIGUSR1)
        life.wait_for("dump.written")
        life.send(signal.SIGHUP)
        assert "not while the process is draining" in life.wait_for("config.refused")["detail"]
        told(life, "SIGUSR1", "draining", "draining")
        told(life, "SIGHUP", "draining", "draining")
        assert b"whole" in stream.rest()
        ends_with(life, 0, "clean")


def test_quit_while_it_drains(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/hang"):
        time.sleep(0.2)
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "draining")
        life.send(signal.SIGQUIT)
        left_after_a_dump(life, "draining")
        assert "App.get_hang" in life.served.log()


# -- while it cleans up ----------------------------------------------------------------------------


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_it_cleans_up(home: Home, second: signal.Signals) -> None:
    with living(home, "slow_stop", PATIENT) as life:
        life.send(signal.SIGTERM)
        life.says("stopping")
        life.send(second)
        ends_with(life, 5, "forced")
        told(life, second.name, "draining", "draining")
        assert life.records("component.forced", "application")
        assert life.said()[-1] == "stop broke off CancelledError"


def test_others_while_it_cleans_up(home: Home) -> None:
    with living(home, "slow_stop", PATIENT) as life:
        life.send(signal.SIGTERM)
        life.says("stopping")
        life.send(signal.SIGUSR1)
        life.wait_for("dump.written")
        assert "App.lifespan" in life.served.log()
        life.send(signal.SIGHUP)
        life.wait_for("config.refused")
        told(life, "SIGHUP", "draining", "draining")
        life.send(signal.SIGQUIT)
        assert life.ended() == 131
        assert "stopped" not in life.said()


# -- while the loop is stuck -----------------------------------------------------------------------


def test_a_stop_that_the_loop_does_not_hear_ends_all_the_same(home: Home) -> None:
    with living(home, "plain", SHORT) as life, Stream(life, "/block/50") as stream:
        life.says("blocking")
        life.send(signal.SIGTERM)
        assert life.ended() == 4, life.story()
        assert stream.rest() in (b"", b"reset")
        told(life, "SIGTERM", "running", "running")
        (forced,) = life.records("component.forced")
        assert "hard.py" in forced["detail"]
        assert "App.get_block" in forced["detail"]
        assert life.records()[-1]["data"] == {"code": 4}


def test_two_signals_that_the_loop_does_not_hear_force(home: Home) -> None:
    with (
        living(home, "plain", PATIENT.replace("10s", "100ms", 1)) as life,
        Stream(life, "/block/50"),
    ):
        life.says("blocking")
        life.send(signal.SIGTERM)
        life.send(signal.SIGUSR1)
        time.sleep(0.2)
        life.send(signal.SIGINT)
        assert life.ended() == 5, life.story()
        told(life, "SIGTERM", "running", "running")
        told(life, "SIGINT", "running", "running")
        assert life.verdict().startswith("Forced stop")


def test_a_loop_that_was_stuck_for_a_while_stops_in_order(home: Home) -> None:
    with living(home, "plain", PATIENT) as life, Stream(life, "/block/1") as stream:
        life.says("blocking")
        life.send(signal.SIGTERM)
        assert b"200 OK" in stream.rest()
        ends_with(life, 0, "clean")
        told(life, "SIGTERM", "running", "terminating")


# -- who, and for whom -----------------------------------------------------------------------------


def test_the_cause_of_the_stop_is_its_sender(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        life.send(signal.SIGTERM)
        ends_with(life, 0, "clean")
        (found,) = life.signals("SIGTERM")
        assert found["command"]
        assert f"process {os.getpid()}" in life.records("stop.begun")[0]["cause"]


def test_a_client_that_only_connected_does_not_hold_it(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        address = ("127.0.0.1", life.served.port)
        with socket.create_connection(address, timeout=20) as silent:
            life.send(signal.SIGTERM)
            assert everything(silent) == b""
            ends_with(life, 0, "clean")
