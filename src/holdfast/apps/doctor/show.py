"""Print what was found: text with a progress bar for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from holdfast.apps.doctor.facts import Facts, Lateness
from holdfast.apps.doctor.net import Tell, examine
from holdfast.apps.doctor.rulings import Level, Ruling, rule
from holdfast.domain.instant import Duration, format_duration

__all__ = ["as_dict", "lines", "show"]

_STYLES: Final = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.BAD: "bold red",
}
_HEAD: Final = "bold"
_DIM: Final = "dim"

Line = tuple[str, str]
"""A line and its style."""


def show(*, seconds: Duration, names: Sequence[str], as_json: bool) -> int:
    """Examine this host and print it; the exit code, 1 where something is bad.

    Args:
        seconds: for the timers.
        names: to look up.
        as_json: whether programs are to read it.
    """
    with _progress() as tell:
        facts = examine(seconds, names, tell)
    rulings = rule(facts)
    if as_json:
        print(json.dumps(as_dict(facts, rulings)))
    else:
        _print(lines(facts, rulings))
    return 1 if any(ruling.level is Level.BAD for ruling in rulings) else 0


def as_dict(facts: Facts, rulings: Sequence[Ruling]) -> dict[str, Any]:
    """Plain values; durations are seconds."""
    return {
        "ok": all(ruling.level is not Level.BAD for ruling in rulings),
        **asdict(facts),
        "rulings": [asdict(ruling) for ruling in rulings],
    }


@contextmanager
def _progress() -> Generator[Tell]:
    """A bar on the terminal, where standard error is one."""
    if not sys.stderr.isatty():
        yield lambda doing, part: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Drawn between the steps only: a thread that draws would be measured with them.
    with Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda doing, part: bar.update(task, description=doing, completed=part, refresh=True)


def _print(text: Iterator[Line]) -> None:
    if not sys.stdout.isatty():
        for line, _ in text:
            print(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line, style in text:
        console.print(Text(line, style=style), soft_wrap=True)


def lines(facts: Facts, rulings: Sequence[Ruling]) -> Iterator[Line]:
    """Everything for people."""
    host = facts.host
    load = "" if host.load is None else f", load {host.load:.2g}"
    yield f"{host.system}, {host.python}, {host.cpus_reason}{load}", _HEAD
    yield "", ""
    yield from _timers(facts.timers)
    yield "", ""
    yield from _names(facts)
    yield "", ""
    yield from _limits(facts)
    yield "", ""
    width = max(len(level) for level in Level)
    for ruling in rulings:
        yield _clean(f"{ruling.level.value:{width}}  {ruling.what}"), _STYLES[ruling.level]
        if ruling.do:
            yield _clean(f"{'':{width}}    {ruling.do}"), ""


def _timers(timers: Sequence[Lateness]) -> Iterator[Line]:
    asked = sorted({found.asked for found in timers})
    heads = [f"after {format_duration(at)}" for at in asked]
    rows = [
        (_row_name(key), [_cell(timers, key, at) for at in asked])
        for key in dict.fromkeys((f.waiter, f.timer, f.load) for f in timers)
    ]
    wide = max((len(name) for name, _ in rows), default=0)
    columns = [
        max(len(head), *(len(cells[at]) for _, cells in rows)) for at, head in enumerate(heads)
    ]
    tries = sorted({found.count for found in timers})
    of = "-".join(str(count) for count in dict.fromkeys((*tries[:1], *tries[-1:])))
    yield f"timers: how late, in ms: median, worst of {of} (least, where early)", _HEAD
    yield "  " + " " * wide + _padded(heads, columns), _DIM
    for name, cells in rows:
        yield f"  {name:{wide}}{_padded(cells, columns)}", ""


def _padded(cells: Sequence[str], columns: Sequence[int]) -> str:
    return "".join(f"   {cell:>{wide}}" for cell, wide in zip(cells, columns, strict=True))


def _row_name(key: tuple[str, str, str]) -> str:
    waiter, timer, load = key
    if timer == "holdfast":
        return f"Holdfast on {waiter}, {load}"
    return f"{waiter}, {load}"


def _cell(timers: Sequence[Lateness], key: tuple[str, str, str], asked: Duration) -> str:
    for found in timers:
        if (found.waiter, found.timer, found.load) == key and found.asked == asked:
            text = f"{_ms(found.p50)} {_ms(found.worst)}"
            return f"{text} ({_ms(found.earliest)})" if found.earliest < -50e-6 else text
    return ""


def _ms(seconds: Duration) -> str:
    value = seconds * 1000
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.3g}"


def _names(facts: Facts) -> Iterator[Line]:
    names = facts.names
    yield "names", _HEAD
    search = f", search {' '.join(names.search)}" if names.search else ""
    rounds = f"{names.attempts} rounds of {format_duration(names.timeout)}"
    yield _clean(f"  resolv.conf: ndots {names.ndots}, {rounds}{search}"), ""
    if names.sources:
        yield _clean(f"  looked up in: {' '.join(names.sources)}"), ""
    for reply in names.replies:
        said = reply.problem if reply.took is None else f"answers in {format_duration(reply.took)}"
        yield _clean(f"  {reply.server}: {said}"), ""
    for done in names.look_ups:
        took = format_duration(done.took)
        yield _clean(f"  {done.name}: {done.ended} after {took}, {done.detail}"), ""


def _limits(facts: Facts) -> Iterator[Line]:
    yield "limits", _HEAD
    if (ports := facts.ports) is not None:
        yield (
            f"  ports {ports.first}-{ports.last}: {ports.in_use} of {ports.total} in use",
            "",
        )
        states = ", ".join(f"{count} {state}" for state, count in sorted(ports.states.items()))
        yield f"  sockets: {states or 'none'}", ""
    files = facts.files
    yield f"  files of this process: {_many(files.soft)}, {_many(files.hard)} if it asks", ""
    if files.system_open is not None:
        yield f"  files of the machine: {files.system_open} of {files.system_most} open", ""
    kernel = facts.kernel
    patience = [
        f"{name} {format_duration(seconds)}"
        for name, seconds in (
            ("an unanswered connect", kernel.connect_gives_up),
            ("unconfirmed data", kernel.write_gives_up),
            ("the first look at a silent connection", kernel.keepalive_begins),
        )
        if seconds is not None
    ]
    if patience:
        yield f"  the kernel waits: {', '.join(patience)}", ""


def _many(count: int) -> str:
    return "no limit" if count < 0 else str(count)


def _clean(line: str) -> str:
    # Files and servers have the word here: what is not printable must not reach a terminal.
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)
