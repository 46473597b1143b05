"""Small programs that take signals, run as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import holdfast

SOURCE: Final = Path(holdfast.__file__).parents[1]
LOOPS: Final = ("asyncio", "uvloop")

# `say` writes past the buffers: a program that is killed has said what it said.
PREAMBLE: Final = """
import json, os, signal, sys, threading, time
LOOP = sys.argv[1]
def say(*what):
    os.write(1, (json.dumps(what) + "\\n").encode())
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
def run(main):
    import asyncio
    if LOOP == "uvloop":
        import uvloop
        return uvloop.run(main())
    return asyncio.run(main())
{before}
from holdfast.runtime.signals import *
{block}
import asyncio, subprocess
"""
BLOCK: Final = "block_signals()"


class Program:
    """A program that runs. Ends with its `with` block, whatever happens.

    Args:
        body: its source; `say(...)` in it is `next()` here.
        loop: asyncio or uvloop, for `run(main)` in it.
        before: source that runs first of all.
        block: how it blocks signals; empty when it does not.
        wrap: words to put in front of its command line.
        options: of `subprocess.Popen`.
    """

    def __init__(
        self,
        body: str,
        loop: str = "asyncio",
        *,
        before: str = "",
        block: str = BLOCK,
        wrap: Sequence[str] = (),
        **options: Any,
    ) -> None:
        source = PREAMBLE.format(before=textwrap.dedent(before), block=block)
        source += textwrap.dedent(body)
        path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-c", source, loop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            **{"stdin": subprocess.DEVNULL, **options},
        )
        self.pid = self.process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.wait()

    def next(self) -> Any:
        """What it says next: one value, or a list of several."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}: {self.errors()}"
        what = json.loads(line)
        return what[0] if len(what) == 1 else what

    def expect(self, *what: Any) -> None:
        """It says `what` next."""
        for one in what:
            found = self.next()
            assert found == one, f"{found!r} instead of {one!r}"

    def send(self, *numbers: int) -> None:
        """Send it signals."""
        for number in numbers:
            os.kill(self.pid, number)

    def say(self, line: str) -> None:
        """Write it a line, where its input is a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        """What it wrote to standard error until it closed that."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def error_lines_until(self, text: str) -> str:
        """What it writes to standard error, up to the line with `text`."""
        assert self.process.stderr is not None
        lines: list[str] = []
        for line in self.process.stderr:
            lines.append(line)
            if text in line:
                break
        else:
            raise AssertionError(f"no {text!r} in {''.join(lines)}")
        return "".join(lines)

    def sleeps(self) -> None:
        """Its main thread has come to wait for something, and goes on waiting."""
        quiet, until = 0, time.monotonic() + 10.0
        while quiet < 20:
            assert time.monotonic() < until, "its main thread is always busy"
            stat = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text()
            quiet = quiet + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0
            time.sleep(0.005)

    def ended(self, code: int = 0) -> None:
        """It ends, with this exit code."""
        found = self.process.wait()
        assert found == code, f"it ended with {found}: {self.errors()}"


def inside(pid: int) -> int:
    """The process that `unshare --fork` with this id has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])
