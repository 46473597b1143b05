"""`holdfast tree` against running services."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import Home

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def test_shows_what_is_open(home: Home) -> None:
    with home.serve("plain:app", "--service", "shop") as served:
        request = threading.Thread(target=lambda: served.get("/wait/6", "x-request-id: r-1"))
        request.start()
        time.sleep(0.5)
        shown = home.run("tree", "--pid", str(served.pid))
        assert shown.returncode == 0
        assert f"shop  process {served.pid}" in shown.stdout
        assert "GET /wait/6" in shown.stdout
        assert "waits in" in shown.stdout
        every = json.loads(home.run("tree", "--json").stdout)
        assert [service["pid"] for service in every] == [served.pid]
        one = json.loads(home.run("tree", "--json", "--pid", str(served.pid)).stdout)
        (scope,) = one["tree"]["roots"][0]["children"]
        assert scope["name"] == "GET /wait/6"
        assert 0 < scope["remaining_s"] < 10
        by_url = home.run("tree", "--url", served.url)
        assert by_url.returncode == 2
        assert "what answered is not a holdfast service" in by_url.stderr
        request.join()
        assert "nothing is open" in home.run("tree").stdout


def test_a_service_shows_itself_at_its_url_when_told_to(home: Home) -> None:
    with home.serve("star:app") as served:
        done = home.run("tree", "--url", served.url)
        assert done.returncode == 2
        assert "tree = true in [debug]" in done.stderr


def test_a_blocked_service_is_named(home: Home) -> None:
    with home.serve("plain:app") as served:
        os.kill(served.pid, signal.SIGSTOP)
        try:
            done = home.run("tree", "--pid", str(served.pid))
        finally:
            os.kill(served.pid, signal.SIGCONT)
        assert done.returncode == 2
        assert "did not answer within 3 s" in done.stderr
        assert served.stop() == 0


def test_says_why_there_is_nothing_to_show(home: Home) -> None:
    none = home.run("tree")
    assert (none.returncode, none.stdout) == (1, "")
    assert "no service of this user runs here" in none.stderr
    here = home.run("tree", "--pid", str(os.getpid()))
    assert here.returncode == 2
    assert "is not a holdfast service" in here.stderr
    gone = home.run("tree", "--pid", "4194304")
    assert gone.returncode == 2
    assert "there is no process 4194304" in gone.stderr
    url = home.run("tree", "--url", "http://127.0.0.1:1")
    assert url.returncode == 2
    assert "cannot be asked: Connection refused" in url.stderr
    assert home.run("tree", "--url", "ftp://x").returncode == 2
