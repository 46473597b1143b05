"""`holdfast prestop` against processes that answer their operator as services do."""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from holdfast.apps.cli import main

Answer = Callable[[int], tuple[int, object]]
"""From the number of the question, from 1, to status and content."""


class Service:
    """The operator's socket of one process."""

    def __init__(self, directory: Path, about: dict[str, Any], answer: Answer) -> None:
        self.asked = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, about)

            def do_POST(self) -> None:
                service.asked += 1
                assert self.path == "/prestop"
                self.reply(*answer(service.asked))

            def reply(self, status: int, content: object) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                with suppress(BrokenPipeError):  # whoever asked did not wait
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def address_string(self) -> str:
                return "operator"

            def log_message(self, format: str, *args: object) -> None:
                pass  # nobody reads it

        self.path = directory / f"{about['pid']}.sock"
        self.server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


Make = Callable[..., Service]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    place = Path(tempfile.mkdtemp(prefix="hf"))  # short: a socket's path has room for 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    directory = place / "holdfast"
    directory.mkdir(mode=0o700)
    made: list[Service] = []

    def service(pid: int, answer: Answer, name: str = "shop", parent: int = 0) -> Service:
        about = {"pid": pid, "parent": parent, "service": name, "target": "shop:app"}
        made.append(Service(directory, about, answer))
        return made[-1]

    yield service
    for one in made:
        one.close()
    shutil.rmtree(place)


def at_once(number: int) -> tuple[int, object]:
    return 200, {"phase": "running", "lame_duck_s": 0}


def third_time(number: int) -> tuple[int, object]:
    return 200, {"phase": "running", "lame_duck_s": 5.0 if number < 3 else 0.0}


def never(number: int) -> tuple[int, object]:
    return 200, {"phase": "running", "lame_duck_s": 60.0}


def test_it_waits_until_the_lame_duck_is_over(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    service = make(71, third_time)
    assert main(["prestop", "--wait", "30s"]) == 0
    assert service.asked == 3
    said = capsys.readouterr().out
    assert said.startswith("shop (process 71) is unready, its lame duck is over after ")


def test_it_does_not_wait_longer_than_it_may(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make(71, never)
    assert main(["prestop", "--wait", "300ms"]) == 0
    assert "its lame duck is not over yet after" in capsys.readouterr().out


def test_it_need_not_wait_at_all(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    service = make(71, never)
    assert main(["prestop", "--wait", "0s"]) == 0
    assert service.asked == 1
    assert "is not over yet" in capsys.readouterr().out


def test_a_process_that_ends_meanwhile_is_not_waited_for(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    service = make(71, lambda number: (service.path.unlink(), never(number))[1])
    assert main(["prestop", "--wait", "30s"]) == 0
    assert service.asked == 1
    assert "is over after" in capsys.readouterr().out


def test_all_workers_of_a_supervisor_are_told(make: Make) -> None:
    workers = [make(pid, third_time, parent=70) for pid in (71, 72)]
    supervisor = make(70, lambda number: (404, {}))
    assert main(["prestop"]) == 0
    assert [worker.asked for worker in workers] == [3, 3]
    assert supervisor.asked == 1
    assert main(["prestop", "--pid", "72"]) == 0
    assert [worker.asked for worker in workers] == [3, 4]
    assert main(["prestop", "--pid", "70"]) == 0
    assert [worker.asked for worker in workers] == [4, 5]


def test_several_services_have_to_be_told_apart(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, cart = make(71, at_once), make(72, at_once, name="cart")
    assert main(["prestop"]) == 2
    told = capsys.readouterr().err
    assert told == (
        "holdfast: several services run here, so name one with --pid: 71 (shop), 72 (cart)\n"
    )
    assert main(["prestop", "--pid", "72"]) == 0
    assert (shop.asked, cart.asked) == (0, 1)


def test_process_1_is_meant_among_several(make: Make) -> None:
    first, other = make(1, at_once), make(72, at_once)
    assert main(["prestop"]) == 0
    assert (first.asked, other.asked) == (1, 0)


def test_nothing_runs_here(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prestop"]) == 1
    assert capsys.readouterr().err == "holdfast prestop: no service of this user runs here\n"
    assert main(["prestop", "--pid", "71"]) == 2
    assert "process 71 is not a holdfast service" in capsys.readouterr().err
    make(72, at_once)
    assert main(["prestop", "--pid", "71"]) == 2
    assert capsys.readouterr().err.endswith("; services run here as 72\n")


def test_a_directory_that_is_open_to_others(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(71, at_once).path.parent.chmod(0o755)
    assert main(["prestop"]) == 2
    assert "is open to other users" in capsys.readouterr().err


@pytest.mark.parametrize("status", [404, 405])
def test_a_service_of_another_version(
    make: Make, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    make(71, lambda number: (status, b"nothing here"))
    assert main(["prestop"]) == 2
    assert "process 71 does not know /prestop" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"failed"),
        (200, b"not JSON"),
        (200, []),
        (200, {}),
        (200, {"lame_duck_s": "soon"}),
        (200, {"lame_duck_s": True}),
    ],
)
def test_an_answer_that_makes_no_sense(
    make: Make, capsys: pytest.CaptureFixture[str], answer: tuple[int, object]
) -> None:
    make(71, lambda number: answer)
    assert main(["prestop"]) == 2
    assert "process 71 did not answer sensibly" in capsys.readouterr().err


def test_a_service_that_does_not_answer(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()
    make(71, lambda number: (release.wait(10), at_once(number))[1])
    try:
        assert main(["prestop", "--wait", "200ms"]) == 2
    finally:
        release.set()
    assert "process 71 did not answer within 200 ms" in capsys.readouterr().err


@pytest.mark.parametrize("wait", ["soon", "inf", "-1s"])
def test_how_long_has_to_be_a_duration_with_an_end(wait: str) -> None:
    assert main(["prestop", f"--wait={wait}"]) == 2
