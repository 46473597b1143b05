"""What `holdfast serve` tells of its health, while it runs and while it stops."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import Home
from tests.system.stopping import Life, living

pytestmark = pytest.mark.system

SETTINGS = """
[stop]
grace = "20s"
base = "3s"
cleanup = "2s"
lame_duck = "5s"
calm = "1s"
quiet = "200ms"
retry_after = "2500ms"
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def asked(life: Life, path: str) -> tuple[int, str, dict[str, object]]:
    status, head, body = life.served.get(path)
    return status, head, json.loads(body)


def stopped(life: Life) -> None:
    life.send(signal.SIGTERM)
    assert life.ended() == 0, life.story()


def test_unready_from_the_signal_on_and_alive_to_the_end(home: Home) -> None:
    with living(home, "plain", SETTINGS) as life:
        assert asked(life, "/readyz")[0] == 200
        assert asked(life, "/healthz")[2] == asked(life, "/livez")[2] == {"status": "alive"}
        life.send(signal.SIGTERM)
        life.wait_for("ready.changed", "unready")
        life.wait_for("phase.entered", "terminating")
        # New connections, in the lame duck.
        status, head, page = asked(life, "/readyz")
        assert (status, page["status"]) == (503, "unready")
        assert page["why"] == "SIGTERM"  # and not who sent it
        assert "retry-after: 3\r\n" in f"{head}\r\n"
        assert "connection: close" in head
        assert "cache-control: no-store" in head
        assert asked(life, "/healthz")[0] == asked(life, "/livez")[0] == 200
        assert life.served.get("/wait/0")[0] == 200
        assert life.ended() == 0, life.story()
        why = life.records("drain.step", "lame_duck_over")[0]["detail"]
        assert why == "no new connection came any more"


def test_a_check_that_hangs_is_late_and_holds_up_nobody(home: Home) -> None:
    with living(home, "checks", SETTINGS) as life:
        found: list[int] = []
        probe = threading.Thread(target=lambda: found.append(asked(life, "/readyz")[0]))
        probe.start()
        life.says("checking")
        assert life.served.get("/wait/0")[0] == 200
        assert asked(life, "/healthz")[0] == 200
        probe.join()
        assert found == [503]
        _, head, page = asked(life, "/readyz")
        assert "retry-after: 3" in head
        assert page["why"] == "db is late, disk is late"
        time.sleep(1.1)  # what is cached
        assert asked(life, "/readyz")[2]["why"] == "db is late, disk is stuck"
        assert life.said().count("checking") == 1
        stopped(life)  # with a check that is still in its thread


def test_a_report_is_given_again_for_a_while_and_shows_no_secrets(home: Home) -> None:
    settings = f'{SETTINGS}[headers]\ndetails = false\n[health]\ncache = "700ms"\n'
    with living(home, "cached_check", settings) as life:
        threads = [threading.Thread(target=asked, args=(life, "/readyz")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert life.said().count("checked 1") == 1
        home.write("down", "")
        time.sleep(0.8)
        status, _, page = asked(life, "/readyz")
        assert (status, page["why"]) == (503, "db is down")
        assert "secret" not in json.dumps(page)
        assert asked(life, "/healthz")[0] == 200
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "terminating")
        why = asked(life, "/readyz")[2]["why"]
        assert why in ("terminating", "draining")  # and not who asked for it
        assert life.ended() == 0, life.story()


def test_nothing_is_answered_where_it_is_not_wanted(home: Home) -> None:
    with living(home, "own_health", f"{SETTINGS}[health]\nenabled = false\n") as life:
        assert life.served.get("/healthz")[2] == b"mine"
        assert life.served.get("/readyz")[0] == 404
        stopped(life)


def test_the_paths_can_be_others(home: Home) -> None:
    health = '[health]\nlive = "/up"\nready = "/take"\nalias = ""\n'
    with living(home, "own_health", f"{SETTINGS}{health}") as life:
        assert asked(life, "/up")[2] == {"status": "alive"}
        assert asked(life, "/take")[2]["status"] == "ready"
        assert life.served.get("/healthz")[2] == b"mine"
        assert life.served.get("/livez")[0] == 404
        stopped(life)


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_health_is_told_in_every_mode(home: Home, mode: str) -> None:
    with living(home, "plain", f'mode = "{mode}"\n{SETTINGS}') as life:
        assert asked(life, "/healthz")[0] == asked(life, "/readyz")[0] == 200
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "terminating")
        assert asked(life, "/healthz")[0] == 200
        assert asked(life, "/readyz")[0] == 503
        assert life.ended() == 0, life.story()


def test_nobody_gets_in_before_it_is_ready(home: Home) -> None:
    with living(home, "late_start", SETTINGS, ready=False) as life:
        life.says("starting")
        assert not life.records("ready.changed", "ready")
        life.served.url = life.served.wait_for(r"listens on +(\S+)")[1]
        order = [record["kind"] for record in life.records()]
        assert order.index("component.started") < len(order) - 1 - order[::-1].index(
            "ready.changed"
        )
        assert asked(life, "/readyz")[0] == 200
        stopped(life)


def test_the_operator_sees_the_phases(home: Home) -> None:
    from tests.apps.serving import operator

    with living(home, "plain", SETTINGS) as life:
        path = home.sockets / f"{life.served.pid}.sock"
        assert operator(path, "/lifecycle")["phase"] == "running"
        life.send(signal.SIGTERM)
        life.wait_for("phase.entered", "draining")
        shown = operator(path, "/lifecycle")
        assert (shown["phase"], shown["ready"]) == ("draining", False)
        assert "SIGTERM" in shown["cause"]
        assert {"signal.received", "stop.begun"} <= {r["kind"] for r in shown["records"]}
        assert life.ended() == 0, life.story()
