"""The journal: kept, handed on, bounded; nothing in it raises into the process."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast.domain.record import record_from_dict
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.lifecycle import FileReader, Journal, LogReader, Record
from holdfast.runtime.lifecycle.snapshot import snapshot


def test_what_is_written_is_kept_with_instant_wall_and_pid() -> None:
    journal = Journal(now=lambda: 5.0)
    record = journal.write("hook.done", "flush", "fine", cause="x", data={"seconds": 1})
    assert journal.records == (record,)
    assert (record.at, record.pid, record.subject, record.cause) == (5.0, os.getpid(), "flush", "x")
    assert record.wall > 1e9
    assert journal.write("hook.done", at=3.0).at == 3.0


def test_only_the_last_are_kept() -> None:
    journal = Journal(keep=10)
    for n in range(100):
        journal.write("hook.done", str(n))
    assert [r.subject for r in journal.records] == [str(n) for n in range(90, 100)]
    assert Journal().write("hook.done")


def test_readers_get_every_record_in_order_and_one_that_fails_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Record] = []
    fails: list[Record] = []

    def bad(record: Record) -> None:
        fails.append(record)
        raise OSError("the disk is full")

    journal = Journal(bad, seen.append)
    journal.write("hook.done", "a")
    journal.write("hook.done", "b")
    assert [r.subject for r in seen] == ["a", "b"]
    assert len(fails) == 1
    assert "failed and gets nothing more" in caplog.text
    late: list[Record] = []
    journal.read_by(late.append)
    journal.write("hook.done", "c")
    assert [r.subject for r in late] == ["c"]


def test_a_kind_that_there_is_not_is_an_error_of_the_writer() -> None:
    with pytest.raises(ValueError, match="not a kind of record"):
        Journal().write("something.else")


def test_the_log_has_one_line_for_each_and_warns_of_what_went_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = Journal(LogReader(logging.getLogger("story")))
    with caplog.at_level(logging.INFO, logger="story"):
        journal.write("phase.entered", "running", cause="all components are up")
        journal.write("component.died", "db", "gone")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "phase.entered running (all components are up)"),
        ("WARNING", "component.died db gone"),
    ]


def test_the_file_has_one_line_of_json_for_each_at_once(tmp_path: Path) -> None:
    path = tmp_path / "story.jsonl"
    reader = FileReader(path)
    journal = Journal(reader)
    awkward: Any = {"text": "a\nb\udcff\u2028ü", "object": object(), "list": [1, None]}
    for n in range(3):
        record = journal.write("hook.done", f"h{n}", "zwei\nZeilen", data=awkward)
        lines = path.read_text("utf-8").split("\n")[:-1]
        assert len(lines) == n + 1
        again = record_from_dict(json.loads(lines[-1]))
        assert (again.subject, again.detail) == (record.subject, record.detail)
        assert again.data["list"] == [1, None]
    reader.close()
    journal.write("hook.done", "after")  # borne
    assert len(path.read_text("utf-8").splitlines()) >= 3
    with pytest.raises(OSError, match="No such file"):
        FileReader(tmp_path / "missing" / "story.jsonl")


def test_a_process_that_is_killed_leaves_its_story(tmp_path: Path) -> None:
    path = tmp_path / "story.jsonl"
    program = (
        "import os, signal\n"
        "from holdfast import lifecycle\n"
        f"journal = lifecycle.Journal(lifecycle.FileReader({str(path)!r}))\n"
        "for n in range(100):\n"
        "    journal.write('hook.done', str(n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    found = [record_from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    assert [record.subject for record in found] == [str(n) for n in range(100)]


def test_a_disk_that_is_full_for_a_while_costs_no_record(tmp_path: Path) -> None:
    path = tmp_path / "story.jsonl"
    program = (
        "import os, resource\n"
        "from holdfast import lifecycle\n"
        f"reader = lifecycle.FileReader({str(path)!r})\n"
        "journal = lifecycle.Journal(reader)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "for n in range(60):\n"
        # Too little room for the records from 10 to 19, and again for those from 40 to 49.
        "    if n in (10, 40):\n"
        f"        room = os.path.getsize({str(path)!r}) + 700\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))\n"
        "    elif n in (20, 50):\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "    journal.write('hook.done', str(n))\n"
        "reader.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    whole: list[str] = []
    torn = 0
    for line in path.read_text().splitlines():
        try:
            whole.append(record_from_dict(json.loads(line)).subject)
        except ValueError:
            torn += 1
    assert whole == [str(n) for n in range(60)]
    assert torn == 2
    assert path.read_bytes().endswith(b"}\n")
    assert done.stderr.count("is tried again") == 2
    assert done.stderr.count("is written again; records lost: 0") == 2


def test_a_file_that_takes_nothing_is_told_of_once_and_stays_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[bytes] = []
    room = [0]

    class Disk:
        """A file that takes as many bytes as `room` has, and then none."""

        name, closed = "disk", False

        def write(self, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = data[: room[0]]
            room[0] -= len(part)
            taken.append(part)
            return len(part)

        def close(self) -> None:
            self.closed = True

    reader = FileReader(os.devnull)
    reader.close()
    disk: Any = Disk()
    reader._file = disk
    journal = Journal(reader)
    for n in range(1_010):
        journal.write("hook.done", str(n))
    assert [r.getMessage() for r in caplog.records] == [
        "disk: No space left on device; it is tried again at each record"
    ]
    room[0] = 1  # one byte of a line; then the end of that line, and nothing of the next
    journal.write("hook.done", "1010")
    assert taken == [b"{"]
    room[0] = 1
    journal.write("hook.done", "1011")
    assert taken == [b"{", b"\n"]
    room[0] = 10**9
    journal.write("hook.done", "1012")
    torn, *lines = b"".join(taken).decode().splitlines()
    assert torn == "{"
    found = [record_from_dict(json.loads(line)).subject for line in lines]
    assert found == [str(n) for n in range(13, 1_013)]
    assert caplog.records[-1].getMessage() == "disk: is written again; records lost: 13"


async def test_the_snapshot_is_plain_and_complete() -> None:
    driver: Driver = driver_of(asyncio.get_running_loop())
    driver.counts["cancelled.deadline"] += 3
    await asyncio.sleep(10)
    table = snapshot(driver, Counter(served=7), driver.now() - 10)
    assert json.loads(json.dumps(table)) == table
    assert table["uptime_s"] == 10
    assert table["requests"] == {"served": 7}
    assert table["cancelled"] == {"deadline": 3}
    assert (table["swallowed"], table["escaped"], table["leaked"]) == (0, 0, 0)
    assert table["memory"]["rss"] > 1_000_000
    assert table["memory"]["peak"] >= 1_000_000
    assert table["tasks"] >= 1
    assert table["threads"] >= 1
    assert table["fds"] >= 3
    assert len(table["gc"]["collections"]) == 3
