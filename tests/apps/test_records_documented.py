"""The page about records lists every kind there is, with the keys that are written."""

from __future__ import annotations

import ast
import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.domain.lifecycle.fleet import Report
from holdfast.domain.record import KINDS, Record
from holdfast.runtime.lifecycle import Host, HostTerms
from holdfast.runtime.signals import SignalNote

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "records.md"
SOURCES = ROOT / "src" / "holdfast"
NAME = re.compile(r"`([\w.]+)`")


def documented() -> dict[str, set[str]]:
    """The kinds of the page, with the names in the column of their data."""
    found: dict[str, set[str]] = {}
    steps: set[str] = set()
    place = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| kind "):
            place = "kinds"
        elif line.startswith("| subject of `drain.step`"):
            place = "steps"
        elif not line.startswith("|"):
            place = ""
        elif place == "kinds":
            for kind in NAME.findall(cells[0]):
                assert kind not in found, f"{kind} is on the page twice"
                found[kind] = set(NAME.findall(cells[2]))
        elif place == "steps":
            steps |= set(NAME.findall(cells[2]))
    found["drain.step"] |= steps
    return found


def steps_documented() -> set[str]:
    rows = PAGE.read_text(encoding="utf-8").partition("| subject of `drain.step`")[2]
    table = rows.partition("\n\n")[0].splitlines()[2:]
    return {NAME.findall(row)[0] for row in table}


def written() -> Iterator[tuple[str, str, set[str]]]:
    """Kind, subject and literal keys of each place in the sources that writes a record."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            first, *rest = (a.value if isinstance(a, ast.Constant) else None for a in node.args)
            if not (isinstance(first, str) and first in KINDS):
                continue
            subject = rest[0] if rest and isinstance(rest[0], str) else ""
            yield first, subject, _keys(node)


def _keys(call: ast.Call) -> set[str]:
    found: set[str] = set()
    plain = isinstance(call.func, ast.Attribute) and call.func.attr in ("_tell", "tell")
    for keyword in call.keywords:
        if keyword.arg == "data" and isinstance(keyword.value, ast.Dict):
            keys = keyword.value.keys
            found |= {k.value for k in keys if isinstance(k, ast.Constant) and str(k.value)}
        elif plain and keyword.arg is not None:
            found.add(keyword.arg)
    return found


def test_every_kind_is_on_the_page_and_no_other() -> None:
    assert set(documented()) == KINDS


def test_keys_that_the_sources_name_are_on_the_page() -> None:
    known = documented()
    places = list(written())
    assert {kind for kind, _, _ in places} >= {"drain.step", "drain.cut", "signal.received"}
    missing = [(kind, keys - known[kind]) for kind, _, keys in places if keys - known[kind]]
    assert missing == []


def test_steps_of_the_drain_are_on_the_page_and_no_other() -> None:
    steps = {subject for kind, subject, _ in written() if kind == "drain.step" and subject}
    assert steps == steps_documented()


def test_what_a_signal_says_is_on_the_page() -> None:
    assert set(SignalNote(15, "SIGTERM", 0.0).as_dict()) <= documented()["signal.received"]


def test_what_a_supervisor_adds_is_on_the_page() -> None:
    known = documented()
    report = {field for field in Report.__slots__ if field in ("pid", "slot", "generation")}
    assert len(report) == 3
    for kind in ("worker.started", "worker.ready", "worker.retired", "worker.died"):
        assert report <= known[kind]
    assert {"code", "signal"} <= known["worker.died"]


@pytest.mark.parametrize("forced", [False, True])
async def test_keys_that_a_host_writes_are_on_the_page(forced: bool) -> None:
    seen: defaultdict[str, set[str]] = defaultdict(set)

    def note(record: Record) -> None:
        seen[record.kind] |= set(record.data)

    class Pool:
        async def preclean(self, idle: float) -> int:
            return 1

    def fail() -> None:
        raise OSError("no")

    host = Host("shop", terms=HostTerms(drain=1.0, cleanup=1.0))
    host.journal.read_by(note)
    host.pool("db", Pool())
    host.on_stop(fail)
    host.at_exit(fail)
    host.add("good", start=lambda: None, stop=lambda: None)
    host.add("bad", start=lambda: None, stop=fail)
    host.add("work", run=asyncio.Event().wait)
    running = asyncio.ensure_future(host.run())
    await asyncio.sleep(1.0)
    host.stop("a test")
    if forced:
        host.force("a test")
    await running
    assert {"hook.failed", "pool.cleaned", "component.failed", "process.snapshot"} <= set(seen)
    known = documented()
    assert {kind: keys - known[kind] for kind, keys in seen.items() if keys - known[kind]} == {}
