"""What `holdfast serve` says when it cannot start: what, where, what to do; exit code 2."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.apps.cli import main
from tests.apps.serving import Home

pytestmark = pytest.mark.system


WSGI = """
class Site:
    def __call__(self, environ, start_response):
        return self.wsgi_app(environ, start_response)

    def wsgi_app(self, environ, start_response):
        return []

app = Site()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    made.write("broken.py", "import does_not_exist\n")
    made.write("wsgi.py", WSGI)
    made.write(
        "bad.toml", '[timeouts]\nrequest = "10s"\n\n[[routes]]\npath = "/x"\nrequest = "soon"\n'
    )
    made.write("broken.toml", "[timeouts\n")
    yield made
    made.close()


CASES = {
    "no module": (("plane:app",), "there is no module 'plane'; did you mean 'plain'?"),
    "no attribute": (("plain:aap",), "module 'plain' has no attribute 'aap'; did you mean 'app'"),
    "a file": (("plain.py",), "write the module, not the file: plain:app"),
    "not callable": (("plain:json.__name__",), "is a str, not an ASGI application"),
    "wsgi": (("wsgi:app",), "is a WSGI application (wsgi.Site)"),
    "a factory": (
        ("plain:make",),
        "takes no arguments; if it makes the application, add --factory",
    ),
    "bad key": (
        ("plain:app", "--config", "bad.toml"),
        "bad.toml:6: routes[0].request: 'soon' is not",
    ),
    "not toml": (("plain:app", "--config", "broken.toml"), "broken.toml: not TOML: "),
    "no file": (
        ("plain:app", "--config", "none.toml"),
        "none.toml: no such file; give an existing",
    ),
    "uds directory": (
        ("plain:app", "--uds", "no/x.sock"),
        "there is no directory no; make it first",
    ),
    "uds file": (("plain:app", "--uds", "plain.py"), "--uds plain.py: exists and is not a socket"),
    "host": (("plain:app", "--host", "192.0.2.1"), "is not an address of this machine"),
}


# What is found before the application is loaded needs no process of its own.
EARLY = ("bad key", "not toml", "no file", "uds directory", "uds file", "host")


def check(case: str, code: int, output: str, errors: str) -> None:
    assert CASES[case][1] in errors
    assert errors.startswith("holdfast: ")
    assert len(errors.splitlines()) == 1
    assert (code, output) == (2, "")


@pytest.mark.parametrize("case", [case for case in CASES if case not in EARLY])
def test_one_readable_message(home: Home, case: str) -> None:
    done = home.run("serve", *CASES[case][0])
    check(case, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("case", EARLY)
def test_one_readable_message_before_anything_is_loaded(
    home: Home, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home.path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    code = main(["serve", *CASES[case][0]])
    check(case, code, *capsys.readouterr())


def test_error_inside_the_users_module_shows_where(home: Home) -> None:
    done = home.run("serve", "broken:app")
    assert done.returncode == 2
    assert "module 'broken' was found, but failed while it was imported" in done.stderr
    assert 'broken.py", line 1' in done.stderr
    assert "importlib" not in done.stderr
    assert "target.py" not in done.stderr


def test_busy_port_names_its_holder(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = home.run("serve", "plain:app", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use by process {os.getpid()} (" in done.stderr
    assert "--port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unknown_option_and_options_that_exclude_each_other(home: Home) -> None:
    assert home.run("serve", "plain:app", "--nope").returncode == 2
    done = home.run("serve", "plain:app", "--reload", "--workers", "2")
    assert done.returncode == 2
    assert "do not go together" in done.stderr
