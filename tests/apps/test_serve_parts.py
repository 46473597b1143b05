"""The parts of `holdfast serve` and of the command line that need no process of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.apps.cli import main
from holdfast.apps.serve import run
from holdfast.apps.serve.hosted import drain_limit
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.target import load_target
from holdfast.apps.tree.fetch import Service
from holdfast.apps.tree.show import render
from holdfast.domain.policy import policy_from_mapping
from holdfast.runtime import admin
from holdfast.runtime.policyfile import PolicyFileError, find_policy, line_of, read_policy

TOML = """\
service = "x"

[timeouts]
request = "10s"

[[routes]]
path = "/a"

[[routes]]
path = "/b"
request = "1s"
"quoted" = 1

[services.pay.timeouts]
request = "1s"

[[services.pay.routes]]
path = "/c"
header = "9s"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("service", 1),
        ("timeouts.request", 4),
        ("timeouts", 3),
        ("routes[0].path", 7),
        ("routes[1].request", 11),
        ("routes[1].quoted", 12),
        ("routes[1].header", 9),
        ("services.pay.timeouts.request", 15),
        ("services.pay.routes[0].header", 19),
        ("services.pay.routes[0].methods[2]", 17),
        ("nowhere", 0),
        ("", 0),
    ],
)
def test_line_of_a_key(path: str, line: int) -> None:
    assert line_of(TOML, path) == line


def test_policy_file_beside_the_command_is_used_and_its_absence_is_fine(tmp_path: Path) -> None:
    built_in = find_policy(None, "shop", tmp_path)
    assert (built_in.source, built_in.policy.service) == (None, "shop")
    (tmp_path / "holdfast.toml").write_text("service = 'file'")
    assert find_policy(None, "", tmp_path).policy.service == "file"
    with pytest.raises(PolicyFileError, match="no such file"):
        find_policy(tmp_path / "none.toml", "", tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * 2_000_000, b"a = " + b"[" * 5000])
def test_what_is_no_policy_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(PolicyFileError, match=r"x\.toml"):
        read_policy(path, "")


def test_a_drain_is_no_shorter_than_the_longest_limit() -> None:
    assert drain_limit(policy_from_mapping({})) == 11
    routes = [{"path": "/r*", "request": "20s"}]
    assert drain_limit(policy_from_mapping({"routes": routes})) == 21
    assert drain_limit(policy_from_mapping({"timeouts": {"request": "inf"}})) == 31
    assert drain_limit(policy_from_mapping({"mode": "off"})) == 31


# -- the application -------------------------------------------------------------------------------


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def two(self, environ: Any, start_response: Any) -> None: ...


async def plain(scope: Any, receive: Any, send: Any) -> None: ...


instance = Asgi()


def make() -> Asgi:
    return instance


def fails() -> None:
    raise LookupError("no such setting")


async def coroutine() -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "here_app", sys.modules[__name__])
    return "here_app"


def test_loads_functions_instances_and_what_factories_make(here: str) -> None:
    assert load_target(f"{here}:plain") is plain
    assert load_target(f"{here}:instance") is instance
    assert load_target(f"{here}:instance.__call__")
    assert load_target(f"{here}:make", factory=True) is instance


@pytest.mark.parametrize(
    ("attribute", "factory", "says"),
    [
        ("Asgi", False, "takes no arguments"),
        ("instance.two", False, "two arguments, as a WSGI application"),
        ("TOML", False, "a str, not an ASGI application"),
        ("TOML", True, "not a factory; leave --factory away"),
        ("fails", True, "failed: LookupError: no such setting"),
        ("coroutine", True, "no factory but a coroutine function"),
        ("instance.tow", False, "has no attribute 'tow'"),
        ("plian", False, "did you mean 'plain'"),
        (".x", False, "does not name an application"),
    ],
)
def test_what_is_no_application(here: str, attribute: str, factory: bool, says: str) -> None:
    with pytest.raises(ServeError) as caught:
        load_target(f"{here}:{attribute}", factory=factory)
    assert says in str(caught.value)


# -- the place of the sockets ----------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hf") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


def test_sockets_are_private_and_those_left_behind_are_removed(runtime: Path) -> None:
    assert admin.safe_place() is None
    first = admin.listen_here()
    mine = admin.socket_of(os.getpid())
    with first:
        assert admin.listening(mine)
        assert (mine.stat().st_mode & 0o777, mine.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with pytest.raises(FileExistsError, match="another container"):
            admin.listen_here()
    stale = mine.with_name("4194304.sock")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(stale))
    (mine.parent / "note.sock").write_text("not a socket")
    with admin.listen_here():
        assert not stale.exists()
        assert sorted(path.name for path in mine.parent.iterdir()) == [mine.name, "note.sock"]


def test_unsafe_directories_are_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = runtime / "holdfast"
    place.symlink_to("/tmp")
    with pytest.raises(admin.UnsafeDirectory, match="not a directory"):
        admin.safe_place(make=True)
    place.unlink()
    place.mkdir(mode=0o755)
    with pytest.raises(admin.UnsafeDirectory, match="chmod 700"):
        admin.safe_place(make=True)
    place.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(admin.UnsafeDirectory, match="belongs to user"):
        admin.safe_place(make=True)


def test_without_a_runtime_directory_there_is_one_for_each_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert admin.place() == tmp_path / f"holdfast-{os.getuid()}"


# -- the command line ------------------------------------------------------------------------------


def test_the_version_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("holdfast ")
    code = (
        "import sys; from holdfast.apps.cli import main; main(['--version'])\n"
        "print(*{'typer', 'rich', 'asyncio', 'uvicorn', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "tree", "demo"))


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(ServeError, match=r"pip install 'holdfast\[serve\]'"):
        run.serve(Plan("x:app"))
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["tree"]) == 2
    assert "pip install 'holdfast[cli]'" in capsys.readouterr().err


def test_names_from_requests_do_not_reach_the_terminal_raw() -> None:
    scope = {
        "name": "GET /\x1b[31m", "age_s": 1.0, "remaining_s": 0.01, "task": "t", "request_id": "",
        "stage": "", "origin": "", "cancelled": "deadline", "cancelled_for_s": 0.5,
        "waits": ["app.py:3 wait"], "children": [],
    }  # fmt: skip
    lines = list(render(Service({"service": "s"}, {"roots": [{"children": [scope]}]})))
    text = "\n".join(line for line, _ in lines)
    assert "\x1b" not in text
    assert "GET /?[31m" in text
    assert "still open: deadline" in text
    assert [style for _, style in lines] == ["bold", "red", "bold red", "dim"]
