"""An application that makes a stop hard, and `holdfast serve` with its records, for the tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.apps.serving import PATIENCE, Home, Served, everything

__all__ = ["APP", "Life", "Stream", "living", "on_asyncio", "sent", "soon"]

# `say` writes past the buffers: a process that is killed has said what it said.
APP = """
import asyncio, json, os, subprocess, sys, time
import holdfast
from holdfast import lifecycle

def say(*words):
    os.write(2, ("SAY " + " ".join(map(str, words)) + "\\n").encode())

async def answer(send, status, body=b"", **headers):
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    fields.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})

async def chunk(send, text, more=True):
    await send({"type": "http.response.body", "body": text, "more_body": more})

class App:
    def __init__(self, start=0.0, stop=0.0, fails=False, setup=None):
        self.start, self.stop, self.fails, self.setup = start, stop, fails, setup
        self.children = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        else:
            _, name, *rest = scope["path"].split("/")
            handler = getattr(self, "get_" + name, None)
            if handler is None:
                await answer(send, 404, b"none of ours")
            else:
                await handler(scope, receive, send, *map(float, rest))

    async def lifespan(self, receive, send):
        await receive()
        say("starting")
        try:
            await asyncio.sleep(self.start)
            if self.fails:
                raise ConnectionError("no route to the database")
            if self.setup is not None:
                self.setup(self)
        except ConnectionError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except BaseException as error:
            say("start broke off", type(error).__name__)
            raise
        say("started")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("stopping")
        try:
            await asyncio.sleep(self.stop)
        except BaseException as error:
            say("stop broke off", type(error).__name__)
            raise
        for child in self.children:
            child.terminate()
            say("child ended", child.wait())
        say("stopped")
        await send({"type": "lifespan.shutdown.complete"})

    async def websocket(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            if scope["path"] == "/reads":
                while (message := await receive())["type"] != "websocket.disconnect":
                    pass
                say("websocket read", message["code"])
            else:
                await asyncio.sleep(3600)
        except BaseException as error:
            say("websocket ended", type(error).__name__, kind_of(error))
            raise

    async def get_wait(self, scope, receive, send, seconds):
        await asyncio.sleep(seconds)
        await answer(send, 200, b"waited")

    async def get_hang(self, scope, receive, send):
        try:
            await asyncio.sleep(3600)
        except BaseException as error:
            say("cancelled", type(error).__name__, kind_of(error))
            raise

    async def get_block(self, scope, receive, send, seconds):
        say("blocking")
        time.sleep(seconds)
        await answer(send, 200, b"blocked")

    async def get_thread(self, scope, receive, send, seconds):
        await asyncio.to_thread(time.sleep, seconds)
        await answer(send, 200, b"slept")

    async def get_stream(self, scope, receive, send, seconds):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await chunk(send, b"tick\\n")
            await asyncio.sleep(0.05)
        await chunk(send, b"whole\\n", False)

    async def get_events(self, scope, receive, send):
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await chunk(send, b"data: hello\\n\\n")
        await lifecycle.current().stop_begun()
        await chunk(send, b"data: good-bye\\n\\n")
        await chunk(send, b"", False)

    async def get_ended(self, scope, receive, send, how):
        lifecycle.at_end(lambda outcome, cause: say(
            "at_end", scope["query_string"].decode(), outcome, cause.kind if cause else "-"))
        if how == 1:
            raise RuntimeError("as asked for")
        await asyncio.sleep(3600 if how == 2 else 0)
        await answer(send, 200, b"ended")

    async def get_detach(self, scope, receive, send, seconds):
        async def audit():
            await asyncio.sleep(seconds)
            say("audited")
        holdfast.detach(audit(), name="audit")
        await answer(send, 200, b"detached")

def kind_of(error):
    return getattr(error.args[0] if error.args else None, "kind", "unknown")

def with_hooks(app):
    lifecycle.current().on_stop(lambda: say("told", lifecycle.current().phase))
    lifecycle.current().at_exit(lambda: say("exit hook"))

def with_hanging_hook(app):
    async def never():
        await asyncio.sleep(3600)
    lifecycle.current().at_exit(never, name="flush of metrics")

def with_blocking_hook(app):
    lifecycle.current().at_exit(lambda: time.sleep(3600), name="flush of logs")

def with_checks(app):
    async def slow():
        await asyncio.sleep(3600)
    def stuck():
        say("checking")
        time.sleep(3600)
    lifecycle.current().health.check("db", slow, timeout=0.3)
    lifecycle.current().health.check("disk", stuck, timeout=0.3)

def with_cached_check(app):
    count = [0]
    def check():
        count[0] += 1
        say("checked", count[0])
        if os.path.exists("down"):
            raise ConnectionError("no route to secret.example")
    lifecycle.current().health.check("db", check)

def with_background(app):
    async def beat():
        try:
            while True:
                await asyncio.sleep(0.05)
        except BaseException as error:
            say("beat ended", type(error).__name__)
            raise
    holdfast.detach(beat(), name="heart beat")

def spin(ready):
    ready.set()
    time.sleep(60)

def with_children(app):
    import multiprocessing
    app.children.append(subprocess.Popen(["sleep", "60"]))
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        ready = context.Event()
        process = context.Process(target=spin, args=(ready,))
        process.start()
        ready.wait(20)
        process.wait = lambda process=process: (process.join(20), process.exitcode)[1]
        app.children.append(process)

def with_thread(app):
    import threading
    threading.Thread(target=time.sleep, args=(3600,), name="poller").start()

class Stubborn(App):
    async def get_stubborn(self, scope, receive, send):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                say("swallowed")

class Raises(App):
    async def lifespan(self, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("the flush failed")

class HealthOfItsOwn(App):
    async def get_healthz(self, scope, receive, send):
        await answer(send, 200, b"mine")

plain = App()
slow_start = App(start=3600)
late_start = App(start=1.5)
failing = App(fails=True)
slow_stop = App(stop=3600)
hooks = App(setup=with_hooks)
hanging_hook = App(setup=with_hanging_hook)
blocking_hook = App(setup=with_blocking_hook)
checks = App(setup=with_checks)
cached_check = App(setup=with_cached_check)
background = App(setup=with_background)
children = App(setup=with_children)
own_health = HealthOfItsOwn()
threaded = App(setup=with_thread)
stubborn = Stubborn()
raises = Raises()
"""


class Life:
    """A service that runs, with the records of its life."""

    def __init__(self, home: Home, served: Served) -> None:
        self.home = home
        self.served = served

    def records(self, kind: str = "", subject: str = "") -> list[dict[str, Any]]:
        path = self.home.path / "life.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [r for r in found if kind in ("", r["kind"]) and subject in ("", r["subject"])]

    def wait_for(self, kind: str, subject: str = "") -> dict[str, Any]:
        """The first record of that kind."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := self.records(kind, subject):
                return found[0]
            if self.served.process.poll() is not None and not self.records(kind, subject):
                break
            time.sleep(0.02)
        raise AssertionError(f"no {kind} {subject} in {self.story()}")

    def says(self, pattern: str) -> str:
        """Wait until the application says so; all of the line that it said."""
        return self.served.wait_for(f"SAY {pattern}.*")[0].removeprefix("SAY ")

    def said(self) -> list[str]:
        lines = self.served.log().splitlines()
        return [line.removeprefix("SAY ") for line in lines if line.startswith("SAY ")]

    def send(self, number: int) -> None:
        self.served.send(number)

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.served.process.wait(PATIENCE + 10)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.served.log()}") from None

    def story(self) -> str:
        lines = [f"{r['at']:.3f} {r['kind']} {r['subject']} {r['detail']}" for r in self.records()]
        return "\n".join([*lines, self.served.log()])

    def verdict(self) -> str:
        """What the time-line makes of it, in one line."""
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.apps.cli", "timeline", "life.jsonl"],
            cwd=self.home.path, env=self.home.environment(),
            capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()[0]

    def signals(self, name: str) -> list[dict[str, Any]]:
        return [record["data"] for record in self.records("signal.received", name)]


@contextmanager
def living(
    home: Home, attribute: str = "plain", settings: str = "", *words: str, ready: bool = True
) -> Generator[Life]:
    """`holdfast serve` for an application of this module."""
    home.write("hard.py", APP)
    home.write("holdfast.toml", settings)
    options = ("--timeline", "life.jsonl", *words)
    with home.serve(f"hard:{attribute}", *options, ready=ready) as served:
        yield Life(home, served)


class Stream:
    """A request that is sent at once, and whose answer is read later."""

    def __init__(self, life: Life, path: str, *headers: str) -> None:
        address = ("127.0.0.1", life.served.port)
        self.sock = socket.create_connection(address, timeout=PATIENCE + 10)
        lines = [f"GET {path} HTTP/1.1", "host: t", *headers, "", ""]
        self.sock.sendall("\r\n".join(lines).encode())

    def first(self) -> bytes:
        """What comes first."""
        return self.sock.recv(65536)

    def rest(self) -> bytes:
        """All that comes until the server closes; what a reset leaves of it."""
        try:
            return everything(self.sock)
        except ConnectionResetError:
            return b"reset"
        finally:
            self.sock.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


def sent(data: dict[str, Any], before: str, after: str) -> bool:
    """Whether the record of a signal tells of us as its sender, and of these phases."""
    me = Path("/proc/self/comm").read_text().strip()  # test runners give themselves other names
    return (data["pid"], data["uid"], data["code"], data["before"], data["after"]) == (
        os.getpid(), os.getuid(), "SI_USER", before, after,
    ) and data["process"] == me  # fmt: skip


def soon(what: Callable[[], object]) -> bool:
    """Whether it comes true."""
    end = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def on_asyncio(home: Home, loop: str = "asyncio") -> None:
    """Have a service run on the loop of asyncio, as if uvloop were not installed."""
    if loop == "asyncio":
        home.write("uvloop.py", "raise ImportError('hidden')\n")
