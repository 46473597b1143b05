"""`python -m bench`: run the figures, print their tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from bench._harness import Sheet, Table, revived
from bench._report import save, summary, text

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "performance.md"
FIGURES: Final = ("scope", "crowd", "cancel", "middleware", "client", "imports", "hops")
NETS: Final = ("scenarios", "healthy", "churn", "names")
DATA: Final = ("grpc", "asyncpg", "psycopg", "sqlalchemy", "redis", "wsgi", "workers", "rabbitmq")
STOPS: Final = ("cells", "roll", "hup", "edges", "sockets", "http2", "quiet", "rate")
LONG: Final = (
    *(f"net.{part}" for part in NETS),
    *(f"data.{part}" for part in DATA),
    *(f"stop.{part}" for part in STOPS),
)
"""Figures that take their time and run only when they are named."""
PEERS: Final = (
    "anyio", "uvloop", "uvicorn", "httptools", "starlette", "httpx", "httpx2", "aiohttp",
    "requests", "urllib3", "async-timeout", "quattro", "aiofence",
    "opentelemetry-instrumentation-asgi", "grpcio", "asyncpg", "psycopg", "sqlalchemy", "redis",
)  # fmt: skip

MORE: Final = ("servers", "cells", "stops", "stop")
"""Options that are handed on to the figure."""

Step = Callable[[str, float, str], None]


def main() -> int:
    options = _options()
    names = _named(options.only)
    tables: list[Table | Sheet] = []
    failed: list[str] = []
    more = {key: value for key in MORE if (value := getattr(options, key))}
    with _progress(names) as step:
        for name in names:
            tables.extend(_figure(name, more, options.quick, step, failed))
    print(_heading(options.quick))
    for table in tables:
        print(text(table))
    print(summary(tables))
    for line in failed:
        print(line, file=sys.stderr)
    if options.json:
        found = {"heading": _heading(options.quick), "tables": [t.as_dict() for t in tables]}
        Path(options.json).write_text(json.dumps(found, indent=1))
    if options.save:
        save(PAGE, _heading(options.quick), [t for t in tables if isinstance(t, Table)])
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    choices = (*FIGURES, "net", "data", "stop", *LONG)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(choices)}")
    parser.add_argument("--only", action="append", choices=choices, help="this figure; repeatable")
    parser.add_argument("--server", dest="servers", action="append", help="of stop.*: this one")
    parser.add_argument("--cell", dest="cells", action="append", help="of stop.cells: this one")
    parser.add_argument("--set", dest="stop", action="append", metavar="KEY=VALUE",
                        help="of stop.*: this in our table [stop]")  # fmt: skip
    parser.add_argument("--stops", type=int, help="of stop.cells: stops in each cell")
    parser.add_argument("--json", metavar="FILE", help="write what was measured to FILE")
    parser.add_argument(
        "--save", action="store_true", help=f"write it into {PAGE.relative_to(ROOT)}"
    )
    options = parser.parse_args()
    if wrong := [name for name in options.figures if name not in choices]:
        parser.error(f"there is no figure {', '.join(wrong)}; choose from {', '.join(choices)}")
    options.only = [*options.figures, *(options.only or ())]
    return options


def _named(only: list[str] | None) -> list[str]:
    """Those figures in their order, or all but the long ones; a package stands for its parts."""
    if not only:
        return [*FIGURES]
    everything = (*FIGURES, *LONG)
    return [name for name in everything if name in only or name.partition(".")[0] in only]


def _figure(
    name: str, more: dict[str, Any], quick: bool, step: Step, failed: list[str]
) -> Iterator[Table | Sheet]:
    module = import_module(f"bench.{name}")
    variants: list[dict[str, Any]] = [{**variant, **more} for variant in module.VARIANTS]
    for index, variant in enumerate(variants):

        def part(done: float, what: str, index: int = index) -> None:
            step(name, (index + done) / len(variants), what)

        error = yield from _variant(name, variant, quick, part)
        if error:
            failed.append(f"{name} {variant} failed: {error}")
    step(name, 1.0, "")


def _variant(
    name: str, variant: dict[str, Any], quick: bool, part: Callable[[float, str], None]
) -> Generator[Table | Sheet, None, str]:
    command = [sys.executable, "-m", "bench._worker", name, json.dumps(variant)]
    command.append("quick" if quick else "full")
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=errors
        ) as worker,
    ):
        assert worker.stdout is not None
        for line in worker.stdout:
            told = json.loads(line)
            if "table" in told:
                yield revived(told["table"])
            else:
                part(told["done"], told["what"])
        if worker.wait() == 0:
            return ""
        errors.seek(0)
        return errors.read() or f"exit status {worker.returncode}"


def environment() -> dict[str, str]:
    """The environment of a worker: the sources of this repository come first."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0"}


def _heading(quick: bool) -> str:
    today = datetime.now(UTC).date()
    found = []
    for name in PEERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    how = "a quick run" if quick else "a full run"
    return (
        f"Measured on {today} by {how} of `make bench`: CPython {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[2]:.1f}. {', '.join(found)}."
    )


@contextmanager
def _progress(names: list[str]) -> Iterator[Step]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield _plain
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain
        return
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {name: bars.add_task(name, total=1.0, start=False, what="") for name in names}

        def step(name: str, done: float, what: str) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=done, what=what)

        yield step


_told: dict[str, int] = {}


def _plain(name: str, done: float, what: str) -> None:
    tenth = int(done * 10)
    if _told.get(name) != tenth:
        _told[name] = tenth
        print(f"{name:<11} {tenth * 10:>3} %  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
