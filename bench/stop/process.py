"""Servers and clients as child processes, none of which is ever left behind."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.stop.load import Load
from bench.stop.servers import Ask, Server

__all__ = ["Clients", "Running", "clients", "free_port", "running"]

ROOT: Final = Path(__file__).resolve().parents[2]
START: Final = 30.0
"""Seconds that a server gets to answer for the first time."""


def free_port() -> int:
    """A port below those that the kernel gives to clients, on which nobody listens."""
    for _ in range(200):
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


class Running:
    """A server that runs.

    Attributes:
        pid: of the process that is told to stop.
        ended: instant at which it was gone, once it is.
    """

    def __init__(self, popen: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.port = port
        self.folder = folder
        self.ended = 0.0
        self.over = False
        self.pidfd = os.pidfd_open(popen.pid)

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Send a signal to the process that was started, not to its children; when."""
        now = time.monotonic()
        os.kill(self.pid, number)
        return now

    def wait(self, seconds: float) -> int | None:
        """Its exit status, None when it still runs after so many seconds."""
        if self.popen.returncode is None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return None
            self.ended = time.monotonic()
            self.popen.wait()
        return self.popen.returncode

    def notes(self) -> list[tuple[float, str]]:
        """What the service wrote down: instants, and `shutdown`, `cancelled`, `disconnect N`."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = (line.partition(" ") for line in lines)
        return [(float(at), what) for at, _, what in pairs]

    def noted(self, what: str) -> int:
        return sum(words == what for _, words in self.notes())

    def workers(self) -> list[int]:
        """Processes below the one that was started."""
        found: list[int] = []
        with suppress(OSError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def survivors(self) -> list[int]:
        """Processes of the session that outlived the one that was started."""
        found: list[int] = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z" and int(entry.name) != self.pid:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Kill what is left of its session; the second time nothing."""
        if self.over:
            return
        self.over = True
        if self.popen.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.popen.wait()
        for pid in self.survivors():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self.pidfd)


def _guarded() -> list[str]:
    """What makes a command die with this process even if it is killed; it becomes the command."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


@contextmanager
def running(server: Server, ask: Ask, *, wait: bool = True) -> Generator[Running]:
    """A server in a session of its own, which has answered once; at the end it is killed.

    Raises:
        RuntimeError: it did not answer; the end of what it said is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="bench-stop-") as name:
        folder = Path(name)
        (folder / "holdfast.toml").write_text(_policy(ask))
        paths = [str(ROOT / "src"), str(ROOT)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "BENCH_STOP_NOTES": str(folder / "notes"),
            "XDG_STATE_HOME": name,
            **server.extra,
        }
        with (folder / "log").open("wb") as log:
            popen = subprocess.Popen(
                [*_guarded(), *server.command(ask)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = Running(popen, ask.port, folder)
        try:
            if wait:
                _wait_until_it_answers(server, process, ask)
            yield process
        finally:
            process.end()


def _policy(ask: Ask) -> str:
    table = dict(ask.stop)
    if ask.timeout is not None:
        table.setdefault("base", ask.timeout)
    lines = ["[stop]"] if table else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _wait_until_it_answers(server: Server, process: Running, ask: Ask) -> None:
    limit = time.monotonic() + START
    while time.monotonic() < limit:
        if process.popen.poll() is not None:
            break
        if _answers(ask):
            return
        time.sleep(0.03)
    said = (process.folder / "log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{server.name} did not start (rc {process.popen.returncode}): {said}")


def _answers(ask: Ask) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", ask.port), timeout=1.0) as sock:
            if ask.tls:
                return True
            sock.sendall(b"GET /hello HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
            # With HTTP/2 some answer this way of asking with an error, which is as good.
            return sock.recv(100).startswith(b"HTTP/1.1 " if ask.http2 else b"HTTP/1.1 200")
    except OSError:
        return False


class Clients:
    """The clients, in their process."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        self.input, self.output = popen.stdin, popen.stdout

    def wait_until_warm(self) -> None:
        """Until every client has had two answers.

        Raises:
            RuntimeError: not within half a minute.
        """
        ready, _, _ = select.select([self.output], [], [], 30.0)
        if not ready or self.output.readline().strip() != "ready":
            raise RuntimeError("the clients had no answers")

    def away(self, seconds: float) -> None:
        """New connections go elsewhere from then on."""
        self.input.write(json.dumps({"away": seconds}) + "\n")
        self.input.flush()

    def stop(self, terms: list[float]) -> dict[str, Any]:
        """End the load; what was seen, see `bench.stop.tally.tally`."""
        self.input.write(json.dumps({"terms": terms}) + "\n")
        self.input.flush()
        said, _ = self.popen.communicate(timeout=30)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found


@contextmanager
def clients(load: Load) -> Generator[Clients]:
    """Clients under way; at the end their process is gone."""
    command = [sys.executable, "-m", "bench.stop.load", json.dumps(asdict(load))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as popen:
        try:
            yield Clients(popen)
        finally:
            if popen.poll() is None:
                popen.kill()
