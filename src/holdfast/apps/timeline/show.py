"""`holdfast timeline`, all of it together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from holdfast.apps.timeline.mermaid import as_mermaid
from holdfast.apps.timeline.page import as_page
from holdfast.apps.timeline.problem import TimelineError
from holdfast.apps.timeline.read import Found, read
from holdfast.apps.timeline.text import as_text, lines
from holdfast.domain.lifecycle.timeline import Timeline, timelines

__all__ = ["FORMATS", "show"]

FORMATS: Final = ("text", "json", "mermaid", "html")
_MOST_PROBLEMS: Final = 10


def show(name: str, *, form: str = "text", out: Path | None = None, run: int = 0) -> int:
    """Show the stop whose records are in a file; the exit code.

    Args:
        name: of the file; `-` for standard input.
        form: one of `FORMATS`.
        out: file to write to; standard output without one.
        run: which of several runs in the file, from 1; 0 for the last.

    Raises:
        TimelineError: it cannot be read, shown or written.
    """
    found = read(name)
    every = timelines(found.records)
    if not 0 <= run <= len(every):
        runs = "is one run" if len(every) == 1 else f"are {len(every)} runs"
        raise TimelineError(f"there is no run {run} in {name}; there {runs}, counted from 1")
    timeline = every[run - 1]
    notes = _notes(found, len(every), run)
    for note in notes:
        print(f"holdfast: {note}", file=sys.stderr)
    if form == "text" and out is None and sys.stdout.isatty():
        _print(timeline)
        return 0
    text = _text(timeline, form, notes)
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TimelineError(f"{out} cannot be written: {error.strerror}") from None
    print(f"holdfast: wrote {out}", file=sys.stderr)
    return 0


def _notes(found: Found, runs: int, run: int) -> list[str]:
    notes = found.problems[:_MOST_PROBLEMS]
    if len(found.problems) > len(notes):
        notes.append(f"{len(found.problems) - len(notes)} more lines were left out")
    if found.unfinished:
        notes.append("the last line ends in the middle, as that of a killed process does")
    if runs > 1 and not run:
        notes.append(f"this is the last of {runs} runs in the file; --run N shows another one")
    return notes


def _text(timeline: Timeline, form: str, notes: list[str]) -> str:
    match form:
        case "json":
            return json.dumps(timeline.as_dict(), indent=2) + "\n"
        case "mermaid":
            return as_mermaid(timeline)
        case "html":
            return as_page(timeline, notes)
        case _:
            return as_text(timeline, ascii_only=not _speaks_unicode())


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def _print(timeline: Timeline) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines(timeline):
        console.print(Text.assemble(*line), soft_wrap=True)
