"""`holdfast stops`: what services remember of their last stops."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from holdfast.apps.cli import main
from holdfast.apps.stops.show import next_drain
from holdfast.domain.lifecycle.history import History, Outcome, Terms
from holdfast.runtime.memory import StopMemory

TERMS = Terms(drain=11.0, base=11.0, most=20.0, grace=30.0)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    return tmp_path / "holdfast"


def remember(path: Path, *outcomes: Outcome | None, terms: Terms = TERMS) -> StopMemory:
    for number, outcome in enumerate(outcomes):
        clock = iter([1000.0 + 10 * number, 1003.5 + 10 * number])
        memory = StopMemory(path, now=lambda clock=clock: next(clock))  # type: ignore[misc]
        memory.begun(terms, f"{path} {number}")
        if outcome is not None:
            memory.ended(outcome)
    return StopMemory(path)


def test_the_last_stops_and_the_next_drain(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember(state / "shop.stops.json", Outcome.CLEAN, Outcome.TIMED_OUT, None)
    assert main(["stops", "--service", "shop"]) == 0
    head, first, second, third, last = capsys.readouterr().out.splitlines()
    assert head == f"shop  {state / 'shop.stops.json'}"
    rows = [re.split(r" {2,}", row.strip())[1:] for row in (first, second, third)]
    assert rows == [
        ["clean", "after 3.5 s", "of a drain of 11 s"],
        ["timed out", "after 3.5 s", "of a drain of 11 s"],
        ["under way", "of a drain of 11 s"],
    ]
    assert last == "  next drain: 16.5 s (base 11 s, 1 failure in the last 2, at most 20 s)"


def test_all_services(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember(state / "shop.stops.json", Outcome.CLEAN)
    remember(state / "a%2Fb.stops.json", Outcome.FORCED, Outcome.FORCED)
    assert main(["stops", "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert (one["service"], two["service"]) == ("a/b", "shop")
    assert (one["failures"], one["next_drain_s"]) == (2, 20.0)
    assert two == {
        "service": "shop",
        "file": str(state / "shop.stops.json"),
        "failures": 0,
        "next_drain_s": 11.0,
        "stops": [
            {
                "begun": 1000.0,
                "took_s": 3.5,
                "outcome": "clean",
                "drain_s": 11.0,
                "grace_s": 30.0,
                "processes": 1,
            }
        ],
    }
    assert main(["stops"]) == 0
    assert "next drain: 20 s (base 11 s, 2 failures in the last 2" in capsys.readouterr().out


def test_a_named_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    remember(path, Outcome.UNFINISHED)
    assert main(["stops", "--file", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["service"], shown["failures"]) == ("memory", 1)
    assert shown["stops"][0]["took_s"] is None


def test_workers_are_counted(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "shop.stops.json"
    memory = StopMemory(path)
    memory.begun(TERMS, "one")
    content = json.loads(path.read_text())
    content["stops"][0]["members"]["7"] = "clean"
    path.write_text(json.dumps(content))
    assert main(["stops"]) == 0
    assert "of a drain of 11 s, 2 processes\n" in capsys.readouterr().out


def test_nothing_is_remembered(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stops"]) == 1
    assert capsys.readouterr().err == "no service of this user remembers a stop\n"
    assert main(["stops", "--reset"]) == 1
    assert main(["stops", "--service", "shop"]) == 2
    assert f"{state / 'shop.stops.json'}: no such file; " in capsys.readouterr().err


def test_it_can_be_forgotten(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember(state / "shop.stops.json", Outcome.FORCED)
    assert main(["stops", "--reset"]) == 0  # there is only one
    assert capsys.readouterr().out == f"{state / 'shop.stops.json'}: forgotten\n"
    assert main(["stops", "--service", "shop"]) == 1
    assert "no stop is remembered" in capsys.readouterr().out
    remember(state / "b.stops.json", Outcome.FORCED)
    assert main(["stops", "--reset"]) == 2
    assert "name one with --service: b, shop" in capsys.readouterr().err
    assert main(["stops", "--reset", "--service", "b"]) == 0


def test_what_cannot_be_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    path.mkdir()
    assert main(["stops", "--reset", "--file", str(path)]) == 2
    assert f"{path}: cannot be written: Is a directory" in capsys.readouterr().err


def test_a_file_that_makes_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    path.write_text("{")
    assert main(["stops", "--file", str(path)]) == 1
    assert "holdfast stops: " in (told := capsys.readouterr().err)
    assert "not JSON" in told


def test_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stops", "--service", "a", "--file", "b"]) == 2
    assert "do not go together" in capsys.readouterr().err


def test_a_base_without_limit(state: Path) -> None:
    endless = Terms(drain=20.0, base=math.inf, most=20.0, grace=30.0)
    history = remember(state / "shop.stops.json", Outcome.CLEAN, terms=endless).read()
    assert next_drain(history) == 20.0
    assert next_drain(History()) is None
