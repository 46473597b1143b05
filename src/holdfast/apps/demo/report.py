"""What is to be seen in the end: two tables, one real answer, one real tree."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from holdfast.apps.demo.figures import Hop, Run, chain_of, quantile
from holdfast.apps.demo.show import HEADINGS
from holdfast.apps.demo.trouble import DemoError
from holdfast.apps.demo.users import HASTY, PATIENCE
from holdfast.domain.instant import NEVER, Duration, format_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["WIDTH", "figures", "report", "save"]

WIDTH: Final = 100
"""Columns of the report where no terminal says how many there are."""

_TREE_LINES: Final = 9
_LATE: Final[Duration] = 0.1
"""Seconds from which on it is worth telling that this machine could not keep up."""

_FONT: Final = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)


def figures(seconds: Duration, runs: Sequence[Run]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "seconds_of_load": seconds,
        "patience_s": PATIENCE,
        "runs": {run.name: run.as_dict() for run in runs},
    }


def report(console: Console, seconds: Duration, runs: Sequence[Run]) -> None:
    """Print everything, for people."""
    for part in _parts(seconds, runs):
        console.print(part)


def save(path: Path, seconds: Duration, runs: Sequence[Run]) -> None:
    """Write the report as an SVG picture that loads nothing from anywhere.

    Raises:
        DemoError: it cannot be written.
    """
    from rich.console import Console

    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    report(console, seconds, runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        svg = console.export_svg(title="holdfast demo", unique_id="holdfast-demo")
        path.write_text(_FONT.sub("", svg), encoding="utf-8")
    except OSError as error:
        raise DemoError(f"the picture {path} cannot be written: {error.strerror}") from None


def _parts(seconds: Duration, runs: Sequence[Run]) -> Iterator[RenderableType]:
    from rich.text import Text

    off, on = runs
    yield Text()
    yield Text.assemble(
        ("holdfast demo", "bold"), "   edge -> orders -> payments -> bank, "
        f"{len(off.experiences)} users in {seconds:g} s, twice the same",
    )  # fmt: skip
    yield Text()
    yield _after(off, on)
    yield Text()
    yield _users(off, on)
    late = max(off.late, on.late)
    if late > _LATE:
        yield Text()
        yield Text(
            f"This machine was busy with other things: users came up to {format_duration(late)} "
            "late, and requests took longer than they should.", style="yellow",
        )  # fmt: skip
    yield from _told(on)
    yield from _tree(on)


def _heading(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="bold")


def _after(off: Run, on: Run) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), title_justify="left", title_style="bold")
    table.title = "Work done after the caller had gone"
    table.add_column("\nhop")
    for what in ("requests", "seconds at work", "seconds held open"):
        for run, above in ((off, what), (on, "")):
            name = HEADINGS[run.carriers].removesuffix(" Holdfast")
            table.add_column(f"{above}\n{name}", justify="right", style=_color(run))
    for first, second in zip(off.hops, on.hops, strict=True):
        table.add_row(first.name, *_cells([first], [second]))
    table.add_row("together", *_cells(off.hops, on.hops), style="bold")
    return table


def _cells(off: Sequence[Hop], on: Sequence[Hop]) -> Iterator[str]:
    for hops in (off, on):
        yield str(sum(hop.after_requests for hop in hops))
    for hops in (off, on):
        yield f"{sum(hop.after_work for hop in hops):.2f}"
    for hops in (off, on):
        yield f"{sum(hop.after_held for hop in hops):.2f}"


def _color(run: Run) -> str:
    return "green" if run.carriers else "red"


def _users(off: Run, on: Run) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), title_justify="left", title_style="bold")
    table.title = "What the users got"
    table.add_column("")
    for run in (off, on):
        style = _color(run)
        table.add_column(HEADINGS[run.carriers], justify="right", style=style, header_style=style)
    wait, early = format_duration(PATIENCE), format_duration(HASTY)
    rows: list[tuple[str, str, str]] = [
        ("what they came for", str(off.bought), str(on.bought)),
        ("told in time that it cannot be (504)", str(off.told), str(on.told)),
        ("  and which hop spent the budget", _named(off), _named(on)),
        (f"left after {wait}, without an answer", str(off.left), str(on.left)),
        (f"closed the tab after {early}", str(off.closed), str(on.closed)),
    ]
    if off.failed or on.failed:
        rows.append(("something else went wrong", str(off.failed), str(on.failed)))
    for name, part in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
        rows.append((f"time to an answer, {name}", _when(off, part), _when(on, part)))
    rows.append(("tasks still running 1 s after the load", str(off.leaked), str(on.leaked)))
    for row in rows:
        table.add_row(*row)
    return table


def _named(run: Run) -> str:
    named = run.named
    return ", ".join(f"{hop} {count}" for hop, count in named.most_common()) or "0"


def _when(run: Run, part: float) -> str:
    seconds = quantile(run.times, part)
    return "never" if seconds == NEVER else format_duration(seconds)


def _told(run: Run) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    told = run.sample()
    if told is None:
        return
    yield Text()
    yield _heading(f"One of the 504 answers, request {told.document.get('request_id', '')}")
    table = Table(box=None, padding=(0, 1), show_header=False)
    chain = chain_of(told.cause)
    for cause in chain:
        origin = cause is chain[-1]
        table.add_row(
            Text(f"  {'' if cause is told.cause else '<- '}{cause.hop}", style="bold"),
            Text(f"had {format_duration(cause.budget)}", style="cyan"),
            Text(f"ran {format_duration(cause.elapsed)}", style="cyan"),
            Text(_last(cause.scope), style="dim"),
            Text("spent it all" if origin else "", style="bold red"),
        )
    yield table


def _last(scope: str) -> str:
    """The innermost segment of a path of scopes that are named after requests."""
    return re.split(r"/(?=[A-Z]+ )", scope)[-1]


def _tree(run: Run) -> Iterator[RenderableType]:
    from rich.text import Text

    if not run.tree:
        return
    yield Text()
    yield _heading("holdfast tree, while the load was on")
    # Where each one waits is left out: those are paths of this machine, and long.
    lines = [line for line in run.tree if not line.lstrip().startswith("waits in ")]
    for number, line in enumerate(lines[:_TREE_LINES]):
        text = Text(f"  {line}", style="" if number else "bold", no_wrap=True)
        text.truncate(WIDTH, overflow="ellipsis")
        yield text
    if len(lines) > _TREE_LINES:
        yield Text(f"  ... {len(lines)} lines in all", style="dim")
