"""`holdfast timeline`: its four forms, of stories that are kept beside this file."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.apps.cli import main
from holdfast.apps.timeline.axis import axis_of
from holdfast.apps.timeline.mermaid import as_mermaid
from holdfast.apps.timeline.page import as_page
from holdfast.apps.timeline.read import LARGEST, parse
from holdfast.apps.timeline.text import as_text
from holdfast.apps.timeline.words import clean, length, when
from holdfast.domain.lifecycle.timeline import Story, Timeline, timelines
from holdfast.domain.record import KINDS, Record
from tests.apps.timeline_stories import PLACE, STORIES

VERDICTS = {
    "clean": "Clean stop in 1.4 s: SIGTERM by process 1 (kubelet) of user 0; "
    "53 requests finished, none cut; component 'queue' did not answer and was forced",
    "forced": "Forced stop in 4.4 s: SIGTERM by process 790 (bash) of user 1000, then SIGINT by "
    "the kernel; 2 requests finished, 3 cut; component 'http' was forced; "
    "hook 'flush-metrics' failed",
    "killed": "Killed, or still at it, 5 s into the stop, while draining: SIGTERM by somebody "
    "outside the container (pid 0); 1 request was in flight at the last; components 'db' and "
    "'http' had not stopped; component 'consumer' did not answer",
    "roll": "4 of 8 workers stopped: SIGHUP by process 90 (deploy.sh) of user 1000; "
    "3 workers ended clean; 42 requests finished, none cut; "
    "worker 103: killed by SIGKILL, while draining, with 6 requests in flight",
}


def told(name: str) -> Timeline:
    with (PLACE / f"{name}.jsonl").open("rb") as stream:
        (timeline,) = timelines(parse(stream).records)
    return timeline


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["timeline", *words])
    out, err = capsys.readouterr()
    return code, out, err


class Page(HTMLParser):
    """What a browser makes of a page: elements, attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


# -- the stories -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORIES)
def test_the_files_are_what_the_script_writes(name: str) -> None:
    lines = (PLACE / f"{name}.jsonl").read_text().splitlines()
    if name == "killed":
        assert lines.pop() == lines[-1][:40]
    assert lines == STORIES[name]().lines()


@pytest.mark.parametrize("name", STORIES)
def test_every_form_begins_with_the_verdict(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(PLACE / f"{name}.jsonl")
    verdict = VERDICTS[name]
    code, text, _ = run(capsys, file)
    assert code == 0
    assert text.splitlines()[0] == verdict
    code, text, _ = run(capsys, file, "--format", "json")
    assert json.loads(text)["verdict"] == verdict
    code, text, _ = run(capsys, file, "--format", "mermaid")
    assert text.startswith("sequenceDiagram\n")
    assert entities(text).count(verdict[:100]) == 2
    code, text, _ = run(capsys, file, "--format", "html")
    words = Page(text).words
    head, _, rest = verdict.partition(": ")
    assert head in words
    assert all(part in words for part in rest.split("; "))


def entities(text: str) -> str:
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text)


def test_the_text_shows_bars_limits_and_events() -> None:
    text = as_text(told("clean"))
    lines = text.splitlines()
    assert any(re.fullmatch(r"  queue +·*░+▓+·* +no answer, forced", line) for line in lines)
    assert any(re.fullmatch(r"  db +·*░+▓+█+·* +stopped", line) for line in lines)
    assert any("drain deadline" in line and "+11 s, after the end" in line for line in lines)
    assert any(re.search(r"\+1.31 s +component forced +queue: did not answer", li) for li in lines)
    assert "at the end: " in text
    narrow = as_text(told("clean"), ascii_only=True)
    assert narrow.isascii()
    assert len(narrow.splitlines()) == len(lines)


def test_the_page_shows_lanes_limits_and_what_was_cut() -> None:
    words = Page(as_page(told("forced"))).words
    text = " ".join(words)
    for expected in (
        "db", "http", "forced", "lame duck", "letting go", "What was cut",
        "GET /events <script>alert(1)</script>", "request r-2", "All 29 events",
    ):  # fmt: skip
        assert expected in text, expected
    assert "must be over +16 s" in text
    roll = " ".join(Page(as_page(told("roll"))).words)
    for pid in (101, 104, 204):
        assert f"worker {pid}" in roll


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    for name in STORIES:
        page = as_page(told(name))
        found = Page(page)
        assert not found.open
        assert not found.tags & {"script", "link", "img", "iframe", "object", "form", "a"}
        assert not [attribute for attribute in found.names if attribute.startswith("on")]
        assert not {"src", "href"} & found.names
        assert "default-src &#x27;none&#x27;" in page
        assert "http://" not in page
        assert "https://" not in page
        assert "url(" not in page


def test_each_form_is_the_same_each_time() -> None:
    for name in STORIES:
        for form in (as_text, as_mermaid, as_page):
            assert form(told(name)) == form(told(name))


def test_mermaid_names_who_talks_to_whom() -> None:
    text = entities(as_mermaid(told("forced")))
    assert "actor who0 as process 790 (bash) of user 1000" in text
    assert "actor who1 as the kernel" in text
    assert "participant p0 as shop process 812" in text
    assert "participant clients" in text
    assert "p0-xp0c1: +4.3 s forced, a second signal" in text
    assert "p0c0-->>p0: +4 ms answered" in text


# -- the axis --------------------------------------------------------------------------------------


def test_two_hours_of_service_leave_the_stop_its_room() -> None:
    (story,) = told("clean").stories
    axis = axis_of([story])
    assert axis.place(story.began) == 0.0
    assert axis.place(0.0) < 0.2
    assert axis.place(story.ended) == 1.0
    assert axis.place(1e9) == 1.0
    halves = [axis.place(at) for at in (0.0, 0.5, 1.0)]
    assert halves[1] - halves[0] == pytest.approx(halves[2] - halves[1])
    assert axis.ticks() == pytest.approx([0.0, 0.5, 1.0])


def test_a_limit_that_is_near_is_on_the_axis() -> None:
    records = [
        Record(0.0, "stop.begun", data={"drain_s": 5.0, "grace_s": 30.0}),
        Record(4.5, "process.ended", "clean", data={"code": 0}),
    ]
    (story,) = timelines(records)[0].stories
    axis = axis_of([story])
    assert axis.ended == 5.0
    assert axis.place(4.5) == pytest.approx(0.9)


# -- reading ---------------------------------------------------------------------------------------


def good(**changes: object) -> bytes:
    return json.dumps(Record(1.0, "stop.begun").as_dict() | changes).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense\n", "line 2 was left out: it is no JSON: Expecting value, column 1"),
        (b"[1]\n", "line 2 was left out: a record is a JSON object, not list"),
        (b'{"at": NaN}\n', "line 2 was left out: NaN is no number"),
        (b"\xff\xfe\n", "line 2 was left out: it is no text in UTF-8"),
        (b"[" * 100_000 + b"\n", "line 2 was left out: it is nested too deep"),
        (good(kind="party.begun"), "line 2 was left out: 'party.begun' is not a kind"),
        (good(at=10**400), "line 2 was left out: a number in it is too large"),
        (b'"' + b"x" * 3_000_000 + b'"\n', "line 2 was left out: it is longer than 1 MiB"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_left_out(line: bytes, says: str) -> None:
    found = parse(io.BytesIO(good() + line + b"\n" + good()))
    assert len(found.records) == 2
    assert len(found.problems) == 1
    assert found.problems[0].startswith(says)
    assert not found.unfinished


def test_a_last_line_that_is_cut_off_is_no_problem() -> None:
    found = parse(io.BytesIO(good() + good()[:30]))
    assert (len(found.records), found.problems, found.unfinished) == (1, [], True)
    whole = parse(io.BytesIO(good() + good().rstrip()))
    assert (len(whole.records), whole.unfinished) == (2, False)


def test_a_file_is_read_up_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.apps.timeline.read.LARGEST", len(good()) + 5)
    found = parse(io.BytesIO(good() * 3))
    assert len(found.records) == 1
    assert found.problems[0].startswith("line 2 and what follows was not read")
    assert LARGEST == 64 * 1024 * 1024


# -- the command -----------------------------------------------------------------------------------


def test_problems_are_told_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stop.jsonl"
    file.write_bytes(b"oops\n" * 12 + good() + good()[:20])
    code, out, err = run(capsys, str(file))
    assert code == 0
    assert "line 1 was left out" in err
    assert "2 more lines were left out" in err
    assert "the last line ends in the middle" in err
    assert "stop begun" in out


def test_what_cannot_be_shown_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, str(tmp_path / "none"))
    assert (code, "cannot be read: No such file" in err) == (2, True)
    (tmp_path / "empty").write_text("")
    code, _, err = run(capsys, str(tmp_path / "empty"))
    assert (code, "there is no record in" in err) == (2, True)
    (tmp_path / "bad").write_text("x\n")
    code, _, err = run(capsys, str(tmp_path / "bad"))
    assert (code, "line 1 was left out" in err) == (2, True)
    clean_file = str(PLACE / "clean.jsonl")
    code, _, err = run(capsys, clean_file, "--run", "2")
    assert (code, "there is no run 2" in err) == (2, True)
    code, _, err = run(capsys, clean_file, "-o", str(tmp_path / "no" / "where"))
    assert (code, "cannot be written" in err) == (2, True)


def test_of_several_runs_the_last_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stops.jsonl"
    both = (PLACE / "forced.jsonl").read_text() + (PLACE / "clean.jsonl").read_text()
    file.write_text(both)
    code, out, err = run(capsys, str(file))
    assert code == 0
    assert out.startswith("Clean stop")
    assert "this is the last of 2 runs" in err
    code, out, err = run(capsys, str(file), "--run", "1")
    assert (out.startswith("Forced stop"), err) == (True, "")


def test_standard_input_and_a_file_for_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (PLACE / "clean.jsonl").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    out = tmp_path / "stop.html"
    code, _, err = run(capsys, "-", "--format", "html", "-o", str(out))
    assert (code, err) == (0, f"holdfast: wrote {out}\n")
    assert out.read_text().startswith("<!doctype html>")


def test_a_terminal_gets_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, out, _ = run(capsys, str(PLACE / "forced.jsonl"))
    assert code == 0
    assert "\x1b[1;31m" in out
    assert "Forced stop" in out


# -- whatever the records say ----------------------------------------------------------------------

EVIL = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a;b#c\nend\nNote over p0: x",
    "\x1b[31mred", "</style><script>", "' autofocus onfocus='x", "%%{init: {}}%%", "\u202eabc",
    "\ud800", "end", "SIGTERM", "http", "announce",
]  # fmt: skip
works = st.lists(st.dictionaries(st.just("scope"), st.sampled_from(EVIL)), max_size=2)
texts = st.sampled_from(EVIL) | st.text(max_size=16)
evil = st.lists(
    st.builds(
        Record,
        at=st.floats(0, 50),
        kind=st.sampled_from(sorted(KINDS)),
        subject=texts,
        detail=texts,
        cause=texts,
        wall=st.just(0.0) | st.floats(0, 3e9),
        pid=st.integers(0, 2),
        data=st.dictionaries(
            texts | st.sampled_from(["sender", "service", "in_flight", "cut", "work", "origin"]),
            texts | st.integers(-5, 9) | works,
            max_size=3,
        ),
    ),
    min_size=1,
    max_size=14,
)  # fmt: skip

MESSAGE = re.compile(
    r"    (?:accTitle: |actor who\d+ as |participant (?:p\d+(?:c\d+)? as |clients$)"
    r"|Note over p\d+: |\w+(?:->>|-->>|-x|--x)\w+: )[^;\n]*(?:(?<=\d);[^;\n]*)*"
)


@given(evil)
def test_no_text_of_a_record_is_more_than_a_text(records: list[Record]) -> None:
    for timeline in timelines(records):
        for line in as_text(timeline).split("\n"):
            assert line.isprintable(), line
        head, *lines = as_mermaid(timeline).rstrip("\n").split("\n")
        assert head == "sequenceDiagram"
        for line in lines:
            assert MESSAGE.fullmatch(line), line
            # A semicolon ends a statement, a hash begins an entity: only whole entities have them.
            assert not set("#;<>") & set(re.sub(r"#\d+;", "", line.replace("->>", "")))
            assert not re.search(r"\bend\b", line)
        page = as_page(timeline, [record.detail for record in records])
        page.encode()
        found = Page(page)
        assert not found.open
        assert not found.tags & {"script", "img"}
        assert not [name for name in found.names if name.startswith("on")]
        assert page.count("<style>") == page.count("</style>") == 1


@given(st.text())
def test_what_is_cleaned_prints_and_is_short(text: str) -> None:
    assert clean(text).isprintable()
    assert len(clean(text)) <= 400
    clean(text).encode()


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0, "0 s"),
        (0.0004, "+0.4 ms"),
        (1.4, "+1.4 s"),
        (-90.0, "-90 s"),
        (125.0, "+2 min 5 s"),
        (-8312.0, "-2 h 18 min"),
        (200_000.0, "+2 d 7 h"),
    ],
)
def test_instants_in_words(seconds: float, says: str) -> None:
    assert when(seconds) == says


def test_a_duration_without_end_is_said() -> None:
    assert length(float("inf")) == "no limit"


def test_many_are_left_out_by_number() -> None:
    records = [Record(float(n), "drain.cut", f"GET /{n}", pid=7) for n in range(700)]
    records += [Record(0.5, "process.started", "x", pid=n) for n in range(1, 90)]
    (timeline,) = timelines([*records, Record(699.0, "stop.begun", pid=100)])
    story: Story = next(story for story in timeline.stories if story.pid == 7)
    assert story.cut == 700
    page = as_page(timeline)
    assert "600 more requests" in page
    assert "201 more are left out; --format json has all." in page
    assert "more processes are left out." in page
    assert "more processes" in as_text(timeline)
    assert "more events" in as_mermaid(timeline)
