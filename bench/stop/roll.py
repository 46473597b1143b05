"""Ten restarts on one port under load: the new process is up before the old one is told to stop."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench._harness import Cell, Check, Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.load import Load
from bench.stop.process import Running, clients, free_port, running
from bench.stop.servers import Ask, Server, chosen, stop_table, versions
from bench.stop.tally import STALL

__all__ = ["LOAD", "lasting", "measure", "result", "roll"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
TIMES: Final = 10
EXIT: Final = 45.0
UP: Final = 20.0
LOAD: Final[dict[str, Any]] = {
    "path": "/wait/5", "clients": 40, "churn": 10, "view": 0.005, "think": 0.02, "limit": 600.0,
}  # fmt: skip
"""30 clients keep their connection, 10 open one for each request; together about 1,100 a second."""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    servers = chosen(variant.get("servers"), "reuse")
    times = 3 if quick else TIMES
    settings = stop_table(variant)
    attempts = Attempts()
    for index, server in enumerate(servers):

        def part(done: float, what: str, index: int = index) -> None:
            tell((index + done) / len(servers), what)

        attempts(server, partial(roll, server, times, part, settings))
    title = f"{times} restarts on one port (SO_REUSEPORT), the new process up before the old stops"
    sheet = result(title, servers, attempts.found)
    sheet.notes += attempts.notes()
    yield sheet


def roll(server: Server, times: int, tell: Tell, stop: dict[str, object]) -> dict[str, Any]:
    """What 40 clients lose, see `bench.stop.tally.tally`, and the seconds of each exit."""
    port = free_port()
    ask = Ask(port, reuse=True, stop=stop)
    terms: list[float] = []
    exits: list[float] = []
    with ExitStack() as stack:
        old = stack.enter_context(running(server, ask))
        crowd = stack.enter_context(clients(Load(port, **LOAD)))
        crowd.wait_until_warm()
        for index in range(times):
            tell(index / times, f"{server.name}, restart {index + 1}")
            new = stack.enter_context(running(server, ask, wait=False))
            _wait_until_up(server, new)
            told = old.signal()
            old.wait(EXIT)
            old.end()
            terms.append(told)
            exits.append((old.ended or told + EXIT) - told)
            old = new
        time.sleep(0.3)
        found = crowd.stop(terms)
    return {"server": server.name, "times": times, "exits": exits, **found}


def _wait_until_up(server: Server, new: Running) -> None:
    """Until it has answered; others answer on its port as well."""
    limit = time.monotonic() + UP
    while time.monotonic() < limit:
        mine = {new.pid, *new.survivors()}
        if _who_answers(new.port) in mine:
            return
        if new.popen.poll() is not None:
            said = (new.folder / "log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{server.name} ended at its start: {said}")
        time.sleep(0.03)
    raise RuntimeError(f"{server.name} never answered beside another one")


def _who_answers(port: int) -> int:
    """The process that answers now; 0: none did."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as sock:
            sock.sendall(b"GET /pid HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
            said = b""
            while data := sock.recv(4096):
                said += data
        return int(said.rpartition(b"\r\n\r\n")[2] or b"0")
    except (OSError, ValueError):
        return 0


def lasting(process: Running) -> set[int]:
    """Workers of a master: its children, without the one that counts what multiprocessing holds."""
    found: set[int] = set()
    for pid in process.workers():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if words and b"resource_tracker" not in words:
            found.add(pid)
    return found


def result(title: str, servers: Sequence[Server], found: Sequence[dict[str, Any]]) -> Sheet:
    """One row for each server."""
    columns = ["server", "lost kept / new", "refused", "requests", "longest wait, ms",
               f"waits over {STALL * 1000:.0f} ms more than the median", "longest silence, ms",
               "exit or roll, s"]  # fmt: skip
    sheet = Sheet(title, columns, data=list(found))
    for one in found:
        lost = f"{one['lost_kept']} / {one['lost_new']}"
        exits = sorted(one["exits"])
        sheet.rows.append(
            [
                one["server"],
                f"**{lost}**" if one["lost"] else lost,
                str(one["refused"]),
                str(one["calls"]),
                f"{(one['longest_wait'] or 0) * 1000:.0f}",
                str(one["stalls"]),
                f"{one['longest_silence'] * 1000:.0f}",
                f"{exits[len(exits) // 2]:.1f}" + (" (not done)" if one.get("stuck") else ""),
            ]
        )
        if one["server"] == "holdfast":
            for what in ("lost", "refused", "stalls"):
                count = float(one[what])
                sheet.checks.append(Check(f"holdfast: {what}", Cell(count, count), 0))
    sheet.notes.append(f"{versions(servers)}.")
    return sheet
