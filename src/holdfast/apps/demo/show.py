"""What is to be seen while it runs: a live view on a terminal, else a line now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from holdfast.domain.instant import Duration, format_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["HEADINGS", "Live", "Look", "Plain", "Show", "Silent", "amount"]

HEADINGS: Final = {False: "without Holdfast", True: "with Holdfast"}

_LINE_EVERY: Final[Duration] = 1.0
_PARTS: Final = 2


def amount(seconds: object) -> str:
    """A duration for people; a dash where there is none."""
    return format_duration(seconds) if isinstance(seconds, int | float) else "-"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a run.

    Attributes:
        carriers: whether Holdfast is at work.
        doing: what goes on.
        elapsed: seconds since the load began.
        seconds: how long there is load.
        users: how many have come and left.
        answered: how many of them with an answer.
        hops: what each service says of itself.
    """

    carriers: bool
    doing: str
    elapsed: Duration = 0.0
    seconds: Duration = 1.0
    users: int = 0
    answered: int = 0
    hops: Sequence[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


class Show(Protocol):
    """Shows how it goes."""

    def look(self, look: Look) -> None:
        """Show this now."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Silent:
    """For programs."""

    def look(self, look: Look) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """Lines, one each second."""

    def __init__(self) -> None:
        self._doing = ""
        self._next: Duration = 0.0

    def look(self, look: Look) -> None:
        """A line when something else goes on, or a second has passed."""
        if look.doing == self._doing and look.elapsed < self._next:
            return
        if look.doing != self._doing:
            self._doing, self._next = look.doing, 0.0
        self._next += _LINE_EVERY
        words = f"{HEADINGS[look.carriers]}: {look.doing}"
        if look.hops:
            flight = ", ".join(f"{hop['service']} {hop['open']}" for hop in look.hops)
            words += f", {look.elapsed:.0f} s, {look.users} users, {look.answered} answered"
            words += f"; in flight: {flight}"
        print(words, flush=True)

    def close(self) -> None:
        """Nothing."""


class Live:
    """A picture that is drawn anew at each look."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def look(self, look: Look) -> None:
        """Draw it."""
        self._live.update(_picture(look), refresh=True)

    def close(self) -> None:
        """Take the picture away; what is printed next comes in its place."""
        self._live.stop()


def _picture(look: Look) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    color = "green" if look.carriers else "red"
    title = Text.assemble(
        (f"  {HEADINGS[look.carriers]}", f"bold {color}"), f"  {look.doing}",
        (f"  {look.users} users, {look.answered} answered" if look.users else "", "dim"),
    )  # fmt: skip
    done = min(look.elapsed / look.seconds, 1.0)
    bar = ProgressBar(_PARTS, look.carriers + done, width=72, complete_style=color)
    table = Table(box=None, padding=(0, 2))
    for name in ("hop", "in flight", "budget at entry", "ended early", "latency p50", "p95"):
        table.add_column(name, justify="left" if name == "hop" else "right", header_style="dim")
    for hop in look.hops:
        table.add_row(
            str(hop["service"]),
            str(hop["open"]),
            amount(hop["budget_p50_s"]) if hop["budget_p50_s"] is not None else "none",
            str(hop["ended_early"]),
            amount(hop["latency_p50_s"]),
            amount(hop["latency_p95_s"]),
        )
    return Group(Text(), title, Text("  ", end=""), bar, Text(), table)
