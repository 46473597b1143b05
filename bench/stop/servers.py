"""The contenders: how each one is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final

__all__ = ["SERVERS", "Ask", "Server", "chosen", "missing", "stop_table", "versions"]

ROOT: Final = Path(__file__).resolve().parents[2]
APP: Final = "bench.stop.peers.asgi:app"
GO_SOURCE: Final = Path(__file__).parent / "peers" / "server.go"


@dataclass(frozen=True)
class Ask:
    """What a server has to be this time.

    Attributes:
        reuse: others may listen on the same port.
        timeout: seconds that requests under way get; None: what the server has by itself.
        tls: paths of a certificate and of its key.
        http2: whether it speaks HTTP/2, where that has to be asked for.
        stop: for us: the table `[stop]`.
    """

    port: int
    workers: int = 1
    reuse: bool = False
    timeout: float | None = None
    tls: tuple[str, str] | None = None
    http2: bool = False
    stop: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Server:
    """One contender.

    Attributes:
        parts: distributions or programs whose versions are printed, and without which it is absent.
        can: what it can: `workers` (several, rolled on HUP), `reuse`, `tls`, `http2`, `ws`.
    """

    name: str
    command: Callable[[Ask], list[str]]
    parts: tuple[str, ...]
    can: frozenset[str] = frozenset({"workers", "reuse", "tls", "ws", "timeout"})
    flags: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict[str, str])


def _python(ask: Ask, module: str) -> list[str]:
    if ask.reuse:
        return [sys.executable, "-m", "bench.stop.peers.reuse", module]
    return [sys.executable, "-m", module]


def _uvicorn(http: str, loop: str) -> Callable[[Ask], list[str]]:
    def command(ask: Ask) -> list[str]:
        words = [*_python(ask, "uvicorn"), APP, "--port", str(ask.port), "--http", http]
        words += ["--loop", loop, "--no-access-log", "--log-level", "error"]
        if ask.workers > 1:
            words += ["--workers", str(ask.workers)]
        if ask.timeout is not None:
            words += ["--timeout-graceful-shutdown", f"{ask.timeout:.0f}"]
        if ask.tls:
            words += ["--ssl-certfile", ask.tls[0], "--ssl-keyfile", ask.tls[1]]
        if ask.http2:
            words.append("--http2")
        return words

    return command


def _hypercorn(ask: Ask) -> list[str]:
    words = [*_python(ask, "hypercorn"), "-b", f"127.0.0.1:{ask.port}", "-k", "uvloop"]
    words += ["-w", str(ask.workers), "--log-level", "error"]
    if ask.timeout is not None:
        words += ["--graceful-timeout", f"{ask.timeout:.0f}"]
    if ask.tls:
        words += ["--certfile", ask.tls[0], "--keyfile", ask.tls[1]]
    return [*words, APP]


def _granian(ask: Ask) -> list[str]:
    words = [*_python(ask, "granian"), "--interface", "asgi", "--loop", "uvloop"]
    words += ["--host", "127.0.0.1", "--port", str(ask.port), "--workers", str(ask.workers)]
    words += ["--log-level", "error"]
    if ask.timeout is not None:
        words += ["--workers-kill-timeout", f"{ask.timeout:.0f}"]
    if ask.tls:
        words += ["--ssl-certificate", ask.tls[0], "--ssl-keyfile", ask.tls[1]]
    return [*words, APP]


def _gunicorn(worker: str) -> Callable[[Ask], list[str]]:
    def command(ask: Ask) -> list[str]:
        words = [*_python(ask, "gunicorn"), "-k", worker, "-w", str(ask.workers)]
        words += ["-b", f"127.0.0.1:{ask.port}", "--log-level", "critical", "--no-control-socket"]
        if ask.reuse:
            words.append("--reuse-port")
        if ask.timeout is not None:
            words += ["--graceful-timeout", f"{ask.timeout:.0f}"]
        if ask.tls:
            words += ["--certfile", ask.tls[0], "--keyfile", ask.tls[1]]
        if ask.http2:
            words += ["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"]
        return [*words, APP]

    return command


def _aiohttp(ask: Ask) -> list[str]:
    timeout = "" if ask.timeout is None else f"{ask.timeout:g}"
    words = [*_python(ask, "bench.stop.peers.aiohttp_web"), str(ask.port)]
    return [*words, timeout] if timeout else words


def _go(ask: Ask) -> list[str]:
    timeout = [] if ask.timeout is None else [f"{ask.timeout:g}"]
    return [go_program(), str(ask.port), *timeout]


@cache
def go_program() -> str:
    """Built once, where temporary files are."""
    path = Path(gettempdir()) / f"holdfast-bench-go-{os.getuid()}"
    if not path.exists() or path.stat().st_mtime < GO_SOURCE.stat().st_mtime:
        environment = {**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"}
        command = ["go", "build", "-o", str(path), str(GO_SOURCE)]
        subprocess.run(command, env=environment, check=True, timeout=300)
    return str(path)


def _holdfast(*flags: str) -> Callable[[Ask], list[str]]:
    def command(ask: Ask) -> list[str]:
        words = [*_python(ask, "holdfast.apps.cli"), "serve", APP, "--port", str(ask.port)]
        words += ["--no-access-log", "--no-admin", *flags]
        if ask.workers > 1:
            words += ["--workers", str(ask.workers)]
        if ask.tls:
            words += ["--ssl-certfile", ask.tls[0], "--ssl-keyfile", ask.tls[1]]
        if ask.http2:
            words.append("--http2")
        return words

    return command


_ALL: Final = frozenset({"workers", "reuse", "tls", "ws", "timeout"})

SERVERS: Final[dict[str, Server]] = {
    server.name: server
    for server in (
        Server("holdfast", _holdfast(), ("uvicorn", "httptools", "uvloop"), _ALL | {"http2"}),
        Server("holdfast-granian", _holdfast("--server", "granian"), ("granian",), _ALL,
               ("--server",)),
        Server("holdfast-hypercorn", _holdfast("--server", "hypercorn"), ("hypercorn",), _ALL,
               ("--server",)),
        Server("uvicorn", _uvicorn("httptools", "uvloop"), ("uvicorn", "httptools", "uvloop"),
               _ALL),
        Server("uvicorn-h11", _uvicorn("h11", "asyncio"), ("uvicorn", "h11"), _ALL),
        Server("uvicorn-zttp", _uvicorn("zttp", "uvloop"), ("uvicorn", "zttp"), _ALL | {"http2"}),
        Server("hypercorn", _hypercorn, ("hypercorn", "uvloop"), _ALL | {"http2"}),
        Server("granian", _granian, ("granian", "uvloop"), _ALL | {"http2"}),
        Server("gunicorn-uvicorn", _gunicorn("uvicorn_worker.UvicornWorker"),
               ("gunicorn", "uvicorn-worker"), _ALL),
        Server("gunicorn-asgi", _gunicorn("asgi"), ("gunicorn",), _ALL | {"http2"}),
        Server("aiohttp", _aiohttp, ("aiohttp",), frozenset({"reuse", "ws", "timeout"})),
        Server("go", _go, ("go",), frozenset({"reuse", "timeout"})),
    )
}  # fmt: skip
"""Ours first. `uvicorn` is the one whose throughput is 1."""


def chosen(names: Sequence[str] | None, *abilities: str) -> list[Server]:
    """The servers of these names, or all; without those that are absent or lack an ability."""
    servers = [SERVERS[name] for name in names] if names else list(SERVERS.values())
    return [s for s in servers if s.can >= set(abilities) and not missing(s)]


def stop_table(variant: dict[str, Any]) -> dict[str, object]:
    """Our table `[stop]` as `--set` gave it: `KEY=VALUE`, the value as in JSON or else a text."""
    table: dict[str, object] = {}
    for pair in variant.get("stop", []):
        key, _, value = pair.partition("=")
        try:
            table[key] = json.loads(value)
        except ValueError:
            table[key] = value
    return table


def missing(server: Server) -> str:
    """What a server lacks to be started here; empty when nothing."""
    for part in server.parts:
        module = part.replace("-", "_").lower()
        if shutil.which(part) is None and find_spec(module) is None:
            return part
    for flag in server.flags:
        if flag not in _our_help():
            return f"holdfast serve {flag}"
    return ""


@cache
def _our_help() -> str:
    command = [sys.executable, "-m", "holdfast.apps.cli", "serve", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def versions(servers: Sequence[Server]) -> str:
    """What was measured, for the foot of a table."""
    parts = dict.fromkeys(part for server in servers for part in server.parts)
    return ", ".join(f"{part} {_version(part)}" for part in parts)


def _version(part: str) -> str:
    if part == "go":
        done = subprocess.run(["go", "version"], capture_output=True, text=True, check=False)
        return done.stdout.split()[2].removeprefix("go")
    try:
        return version(part)
    except PackageNotFoundError:
        return "?"
