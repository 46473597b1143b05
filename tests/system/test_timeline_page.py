"""The page of a timeline in a real browser: what a person gets to see is what is checked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.domain.record import Record
from tests.apps.test_timeline import VERDICTS, Page
from tests.apps.timeline_stories import PLACE

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no chromium here; as root, tools/packages.sh installs it"
    ),
]


def written(tmp_path: Path, records: str) -> Path:
    """The page of these records, made by the command."""
    page = tmp_path / "stop.html"
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.apps.cli", "timeline", "-", "--format", "html",
         "-o", str(page)],
        input=records, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return page


def rendered(tmp_path: Path, page: Path) -> str:
    """The document as the browser has it when it is done."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", ["clean", "roll"])
def test_the_verdict_and_the_lanes_are_on_the_page(tmp_path: Path, name: str) -> None:
    dom = rendered(tmp_path, written(tmp_path, (PLACE / f"{name}.jsonl").read_text()))
    words = Page(dom.partition("\n")[2]).words
    head, _, rest = VERDICTS[name].partition(": ")
    assert head in words
    assert set(rest.split("; ")) <= set(words)
    lanes = {"clean": ("db", "queue", "http"), "roll": ("worker 101", "worker 204")}[name]
    for lane in lanes:
        assert re.search(rf'<div class="name">{lane}<small', dom), lane


def test_what_a_record_says_is_shown_and_not_run(tmp_path: Path) -> None:
    evil = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    records = [
        Record(1.0, "process.started", evil, pid=1, data={"service": evil}),
        Record(2.0, "stop.begun", evil, evil, evil, pid=1),
        Record(2.1, "component.forced", evil, evil, pid=1),
        Record(2.2, "drain.cut", evil, evil, pid=1),
        Record(3.0, "process.ended", "forced", evil, pid=1, data={"code": 5, evil: evil}),
    ]
    lines = "".join(json.dumps(record.as_dict()) + "\n" for record in records)
    dom = rendered(tmp_path, written(tmp_path, lines))
    page = Page(dom.partition("\n")[2])
    assert not page.tags & {"script", "img"}
    assert "<title>run</title>" not in dom
    assert evil in " ".join(page.words)
