"""Several workers and their supervisor: who dies, who is replaced, and who is left (nobody)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.domain.record import record_from_dict
from tests.apps.serving import PATIENCE, Home, Served, alive, ask, children, gone
from tests.system.stopping import on_asyncio

pytestmark = pytest.mark.system

MOODY = """
import asyncio, os, time

here = os.path.dirname(__file__)

def told(word):
    return os.path.exists(os.path.join(here, word))

if told("exit-at-import"):
    os._exit(1)

async def crash_soon():
    await asyncio.sleep(0.05)
    os._exit(1)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if told("slow"):
            await asyncio.sleep(3)
        if told("fail"):
            await send({"type": "lifespan.startup.failed", "message": "no such database"})
            return
        if told("crash"):
            app.crashing = asyncio.create_task(crash_soon())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    word, _, seconds = scope["path"].strip("/").partition("/")
    if float(seconds or 0) >= 1:
        print("serves", scope["path"], flush=True)
    if word == "wait":
        await asyncio.sleep(float(seconds))
    if word == "block":
        time.sleep(float(seconds))
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    made.write("moody.py", MOODY)
    yield made
    made.close()


def until(true: Callable[[], object], served: Served) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, served.log()
        time.sleep(0.02)


def count(served: Served, pattern: str) -> int:
    return len(re.findall(pattern, served.log()))


def ready(served: Served, number: int) -> list[int]:
    """The workers, once so many of them have said in all that they are ready."""
    until(lambda: count(served, r"worker\.ready") >= number, served)
    return children(served.pid)


class Asking:
    """A request in a thread of its own."""

    def __init__(self, served: Served, path: str) -> None:
        self.status = 0
        self._served, self._path = served, path
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        served.wait_for(f"serves {path}")

    def _ask(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._served.port), timeout=60) as sock:
                self.status = ask(sock, self._path)[0]
        except (OSError, IndexError, ValueError):
            self.status = -1

    def done(self) -> int:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.status


# -- deaths ----------------------------------------------------------------------------------------


def test_a_worker_that_was_killed_is_replaced(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        first = ready(served, 2)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        served.wait_for(rf"worker\.died worker {first[0]} killed by SIGKILL")
        now = ready(served, 3)
        assert len(now) == 2
        assert first[1] in now
        assert served.get("/x")[0] == 200
        assert served.stop(signal.SIGTERM) == 0
    assert not any(alive(worker) for worker in (*first, *now))


def test_nobody_is_left_of_a_supervisor_that_was_killed(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        asking = Asking(served, "/wait/1")
        os.kill(served.pid, signal.SIGKILL)
        assert asking.done() == 200
        assert all(gone(worker) for worker in workers)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", served.port))
            sock.listen()


def test_not_even_a_worker_that_hears_nothing(home: Home) -> None:
    home.write("holdfast.toml", '[stop]\ngrace = "3s"\n')
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        Asking(served, "/block/40")
        os.kill(served.pid, signal.SIGKILL)
        assert all(gone(worker) for worker in workers)
        assert "has no supervisor, and did not stop within 3 s" in served.log()


def test_a_crash_loop_does_not_burn_the_machine(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        crash = home.write("crash", "")
        began = time.monotonic()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        # 0.25 + 0.5 + 1 s of pauses for each of the two before the fourth start.
        until(lambda: count(served, r"worker\.died") >= 2 + 2 * 3, served)
        assert time.monotonic() - began > 1.75
        served.wait_for("another one starts in 2 s")
        crash.unlink()
        before = count(served, r"worker\.ready")
        workers = ready(served, before + 2)
        assert len(workers) == 2
        assert served.get("/x")[0] == 200
        assert served.stop(signal.SIGTERM) == 0


def test_a_supervisor_whose_workers_crash_can_be_stopped(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        home.write("exit-at-import", "")
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        served.wait_for("another one starts in 1 s")
        assert served.stop(signal.SIGTERM) == 0


# -- the start -------------------------------------------------------------------------------------


def test_an_application_that_does_not_start_is_tried_once(home: Home) -> None:
    home.write("fail", "")
    done = home.run("serve", "moody:app", "--workers", "3", "--port", "0")
    assert done.returncode == 3
    assert done.stderr.count("no such database") == 1
    assert done.stderr.count("worker.started") == 1
    assert "the first worker did not start" in done.stderr
    assert "listens on" not in done.stderr


def test_what_the_user_can_put_right_is_told_once(home: Home) -> None:
    done = home.run("serve", "moody:ap", "--workers", "3", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.count("did you mean 'app'") == 1


def test_stopped_while_it_starts(home: Home) -> None:
    home.write("slow", "")
    with home.serve("moody:app", "--workers", "2", ready=False) as served:
        served.wait_for(r"worker\.started")
        (worker,) = children(served.pid)
        served.wait_for("Waiting for application startup")
        assert served.stop(signal.SIGTERM) == 0
        assert not alive(worker)
    assert count(served, r"worker\.started") == 1


def test_stopped_while_the_application_is_loaded(home: Home) -> None:
    home.write("heavy.py", "import time\ntime.sleep(40)\n")
    with home.serve("heavy:app", "--workers", "2", ready=False) as served:
        served.wait_for(r"worker\.started")
        (worker,) = children(served.pid)
        time.sleep(0.5)
        assert served.stop(signal.SIGTERM) == 0
        assert not alive(worker)


SLOW_QUOTA = """
import os, time
from holdfast.apps.serve import service
from moody import app

read_quota = service.read_quota

def slow():
    open(os.path.join(os.path.dirname(__file__), f"reads-{os.getpid()}"), "w").close()
    time.sleep(1)
    return read_quota()

service.read_quota = slow
"""
SLOW_OPERATOR = """
import asyncio, os
from holdfast.apps.serve.operator import Operator
from moody import app

start = Operator.start

async def slow(self):
    open(os.path.join(os.path.dirname(__file__), f"reads-{os.getpid()}"), "w").close()
    await asyncio.sleep(1)
    await start(self)

Operator.start = slow
"""


@pytest.mark.parametrize(
    ("slow", "how"),
    [(SLOW_QUOTA, "ordered"), (SLOW_OPERATOR, "ordered"), (SLOW_OPERATOR, "alone")],
    ids=["quota", "operator", "alone"],
)
def test_told_to_stop_before_the_host_has_begun(home: Home, slow: str, how: str) -> None:
    on_asyncio(home)
    home.write("late.py", slow)
    with home.serve("late:app", "--workers", "2", ready=False) as served:
        until(lambda: list(home.path.glob("reads-*")), served)
        (worker,) = children(served.pid)
        if how == "alone":
            os.kill(worker, signal.SIGTERM)
            assert gone(worker)
            assert served.process.wait(PATIENCE) == 3  # the first one was not ready
        else:
            assert served.stop(signal.SIGTERM) == 0
        assert not alive(worker)
        assert "was not started" not in served.log()
        assert "Traceback" not in served.log()
    assert count(served, r"worker\.ready") == 0


# -- rolls -----------------------------------------------------------------------------------------


def test_hang_up_rolls_new_before_old(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        old = ready(served, 2)
        served.send(signal.SIGHUP)
        served.wait_for("every worker is a new one")
        told = re.findall(r"(worker\.ready|requested worker|worker\.retired)", served.log())
        assert told[2:] == ["worker.ready", "requested worker", "worker.retired"] * 2
        assert not set(old) & set(children(served.pid))
        assert served.get("/x")[0] == 200
        assert served.stop(signal.SIGTERM) == 0


def test_a_wrong_policy_is_not_taken(home: Home) -> None:
    file = home.write("holdfast.toml", '[timeouts]\nrequest = "5s"\n')
    with home.serve("moody:app", "--workers", "2") as served:
        old = ready(served, 2)
        file.write_text('[timeouts]\nrequest = "soon"\n')
        served.send(signal.SIGHUP)
        served.wait_for("was not changed, the old one holds: holdfast.toml:2: timeouts.request")
        # A worker that dies now is replaced by one with the policy that holds.
        os.kill(old[0], signal.SIGKILL)
        assert len(ready(served, 3)) == 2
        assert served.get("/wait/0.1")[0] == 200
        assert served.stop(signal.SIGTERM) == 0


def test_a_new_application_that_does_not_start_is_given_up(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        old = ready(served, 2)
        fail = home.write("fail", "")
        served.send(signal.SIGHUP)
        served.wait_for("the roll is given up, the old workers stay")
        assert set(children(served.pid)) == set(old)
        assert served.get("/x")[0] == 200
        fail.unlink()
        served.send(signal.SIGHUP)
        served.wait_for("every worker is a new one")
        assert served.stop(signal.SIGTERM) == 0


def test_stopped_while_it_rolls(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        ready(served, 2)
        home.write("slow", "")
        served.send(signal.SIGHUP)
        until(lambda: count(served, r"worker\.started") == 3, served)
        workers = children(served.pid)
        assert len(workers) == 3
        asking = Asking(served, "/wait/1")
        assert served.stop(signal.SIGTERM) == 0
        assert asking.done() == 200
        assert not any(alive(worker) for worker in workers)


# -- stops -----------------------------------------------------------------------------------------


def test_a_stop_lets_what_is_served_end(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        ready(served, 2)
        asking = Asking(served, "/wait/1.5")
        assert served.stop(signal.SIGTERM) == 0
        assert asking.done() == 200
        assert "SIGTERM from process" in served.log()


def test_a_second_signal_is_heard_and_forces(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        asking = Asking(served, "/wait/9")
        served.send(signal.SIGTERM)
        served.wait_for(r"stop\.begun")
        began = time.monotonic()
        assert served.stop(signal.SIGINT) == 5
        assert time.monotonic() - began < 8
        assert asking.done() != 200
        assert re.search(r"component\.forced worker \d+ told to cut .*SIGINT", served.log())
        assert not any(alive(worker) for worker in workers)


def test_a_signal_to_all_of_a_terminal_is_one_stop(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        asking = Asking(served, "/wait/1.5")
        for process in (*workers, served.pid):  # as Ctrl-C does
            os.kill(process, signal.SIGINT)
        assert served.process.wait(PATIENCE) == 0
        assert asking.done() == 200


def test_a_worker_that_is_told_to_stop_by_somebody_else_is_replaced(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        first = ready(served, 2)
        os.kill(first[0], signal.SIGTERM)
        served.wait_for(rf"worker\.died worker {first[0]} ended with exit code 0")
        assert len(ready(served, 3)) == 2
        assert served.get("/x")[0] == 200
        assert served.stop(signal.SIGTERM) == 0


def test_a_worker_that_does_not_stop_in_time_is_killed_and_named(home: Home) -> None:
    home.write("holdfast.toml", '[stop]\ngrace = "2s"\n')
    with home.serve("moody:app", "--workers", "2") as served:
        ready(served, 2)
        Asking(served, "/block/40")
        assert served.stop(signal.SIGTERM) == 4
        assert re.search(r"component\.forced worker \d+ killed: not gone after 2", served.log())


def test_quit_dumps_everybody_and_ends(home: Home) -> None:
    path = home.path / "story.jsonl"
    with home.serve("moody:app", "--workers", "2", "--timeline", str(path)) as served:
        workers = ready(served, 2)
        assert served.stop(signal.SIGQUIT) == 131
        assert not any(alive(worker) for worker in workers)
        assert f"the supervisor, {served.pid}" in served.log()
        # Their dumps may be mixed up with each other, since they write at the same time.
        for worker in workers:
            assert f"worker {worker} ended with exit code 131" in served.log()
    records = [record_from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    for worker in workers:
        # The supervisor tells it to stop as well, which may be heard in between.
        own = [(r.kind, r.subject) for r in records if r.pid == worker]
        assert ("signal.received", "SIGQUIT") in own, f"{own}\n{served.log()}"
        assert own[-2:] == [("dump.written", "stacks"), ("process.ended", "quit")]


def test_stacks_on_demand(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        workers = ready(served, 2)
        served.send(signal.SIGUSR1)
        until(lambda: count(served, r"dump\.written") == 3, served)
        assert served.get("/x")[0] == 200
        assert children(served.pid) == workers
        assert served.stop(signal.SIGTERM) == 0


def test_more_and_fewer_workers(home: Home) -> None:
    with home.serve("moody:app", "--workers", "2") as served:
        ready(served, 2)
        served.send(signal.SIGTTIN)
        assert len(ready(served, 3)) == 3
        for _ in range(3):
            served.send(signal.SIGTTOU)
            time.sleep(0.1)  # equal signals that wait are joined by the kernel
        until(lambda: len(children(served.pid)) == 1, served)
        assert served.get("/x")[0] == 200
        assert served.stop(signal.SIGTERM) == 0


# -- under load ------------------------------------------------------------------------------------


class Client(threading.Thread):
    """A client that keeps its connection as long as it may, and counts what became of requests."""

    def __init__(self, port: int, enough: threading.Event) -> None:
        super().__init__()
        self._port, self._enough = port, enough
        self.answered = self.lost = self.refused = 0

    def run(self) -> None:
        while not self._enough.is_set():
            try:
                sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            except OSError:
                self.refused += 1
                continue
            with sock:
                self._requests(sock)

    def _requests(self, sock: socket.socket) -> None:
        while not self._enough.is_set():
            try:
                sock.sendall(b"GET /wait/0.01 HTTP/1.1\r\nhost: t\r\n\r\n")
                answer = b""
                while not re.search(rb"\r\n\r\n\d+$", answer):
                    data = sock.recv(4096)
                    if not data:
                        raise ConnectionError
                    answer += data
            except OSError:
                self.lost += 1
                return
            self.answered += 1
            if b"connection: close" in answer.lower():
                return
            self._enough.wait(0.02)


def test_rolls_under_load_lose_nothing(home: Home) -> None:
    enough = threading.Event()
    with home.serve("moody:app", "--workers", "2", "--no-access-log") as served:
        ready(served, 2)
        clients = [Client(served.port, enough) for _ in range(20)]
        for client in clients:
            client.start()
        try:
            for roll in range(1, 4):
                served.send(signal.SIGHUP)
                until(lambda roll=roll: count(served, "every worker is a new one") == roll, served)
        finally:
            enough.set()
            for client in clients:
                client.join()
        assert served.stop(signal.SIGTERM) == 0
    assert sum(client.answered for client in clients) > 100
    assert sum(client.refused for client in clients) == 0
    assert sum(client.lost for client in clients) == 0


def test_one_time_line_tells_of_all(home: Home) -> None:
    path = home.path / "story.jsonl"
    with home.serve("moody:app", "--workers", "2", "--timeline", str(path)) as served:
        workers = ready(served, 2)
        assert served.stop(signal.SIGTERM) == 0
    records = [record_from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    assert {record.pid for record in records} == {served.pid, *workers}
    assert {r.data["pid"] for r in records if r.kind == "worker.retired"} == set(workers)
    ends = {r.pid: r.data["code"] for r in records if r.kind == "process.ended"}
    assert ends == {served.pid: 0} | dict.fromkeys(workers, 0)
    shown = home.run("timeline", str(path))
    assert shown.returncode == 0, shown.stderr
    assert all(str(pid) in shown.stdout for pid in (served.pid, *workers))
    assert "had not stopped" not in shown.stdout
    assert shown.stdout.startswith("Clean stop in ")


# -- nobody reads ----------------------------------------------------------------------------------


def fill(pipe: int) -> None:
    """Fill a pipe whose other writers are to wait for room in it."""
    own = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(own, b"x" * size)
    finally:
        os.close(own)


@pytest.mark.parametrize("target", ["moody:app", "aside:app"])
def test_nobody_reads_what_a_fleet_says(home: Home, target: str) -> None:
    """It stands still in the middle of a line; its workers were told before, and all of them end.

    Those of `aside` say what they say elsewhere, and do not stand still.
    """
    home.write("aside.py", "import os\nos.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
               "from moody import app\n")  # fmt: skip
    home.write("holdfast.toml", '[stop]\ngrace = "5s"\ncleanup = "1s"\n')
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "holdfast.apps.cli", "serve", target, "--workers", "2"]
    command += ["--no-access-log", "--timeline", "life.jsonl", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=home.path, env=home.environment(), stdin=subprocess.DEVNULL, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    life = home.path / "life.jsonl"

    def told(kind: str) -> list[dict[str, object]]:
        lines = life.read_text().splitlines() if life.exists() else []
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    try:
        end = time.monotonic() + PATIENCE
        while len(told("worker.ready")) < 2:
            assert time.monotonic() < end, life.read_text()
            time.sleep(0.02)
        workers = children(process.pid)
        fill(theirs)
        os.close(theirs)
        process.send_signal(signal.SIGTERM)
        if target == "aside:app":
            assert all(gone(worker) for worker in workers)
            assert process.poll() is None
        assert process.wait(20) == 4
        assert len(workers) == 2
        assert all(gone(worker) for worker in workers)
        assert [record["subject"] for record in told("component.forced")] == ["supervisor"]
    finally:
        process.kill()
        process.wait()
        os.close(ours)
