"""What `holdfast serve` says when it cannot start: what, where, what to do; exit code 2."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.serving import Home

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    made.write("broken.py", "import does_not_exist\n")
    made.write("wsgi.py", "from flask import Flask\napp = Flask('x')\n")
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
    "wsgi": (("wsgi:app",), "is a WSGI application (flask.app.Flask)"),
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


@pytest.mark.parametrize("case", CASES)
def test_one_readable_message(home: Home, case: str) -> None:
    words, message = CASES[case]
    done = home.run("serve", *words)
    assert message in done.stderr
    assert done.stderr.startswith("holdfast: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 2
    assert done.stdout == ""


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
