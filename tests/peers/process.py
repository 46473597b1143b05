"""A server as a process: as a user of its own where it refuses root, and gone with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

PATIENCE: Final = 30.0
_HOST: Final = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((_HOST, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def program(name: str, *places: str) -> str:
    """Path of a program; the test is skipped where it is missing.

    Args:
        name: of the program.
        places: patterns of absolute paths that come before what is on the path.
    """
    for place in places:
        if matches := sorted(Path("/").glob(place.lstrip("/"))):
            return str(matches[-1])
    if found := shutil.which(name):
        return found
    pytest.skip(f"{name} is not installed; tools/packages.sh installs it where apt and root are")


def user_for(*names: str) -> str | None:
    """The first of these users that exists, when we are root; else none."""
    if os.getuid() != 0:
        return None
    for name in (*names, "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("there is no user to run a server as")


@contextmanager
def home(owner: str | None) -> Iterator[Path]:
    """A directory that goes away, and that `owner` may write to."""
    path = Path(tempfile.mkdtemp(prefix="holdfast-peer-"))
    try:
        if owner is not None:
            shutil.chown(path, owner)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def as_user(owner: str | None, *command: str) -> list[str]:
    """The command, run as `owner`, and killed when whoever runs it dies."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        assert owner is None, "setpriv (util-linux) is missing, and the server refuses root"
        return [*command]
    ids: list[str] = []
    if owner is not None:
        entry = pwd.getpwnam(owner)
        ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    return [setpriv, *ids, "--pdeathsig=KILL", "--", *command]


def answers(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0):
        return True
    return False


@contextmanager
def running(
    command: Sequence[str],
    *,
    ready: Callable[[], bool],
    log: Path,
    stop: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, from when it is ready to when it is gone."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{command!r} did not start: {log.read_text()[-3000:]}")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
