"""The example with Flask and Django does what its page says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import holdfast
from tests.adapters.asgi_peers import DEADLINE, everything, head, parsed
from tests.adapters.wsgi_peers import PATIENCE, ROOT

pytestmark = pytest.mark.system


@contextmanager
def _hop(app: str, log: Path, **more: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        command = f"-m gunicorn -k gthread --threads 4 --no-control-socket {app}"
        source = str(Path(holdfast.__file__).parents[1])
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command.split(), "-b", f"fd://{listener.fileno()}"],
                cwd=ROOT / "examples" / "wsgi",
                env=os.environ | {"PYTHONPATH": source} | more,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
    try:
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ask(port: int, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=3 * PATIENCE) as sock:
        sock.sendall(head(path, "connection: close", *headers))
        return parsed(everything(sock))


def test_two_hops_have_one_deadline_and_one_name(tmp_path: Path) -> None:
    with ExitStack() as hops:
        stock = hops.enter_context(_hop("stock:application", tmp_path / "stock"))
        orders = hops.enter_context(
            _hop("orders:app", tmp_path / "orders", STOCK=f"http://127.0.0.1:{stock}")
        )
        _ask(stock, "/stock/tea")  # both are up when they answer
        _ask(orders, "/orders/tea")
        status, _, body = _ask(orders, "/orders/tea", f"{DEADLINE}: 2000", "x-request-id: mine")
        assert status == 200, (tmp_path / "orders").read_text()
        told = json.loads(body)
        assert told["request"] == told["stock"]["request"] == "mine"
        assert 0 < told["stock"]["left"] < 2
        began = time.monotonic()
        status, headers, body = _ask(orders, "/orders/slow-boat", f"{DEADLINE}: 500")
        assert time.monotonic() - began < 5
        assert status == 504
        assert headers["deadline-exceeded"].startswith("hop=orders; scope=GET%20/orders/slow-boat")
