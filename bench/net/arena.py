"""Where clients meet bad servers: `run` from outside, `python -m bench.net.arena` inside.

Inside there is one process that has imported all clients and forks one for each call, so that each
call has its own descriptors, threads and end. No more than two get ready at the same time, and any
number wait: what is measured is the wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.net.bad import ask_for
from bench.net.cell import Left, Result, perform
from bench.net.clients import Client
from bench.net.ground import prepare_loopback, prepare_namespace, unshared
from bench.net.ours import OURS
from bench.net.plain import PLAIN

__all__ = ["CAP", "CLIENTS", "Absent", "Stage", "run"]

CAP: Final = 25.0
"""Seconds after which a call is given up on."""
CLIENTS: Final = {client.name: client for client in (*OURS, *PLAIN)}

_ROOT: Final = Path(__file__).resolve().parents[2]
_PDEATHSIG: Final = 1
_BUSY: Final = 2
"""Processes that get ready, or end, before another one is made."""
_ENDS: Final = 1.0
"""Seconds after which one that ends is taken to wait for something."""
_PREPARE: Final = 30.0
_EXIT: Final = 15.0

Absent = dict[str, str]


def run(
    pairs: Sequence[tuple[str, str]], *, namespace: bool, cap: float = CAP
) -> Iterator[Result | Absent]:
    """Let each client make its call.

    Args:
        pairs: names of clients and of scenarios.
        namespace: on a network of its own, or on loopback with stand-ins.
        cap: seconds after which a call is given up on.

    Yields:
        Results as they come; for clients that cannot be imported, why.

    Raises:
        RuntimeError: the arena itself has failed, with what it said.
    """
    command = [sys.executable, "-m", "bench.net.arena"]
    if namespace:
        command = [*unshared(), *command]
    plan = {"pairs": pairs, "namespace": namespace, "cap": cap}
    paths = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as arena:
        assert arena.stdin is not None
        assert arena.stdout is not None
        assert arena.stderr is not None
        try:
            arena.stdin.write(json.dumps(plan) + "\n")
            arena.stdin.flush()
            for line in arena.stdout:
                told = json.loads(line)
                yield told["absent"] if "absent" in told else _revived(told)
        finally:
            arena.stdin.close()  # whatever happens here, this ends all of it
        said = arena.stderr.read()
        if arena.wait():
            raise RuntimeError(f"the arena ended with {arena.returncode}: {said[-2000:]}")


def _revived(told: dict[str, Any]) -> Result:
    return Result(**{**told, "called": Left(**told["called"]), "closed": Left(**told["closed"])})


# -- inside ------------------------------------------------------------------------------------


class Stage:
    """The processes of one run.

    Args:
        clients: those that could be imported.
        places: where the servers are.
        cap: seconds for a call.
    """

    def __init__(self, clients: dict[str, Client], places: dict[str, Any], cap: float) -> None:
        self._clients = clients
        self._places = places
        self._cap = cap
        self._running: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()

    def play(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Make all calls. In a process that is to make one, return which, once."""
        self._selector.register(0, selectors.EVENT_READ, sys.exit)  # whoever asked has gone
        waiting = [pair for pair in pairs if pair[0] in self._clients]
        waiting.reverse()
        while waiting or self._running:
            while waiting and self._busy() < _BUSY:
                if self._fork(waiting[-1]):
                    return waiting[-1]
                waiting.pop()
            for key, _ in self._selector.select(0.05):
                key.data()
            now = time.monotonic()
            for process in list(self._running.values()):
                if process.limit < now:
                    os.kill(process.pid, signal.SIGKILL)
                    process.limit = now + _EXIT
        return None

    def _busy(self) -> int:
        now = time.monotonic()
        return sum(process.busy(now) for process in self._running.values())

    def _fork(self, pair: tuple[str, str]) -> bool:
        read, write = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            self._selector.close()
            for process in self._running.values():
                process.forget()
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(write, 1)
            os.close(write)
            return True
        os.close(write)
        process = _Process(pid, pair, read, time.monotonic() + _PREPARE)
        self._running[pid] = process
        self._selector.register(read, selectors.EVENT_READ, partial(self._told, process))
        self._selector.register(process.pidfd, selectors.EVENT_READ, partial(self._gone, process))
        return False

    def _told(self, process: _Process) -> None:
        data = os.read(process.pipe, 65_536)
        process.said += data
        if process.said.count(b"\n") == 1:
            process.calm = math.inf
            process.limit = time.monotonic() + self._cap
        elif process.said.count(b"\n") == 2:
            process.calm = time.monotonic() + _ENDS
            process.limit = time.monotonic() + _EXIT
        if not data:
            self._selector.unregister(process.pipe)

    def _gone(self, process: _Process) -> None:
        now = time.monotonic()
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.pipe)
        self._selector.unregister(process.pidfd)
        os.set_blocking(process.pipe, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(process.pipe, 65_536):
                process.said += data
        _, status = os.waitpid(process.pid, 0)
        process.forget()
        del self._running[process.pid]
        lines = process.said.splitlines()
        client, scenario = process.pair
        result = Result(client, scenario)
        if len(lines) > 1:
            result = _revived(json.loads(lines[1]))
            result = replace(result, exit=now - result.over if status == 0 else None)
        elif not os.WIFSIGNALED(status) or not lines:
            result = replace(result, error="Broken", said=f"wait status {status}, see stderr")
        print(json.dumps(asdict(result)), flush=True)


class _Process:
    def __init__(self, pid: int, pair: tuple[str, str], pipe: int, limit: float) -> None:
        self.pid = pid
        self.pair = pair
        self.pipe = pipe
        self.pidfd = os.pidfd_open(pid)
        self.limit = limit
        self.said = b""
        self.calm = 0.0  # instant at which it is no longer busy ending; infinite in its call

    def busy(self, now: float) -> bool:
        """Whether it gets ready, or ends."""
        return self.calm == 0.0 or now < self.calm < math.inf

    def forget(self) -> None:
        os.close(self.pipe)
        os.close(self.pidfd)


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    pairs = [(client, scenario) for client, scenario in plan["pairs"]]
    (prepare_namespace if plan["namespace"] else prepare_loopback)()
    where = "namespace" if plan["namespace"] else "loopback"
    with subprocess.Popen(
        [sys.executable, "-m", "bench.net.hostile", where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL),
    ) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        clients = _imported({client for client, _ in pairs})
        places = json.loads(servers.stdout.readline())
        gc.collect()
        gc.freeze()
        mine = Stage(clients, places, plan["cap"]).play(pairs)
        if mine is None:
            servers.stdin.close()
            return
        # A process that is to make a call: the servers are not its own.
        servers.stdin.close()
        servers.stdout.close()
        servers.returncode = 0
    _make(clients[mine[0]], mine[1], places)


def _imported(names: set[str]) -> dict[str, Client]:
    found: dict[str, Client] = {}
    for name in sorted(names):
        client = CLIENTS[name]
        try:
            for module in client.modules:
                import_module(module)
        except ImportError as exc:
            print(json.dumps({"absent": {name: str(exc)}}), flush=True)
        else:
            found[name] = client
    return found


def _make(client: Client, scenario: str, places: dict[str, Any]) -> None:
    def say(what: object) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")

    ask = ask_for(scenario, places)
    perform(client, scenario, ask, lambda: say("begun"), lambda result: say(asdict(result)))


if __name__ == "__main__":
    main()
