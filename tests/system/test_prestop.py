"""`holdfast prestop` and `holdfast stops` against a service that runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import PATIENCE, Home, children, operator

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Home(tmp_path)
    yield made
    made.close()


def test_a_service_that_is_told_is_unready_and_serves_on(home: Home) -> None:
    with home.serve("plain:app", "--service", "shop") as served:
        assert served.get("/readyz")[0] == 200
        told = home.run("prestop", "--wait", "10s")
        assert told.returncode == 0, told.stderr
        assert f"shop (process {served.pid}) is unready, its lame duck is over" in told.stdout
        assert served.get("/readyz")[0] == 503
        assert served.get("/healthz")[0] == 200
        assert served.get("/any")[0] == 200
        # Told twice is told once.
        assert home.run("prestop", "--pid", str(served.pid), "--wait", "10s").returncode == 0
        assert served.stop(signal.SIGTERM) == 0


def test_a_worker_that_takes_the_place_of_another_is_unready_as_well(home: Home) -> None:
    with home.serve("plain:app", "--service", "shop", "--workers", "2") as served:
        served.wait_for(r"worker\.ready[^$]*worker\.ready")
        told = home.run("prestop", "--pid", str(served.pid), "--wait", "10s")
        assert told.returncode == 0, told.stderr
        killed, other = children(served.pid)
        os.kill(killed, signal.SIGKILL)
        served.wait_for(rf"worker\.died worker {killed} [^$]*worker\.ready")
        (new,) = {*children(served.pid)} - {other}
        path = home.sockets / f"{new}.sock"
        assert appears(path)
        life = operator(path, "/lifecycle")
        assert life["phase"] == "running"
        assert "a stop was announced" in [record["detail"] for record in life["records"]]
        pages = [served.get("/readyz")[0] for _ in range(20)]
        assert pages == [503] * 20
        assert served.get("/any")[0] == 200
        again = home.run("prestop", "--pid", str(served.pid), "--wait", "10s")
        assert f"shop (process {new}) is unready, its lame duck is over" in again.stdout
        assert served.stop(signal.SIGTERM) == 0


def test_nothing_to_tell(home: Home) -> None:
    assert home.run("prestop").returncode == 1


def test_a_clean_stop_is_remembered(home: Home) -> None:
    with home.serve("plain:app", "--service", "shop") as served:
        assert served.stop(signal.SIGTERM) == 0
    shown = home.run("stops", "--service", "shop", "--json")
    assert shown.returncode == 0, shown.stderr
    remembered = json.loads(shown.stdout)
    assert [stop["outcome"] for stop in remembered["stops"]] == ["clean"]
    assert remembered["failures"] == 0


def appears(path: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_stop_that_was_killed_counts_at_the_next_start(home: Home) -> None:
    file = home.path / "state" / "holdfast" / "shop.stops.json"
    with home.serve("plain:app", "--service", "shop") as served:
        request = b"GET /wait/8 HTTP/1.1\r\nhost: t\r\n\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as sock:
            sock.sendall(request)
            served.send(signal.SIGTERM)
            assert appears(file)
            served.send(signal.SIGKILL)
            served.process.wait(PATIENCE)
    with home.serve("plain:app", "--service", "shop"):
        remembered = json.loads(home.run("stops", "--service", "shop", "--json").stdout)
    assert [stop["outcome"] for stop in remembered["stops"]] == ["unfinished"]
    assert remembered["failures"] == 1
    assert remembered["next_drain_s"] == pytest.approx(remembered["stops"][0]["drain_s"] * 1.5)
