"""`holdfast serve` as a user has it: real processes, real sockets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import Home, ask, children, everything, gone, operator

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("target", ["fast:app", "star:app"])
def test_unchanged_application_gets_504_at_the_limit_of_its_caller(home: Home, target: str) -> None:
    with home.serve(target, "--service", "shop") as served:
        began = time.monotonic()
        status, head, body = served.get("/wait/5", "x-envoy-expected-rq-timeout-ms: 200")
        assert time.monotonic() - began < 5
        assert status == 504
        assert "content-type: application/problem+json" in head
        problem = json.loads(body)
        assert problem["type"] == "urn:holdfast:problem:deadline-exceeded"
        assert problem["hop"] == "shop"
        assert served.get("/wait/0")[0] == 200
        assert served.stop() == 0


def test_tells_what_it_listens_on_and_which_policy_holds(home: Home) -> None:
    home.write("holdfast.toml", 'service = "orders"\n[timeouts]\nrequest = "7s"\n')
    with home.serve("plain:app", "--no-access-log") as served:
        assert served.port > 0
        text = served.wait_for(r"\(other\).*")[0]
        assert "7 s" in text
        log = served.log()
        assert str(home.path / "holdfast.toml") in log
        assert "policy of orders: enforce" in log
        assert f"holdfast tree --pid {served.pid}" in log
        assert served.get("/x")[0] == 200
        assert '"GET /x' not in served.log()
        assert served.stop(signal.SIGTERM) == 0


def test_factory_attribute_paths_and_the_service_over_the_file(home: Home) -> None:
    home.write("pkg/__init__.py", "")
    home.write("pkg/mod.py", "import plain\nclass Box:\n    make = staticmethod(plain.make)\n")
    home.write("other.toml", 'service = "file"\n')
    words = ("--factory", "--config", "other.toml", "--service", "flag")
    with home.serve("pkg.mod:Box.make", *words) as served:
        assert served.get("/x")[0] == 200
        assert "policy of flag" in served.log()


def test_unix_socket_is_served_and_removed(home: Home) -> None:
    path = home.runtime / "web.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with home.serve("plain:app", "--uds", str(path)) as served:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert ask(sock, "/x")[0] == 200
        busy = home.run("serve", "plain:app", "--uds", str(path))
        assert busy.returncode == 2
        assert "another process listens there" in busy.stderr
        assert served.stop(signal.SIGTERM) == 0
    assert not path.exists()


def test_ctrl_c_ends_it_quickly_and_leaves_nothing(home: Home) -> None:
    with home.serve("plain:app") as served:
        mine = home.sockets / f"{served.pid}.sock"
        assert stat.S_IMODE(mine.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.sockets.stat().st_mode) == 0o700
        began = time.monotonic()
        assert served.stop(signal.SIGINT) in (0, 130)
        assert time.monotonic() - began < 10
        assert list(home.sockets.iterdir()) == []
        assert "Traceback" not in served.log()


def test_the_operators_socket_answers_and_stays_small(home: Home) -> None:
    with home.serve("plain:app", "--service", "shop") as served:
        path = home.sockets / f"{served.pid}.sock"
        about = operator(path, "/")
        assert (about["pid"], about["service"], about["url"]) == (served.pid, "shop", served.url)
        assert "policy of shop: enforce" in operator(path, "/policy")
        assert operator(path, "/counts")["requests"] == {}
        assert operator(path, "/tree").startswith("process")
        assert operator(path, "/tree.json")["roots"][0]["children"] == []
        assert "nothing here" in operator(path, "/nothing")
        for raw, status in (
            (b"POST / HTTP/1.1\r\n\r\n", 405),
            (b"x" * 9000, 413),
            (b"\r\n\r\n", 400),
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(raw)
                assert int(everything(sock).split()[1]) == status
        with socket.socket(socket.AF_UNIX) as silent:
            silent.settimeout(5)
            silent.connect(str(path))
            began = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(1) == b""
            assert time.monotonic() - began > 1


def test_without_admin_there_is_no_socket_and_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    with home.serve("plain:app", "--no-admin") as served:
        assert not home.sockets.exists()
        assert served.stop() == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home.sockets.symlink_to(elsewhere)
    with home.serve("plain:app") as served:
        served.wait_for("no operator's socket.*is not a directory")
        assert served.get("/x")[0] == 200
    assert list(elsewhere.iterdir()) == []


def test_hang_up_reads_the_policy_again(home: Home) -> None:
    file = home.write("holdfast.toml", '[timeouts]\nrequest = "5s"\n')
    with home.serve("plain:app") as served:
        early: list[int] = []
        under_way = threading.Thread(target=lambda: early.append(served.get("/wait/1.5")[0]))
        under_way.start()
        time.sleep(0.3)
        file.write_text('[timeouts]\nrequest = "300ms"\nheader = "200ms"\n')
        served.send(signal.SIGHUP)
        served.wait_for("read again")
        assert served.get("/wait/2")[0] == 504
        file.write_text('[timeouts]\nrequest = "5s"\n[[routes]]\npath = "/x"\nrequst = "1s"\n')
        served.send(signal.SIGHUP)
        found = served.wait_for(r"config.refused.*the old one stays")[0]
        assert "holdfast.toml:5: routes[0].requst" in found
        assert "did you mean 'request'" in found
        assert served.get("/wait/2")[0] == 504
        under_way.join()
        assert early == [200]
        file.write_text('mode = "off"\n[timeouts]\nrequest = "300ms"\nheader = "200ms"\n')
        served.send(signal.SIGHUP)
        served.wait_for("policy of .*: off")
        status, head, _ = served.get("/wait/0.5")
        assert (status, "x-request-id" in head) == (200, False)
        assert served.stop() == 0


def test_several_workers_and_their_replacement(home: Home) -> None:
    file = home.write("holdfast.toml", '[timeouts]\nrequest = "5s"\n')
    with home.serve("plain:app", "--workers", "2") as served:
        end = time.monotonic() + 10
        while len(list(home.sockets.glob("*.sock"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert served.get("/x")[0] == 200
        workers = {int(path.stem) for path in home.sockets.glob("*.sock")}
        assert len(workers) == 2
        assert workers <= set(children(served.pid))
        shown = home.run("tree", "--pid", str(served.pid)).stdout
        assert all(f"process {worker} " in shown for worker in workers)
        file.write_text('[timeouts]\nrequest = "soon"\n')
        served.send(signal.SIGHUP)
        served.wait_for("was not changed.*timeouts.request")
        assert {int(path.stem) for path in home.sockets.glob("*.sock")} == workers
        file.write_text('[timeouts]\nrequest = "300ms"\nheader = "200ms"\n')
        served.send(signal.SIGHUP)
        assert all(gone(worker) for worker in workers)
        assert served.get("/wait/2")[0] == 504
        workers = set(children(served.pid))
        assert served.stop(signal.SIGTERM) == 0
    assert all(gone(worker) for worker in workers)
    assert list(home.sockets.iterdir()) == []


def test_workers_end_with_a_supervisor_that_was_killed(home: Home) -> None:
    with home.serve("plain:app", "--workers", "2") as served:
        end = time.monotonic() + 10
        while len(list(home.sockets.glob("*.sock"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        workers = [int(path.stem) for path in home.sockets.glob("*.sock")]
        assert len(workers) == 2
        os.kill(served.pid, signal.SIGKILL)
        assert all(gone(worker) for worker in workers)


def test_a_worker_that_cannot_start_is_the_end(home: Home) -> None:
    done = home.run("serve", "plain:ap", "--workers", "2", "--port", "0")
    assert done.returncode == 2
    assert "did you mean 'app'" in done.stderr


def test_reload_starts_serves_and_stops(home: Home) -> None:
    with home.serve("plain:app", "--reload") as served:
        served.wait_for("phase.entered running")
        assert served.get("/x")[0] == 200
        (worker, *rest) = children(served.pid)
        assert served.stop() == 0
        assert all(gone(pid) for pid in (worker, *rest))


@pytest.mark.parametrize(("said", "workers"), [("auto", None), ("", 0), ("2", 2)])
def test_the_number_of_workers_may_come_from_the_platform(
    home: Home, monkeypatch: pytest.MonkeyPatch, said: str, workers: int | None
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", said)
    with home.serve("plain:app") as served:
        served.wait_for("phase.entered running|worker.ready")
        assert served.get("/x")[0] == 200
        if workers is not None:
            assert ("supervised by" in served.log()) is bool(workers)
        assert served.stop(signal.SIGTERM) == 0
    assert home.run("serve", "plain:app", "--workers", "many").returncode == 2


@pytest.mark.parametrize("words", [(), ("--workers", "2")])
def test_it_ends_with_its_terminal(home: Home, words: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.apps.cli", "serve", "plain:app", "--port", "0", *words],
        cwd=home.path,
        env=home.environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(theirs)
        text = b""
        while text.count(b"startup complete") < max(1, len(words)):
            text += os.read(ours, 4096)
        workers = children(process.pid)
        os.close(ours)
        process.wait(10)
        assert all(gone(worker) for worker in workers)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# -- headers that do not come ----------------------------------------------------------------------


def test_slow_and_silent_clients_get_408(home: Home) -> None:
    home.write("holdfast.toml", '[timeouts]\nheader = "400ms"\n')
    with home.serve("plain:app") as served:
        silent = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        slow = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        with silent, slow:
            began = time.monotonic()
            answer = b""
            for byte in b"GET /x HTTP/1.1\r\nhost: something rather long, a byte at a time\r\n":
                slow.setblocking(False)
                try:
                    slow.send(bytes([byte]))
                    answer = slow.recv(4096)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
            assert 0.3 < time.monotonic() - began < 10
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            silence = everything(silent)
            assert silence.startswith(b"HTTP/1.1 408 ")
            head, _, body = silence.partition(b"\r\n\r\n")
            assert b"connection: close" in head
            assert json.loads(body)["budget_ms"] == 400
        path = home.sockets / f"{served.pid}.sock"
        assert operator(path, "/counts")["requests"]["header_timeout"] == 2
        assert served.get("/wait/0.6")[0] == 200  # a slow answer is another matter
