"""gunicorn with the applications of `wsgi_apps`, as a process; asked over bare sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast
from tests.adapters.asgi_peers import everything, head, parsed

__all__ = ["PATIENCE", "ROOT", "WORKERS", "Gunicorn", "gunicorn"]

PATIENCE = 15.0
ROOT = Path(__file__).parents[2]
WORKERS = {
    "sync": "-k sync",
    "gthread": "-k gthread --threads 4",
    "one-thread": "-k gthread --threads 1",
}


class Gunicorn:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(
        self, path: str, *headers: str, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(head(path, "connection: close", *headers, method=method))
            return parsed(everything(sock))

    def story(self, dress: str) -> dict[str, Any]:
        """What the middleware of a framework has counted, and which views began."""
        _, _, body = self.ask(f"/{dress}/counts")
        found: dict[str, Any] = json.loads(body)
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def gunicorn(worker: str, upstream: str = "", database: str = "") -> Iterator[Gunicorn]:
    """It runs in a process group of its own, of which nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="hf") as folder:
        log = Path(folder, "log")
        source = str(Path(holdfast.__file__).parents[1])
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        port: int = listener.getsockname()[1]
        listener.set_inheritable(True)
        command = f"-m gunicorn {WORKERS[worker]} --workers 1 --no-control-socket"
        command += f" -b fd://{listener.fileno()} --keep-alive 10 tests.adapters.wsgi_apps:app"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command.split()],
                cwd=ROOT,
                env=os.environ
                | {"PYTHONPATH": f"{source}:{ROOT}", "UPSTREAM": upstream, "DATABASE": database},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        listener.close()
        served = Gunicorn(process, port, log)
        try:
            _once_up(served)
            yield served
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _once_up(served: Gunicorn) -> None:
    end = time.monotonic() + 3 * PATIENCE
    while True:
        try:
            served.story("plain")
            return
        except (OSError, ValueError, IndexError):
            assert served.process.poll() is None, served.log()
            assert time.monotonic() < end, served.log()
            time.sleep(0.1)
