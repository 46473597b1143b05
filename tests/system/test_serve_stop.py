"""How `holdfast serve` stops what makes it hard: bounded, told, with the right exit code."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apps.serving import Home, ask
from tests.system.stopping import APP, Life, Stream, living, on_asyncio, soon

pytestmark = pytest.mark.system

SHORT = """
[stop]
grace = "6s"
base = "600ms"
cleanup = "1s"
lame_duck = "300ms"
calm = "100ms"
quiet = "200ms"
retry_after = "7s"
"""
PATIENT = SHORT.replace("600ms", "20s").replace("6s", "40s", 1)
FAST = """
import time
from fastapi import FastAPI
app = FastAPI()

@app.get("/sync")
def sync():
    time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def stop(life: Life) -> int:
    life.send(signal.SIGTERM)
    return life.ended()


# -- the start -------------------------------------------------------------------------------------


def test_a_start_that_fails(home: Home) -> None:
    with living(home, "failing", SHORT, ready=False) as life:
        assert life.ended() == 3, life.story()
        log = life.served.log()
        assert "no route to the database" in log
        assert "listens on" not in log
        assert life.records()[-1]["subject"] == "failed_to_start"
        assert life.verdict().startswith("Failed to start")


def test_a_start_that_takes_too_long(home: Home) -> None:
    with living(home, "slow_start", f'{SHORT}start = "700ms"\n', ready=False) as life:
        assert life.ended() == 3, life.story()
        (failed,) = life.records("component.failed")
        assert failed["subject"] == "application"
        assert "700 ms" in failed["detail"]
        assert life.said() == ["starting", "start broke off CancelledError"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_has_started_is_stopped_when_it_cannot_listen(home: Home, loop: str) -> None:
    on_asyncio(home, loop)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        # Both have bound it by then, which the system allows; the first who listens has it.
        with living(home, "late_start", SHORT, "--port", port, ready=False) as life:
            life.says("starting")
            other.listen()
            assert life.ended() == 2, life.story()
            assert life.said() == ["starting", "started", "stopping", "stopped"]
            assert f"port {port} on 127.0.0.1 is in use" in life.served.log()
            assert "Traceback" not in life.served.log()


# -- what hangs ------------------------------------------------------------------------------------


def test_a_hook_that_hangs(home: Home) -> None:
    with living(home, "hanging_hook", SHORT) as life:
        assert stop(life) == 4, life.story()
        (failed,) = life.records("hook.failed")
        assert failed["subject"] == "flush of metrics"
        assert life.said()[-2:] == ["stopping", "stopped"]  # the rest of the clean-up had its turn
        assert "flush of metrics" in life.verdict()
        assert ", its clean-up ran out of time: SIGTERM" in life.verdict()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_hook_that_blocks_the_loop(home: Home, loop: str) -> None:
    on_asyncio(home, loop)
    with living(home, "blocking_hook", SHORT) as life:
        assert stop(life) == 4, life.story()
        (forced,) = life.records("component.forced")
        assert forced["subject"] == "event loop"
        assert "with_blocking_hook" in forced["detail"]
        began = life.records("stop.begun")[0]["at"]
        assert life.records()[-1]["at"] - began < 6  # the grace


def test_a_shutdown_of_the_application_that_hangs(home: Home) -> None:
    with living(home, "slow_stop", SHORT) as life:
        assert stop(life) == 4, life.story()
        (forced,) = life.records("component.forced")
        assert forced["subject"] == "application"
        assert "was not done in time" in forced["detail"]
        assert life.said()[-1] == "stop broke off CancelledError"
        assert "appears unsupported" not in life.served.log()


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_that_never_ends(home: Home, mode: str, loop: str) -> None:
    on_asyncio(home, loop)
    settings = f'mode = "{mode}"\n{SHORT}'
    with living(home, "plain", settings) as life, Stream(life, "/hang") as hang:
        time.sleep(0.2)
        assert stop(life) == 4, life.story()
        head, _, body = hang.rest().partition(b"\r\n\r\n")
        assert b" 503 Service Unavailable" in head
        assert b"\r\nretry-after: 7\r\n" in head
        assert b"\r\nconnection: close" in head
        assert b"\r\ncontent-type: application/problem+json\r\n" in head
        problem = json.loads(body)
        assert (problem["kind"], problem["status"]) == ("shutdown", 503)
        assert problem["type"] == "urn:holdfast:problem:shutting-down"
        told = f"{head.decode()}\n{body.decode()}"
        assert "SIGTERM" in told
        assert "from process" not in told
        assert not re.search(rf"\b{os.getpid()}\b|of user|python|pytest", told)
        assert f"from process {os.getpid()} " in life.records("stop.begun")[0]["cause"]
        assert life.said()[2:] == ["cancelled CancelledError shutdown", "stopping", "stopped"]
        (cut,) = life.records("drain.cut")
        assert [work["scope"] for work in cut["data"]["work"]] == ["GET /hang"]
        assert ", at the drain deadline: SIGTERM" in life.verdict()
        assert life.verdict().endswith("; 0 requests finished, 1 cut")


def test_a_worker_tells_no_client_who_stopped_its_supervisor(home: Home) -> None:
    workers = ("--workers", "2")
    with living(home, "plain", SHORT, *workers) as life, Stream(life, "/hang") as hang:
        time.sleep(0.3)
        stop(life)
        told = hang.rest().decode()
        assert "SIGTERM" in told
        assert "from process" not in told
        assert not re.search(rf"\b{os.getpid()}\b|of user|pytest", told)


def test_a_request_that_never_ends_and_is_served_bare(home: Home) -> None:
    with living(home, "plain", f'mode = "off"\n{SHORT}') as life, Stream(life, "/hang") as hang:
        time.sleep(0.2)
        assert stop(life) == 4, life.story()
        assert b" 500 Internal Server Error" in hang.rest()
        assert life.said()[2:] == ["cancelled CancelledError shutdown", "stopping", "stopped"]
        assert not life.records("component.forced")
        assert life.verdict().endswith("; 0 requests finished, 1 cut")


def test_a_stream_that_never_ends_is_cut_and_its_client_sees_it(home: Home) -> None:
    with living(home, "plain", SHORT) as life, Stream(life, "/stream/60") as stream:
        assert b"200 OK" in stream.first()
        assert stop(life) == 4, life.story()
        rest = stream.rest()
        assert not rest.endswith(b"0\r\n\r\n")  # nobody takes the part for the whole


def test_a_thread_that_does_not_return(home: Home) -> None:
    home.write("fast_sync.py", FAST)
    home.write("holdfast.toml", SHORT)
    with home.serve("fast_sync:app", "--timeline", "life.jsonl") as served:
        life = Life(home, served)
        with Stream(life, "/sync") as stuck:
            assert soon(lambda: life.home.sockets.joinpath(f"{served.pid}.sock").exists())
            time.sleep(0.3)
            began = time.monotonic()
            assert stop(life) == 4, life.story()
            assert time.monotonic() - began < 6 + 9  # loose; the thread sleeps for a minute
            assert b" 503 Service Unavailable" in stuck.rest()
        assert "the process is still there" in served.log()
        assert life.records()[-1]["subject"] == "timed_out"


def test_a_handler_that_does_not_let_itself_be_cancelled(home: Home) -> None:
    with living(home, "stubborn", SHORT) as life, Stream(life, "/stubborn") as stubborn:
        time.sleep(0.2)
        assert stop(life) == 4, life.story()
        assert b" 503 Service Unavailable" in stubborn.rest()
        assert life.records("drain.step", "abandoned")[0]["data"]["work"] == ["GET /stubborn"]
        assert life.records()[-1]["data"]["abandoned"] == ["GET /stubborn"]
        assert "stopped" in life.said()  # the clean-up had its turn all the same


def test_a_thread_of_the_application_does_not_hold_the_exit(home: Home) -> None:
    with living(home, "threaded", SHORT) as life:
        assert stop(life) == 0, life.story()
        assert re.search("the process is still there.* and the threads poller", life.served.log())


def test_a_shutdown_of_the_application_that_raises(home: Home) -> None:
    with living(home, "raises", SHORT) as life:
        assert stop(life) == 0, life.story()
        log = life.served.log()
        assert "RuntimeError: the flush failed" in log
        assert "appears unsupported" not in log
        assert life.records("component.failed")[0]["subject"] == "application"


def test_nobody_reads_what_it_says(home: Home) -> None:
    """It stands still in the middle of a line, which no signal and no deadline changes."""
    home.write("hard.py", APP)
    home.write("holdfast.toml", SHORT)
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    uds = str(home.runtime / "web.sock")
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.apps.cli", "serve", "hard:plain", "--uds", uds],
        cwd=home.path, env=home.environment(), stdin=subprocess.DEVNULL, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    try:
        os.close(theirs)
        assert soon(lambda: os.path.exists(uds) and answers(uds))
        assert soon(lambda: not answers(uds))  # the pipe is full
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 4
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def answers(uds: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        try:
            sock.connect(uds)
            return ask(sock, "/wait/0")[0] == 200
        except OSError:
            return False


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_whoever_read_what_it_says_is_gone(home: Home, stream: str) -> None:
    home.write("hard.py", APP)
    home.write("holdfast.toml", SHORT)
    uds = str(home.runtime / "web.sock")
    ours, theirs = os.pipe()
    with (home.path / "log").open("w") as log:
        streams: dict[str, Any] = {"stdout": log, "stderr": log, stream: theirs}
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.apps.cli", "serve", "hard:plain", "--uds", uds],
            cwd=home.path, env=home.environment(), stdin=subprocess.DEVNULL,
            stdout=streams["stdout"], stderr=streams["stderr"],
        )  # fmt: skip
    try:
        os.close(theirs)
        assert soon(lambda: os.path.exists(uds) and answers(uds))
        os.close(ours)
        assert answers(uds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


# -- what goes on ----------------------------------------------------------------------------------


def test_an_event_stream_that_listens_for_the_stop_ends_by_itself(home: Home) -> None:
    with living(home, "hooks", PATIENT) as life, Stream(life, "/events") as events:
        assert b"hello" in events.first()
        assert stop(life) == 0, life.story()
        assert events.rest().endswith(b"data: good-bye\n\n\r\n0\r\n\r\n")
        assert life.said()[2:] == ["told terminating", "exit hook", "stopping", "stopped"]
        assert not life.records("drain.cut")


def test_what_is_to_be_done_at_the_end_of_a_request_is_done_once(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        assert life.served.get("/ended/0?done")[0] == 200
        assert life.served.get("/ended/1?failed")[0] == 500
        late = life.served.get("/ended/2?late", "x-envoy-expected-rq-timeout-ms: 200")
        assert late[0] == 504
        with Stream(life, "/ended/2?left"):
            time.sleep(0.3)
        life.says("at_end left")
        with Stream(life, "/ended/2?stopped") as last:
            time.sleep(0.2)
            assert stop(life) == 4, life.story()
            assert b" 503 Service Unavailable" in last.rest()
        assert [line for line in life.said() if line.startswith("at_end")] == [
            "at_end done done -",
            "at_end failed failed -",
            "at_end late expired deadline",
            "at_end left cancelled client_disconnected",
            "at_end stopped cancelled shutdown",
        ]


def test_detached_work_of_a_request_is_waited_for_and_a_background_loop_is_not(home: Home) -> None:
    with living(home, "background", PATIENT) as life:
        assert life.served.get("/detach/1")[0] == 200
        assert stop(life) == 0, life.story()
        assert life.said()[2:] == [
            "audited", "beat ended CancelledError", "stopping", "stopped",
        ]  # fmt: skip
        (background,) = life.records("drain.step", "background")
        assert background["data"]["work"] == ["heart beat"]


def test_detached_work_that_never_ends_is_cut(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        assert life.served.get("/detach/3600")[0] == 200
        assert stop(life) == 4, life.story()
        (cut,) = life.records("drain.cut")
        assert [work["scope"] for work in cut["data"]["work"]] == ["audit"]
        assert "audited" not in life.said()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_processes_of_the_application_can_be_terminated(home: Home, loop: str) -> None:
    on_asyncio(home, loop)
    with living(home, "children", PATIENT) as life:
        assert stop(life) == 0, life.story()
        assert life.said()[-5:] == ["stopping", *["child ended -15"] * 3, "stopped"]


# -- what is left ----------------------------------------------------------------------------------


def test_the_last_record_but_one_says_what_the_process_was(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        assert life.served.get("/wait/0")[0] == life.served.get("/wait/0")[0] == 200
        assert life.served.get("/wait/5", "x-envoy-expected-rq-timeout-ms: 100")[0] == 504
        with Stream(life, "/hang"):
            time.sleep(0.2)
            assert stop(life) == 4, life.story()
        snapshot, ended = life.records()[-2:]
        assert (snapshot["kind"], ended["kind"]) == ("process.snapshot", "process.ended")
        found = snapshot["data"]
        assert 0 < found["uptime_s"] < 60
        assert found["requests"]["answered"] == 4
        assert (found["requests"]["ended.deadline"], found["requests"]["ended.shutdown"]) == (1, 1)
        assert found["cancelled"]["shutdown"] >= 1
        assert found["leaked"] == found["escaped"] == found["swallowed"] == 0
        assert 10 << 20 < found["memory"]["rss"] <= found["memory"]["peak"]
        assert found["tasks"] < 10
        assert found["threads"] < 20
        assert ended["data"]["cut"] == 1


def test_stops_that_fail_are_remembered_and_the_next_start_says_so(home: Home) -> None:
    with living(home, "plain", SHORT) as life:
        assert "of the last stops failed" not in life.served.log()
        assert stop(life) == 0
    for failures in (1, 2):
        with living(home, "plain", SHORT) as life:
            with Stream(life, "/hang"):
                time.sleep(0.2)
                assert stop(life) == 4, life.story()
            assert f"failures that count: {failures}" in life.served.log()
    assert "2 failures" in home.run("stops").stdout
    with living(home, "plain", SHORT) as life:
        line = life.served.wait_for(r"stop  .*")[0]
        assert "2 of the last stops failed, so the drain may take 1.35 s" in line
        assert "drain 1.35 s" in line
        assert stop(life) == 0


def test_a_memory_that_cannot_be_written_is_a_warning(home: Home) -> None:
    with living(home, "plain", f'{SHORT}memory = "/proc/nowhere/stops.json"\n') as life:
        assert life.served.get("/wait/0")[0] == 200
        assert stop(life) == 0, life.story()
        log = life.served.log()
        assert "/proc/nowhere/stops.json: cannot be written" in log
        assert "Traceback" not in log
