"""Print what services answered."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from holdfast.apps.tree.fetch import Service, at_url, local, of_pid
from holdfast.domain.instant import format_duration

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["render", "show"]

_EVERY: Final = 1.0
_LITTLE: Final = 0.1
"""Share of the budget below which what is left is shown as little."""


def show(*, pid: int | None, url: str, as_json: bool, watch: bool) -> int:
    """Print the tree of one service, or of all of this user on this machine; the exit code.

    Raises:
        TreeError: there is none to show.
    """
    pause = threading.Event()
    while True:
        services = at_url(url) if url else local() if pid is None else of_pid(pid)
        if as_json:
            _print_json(services, single=len(services) == 1 and bool(url or pid))
        else:
            _print(services, clear=watch)
        if not watch:
            return 0 if services else 1
        pause.wait(_EVERY)


def _print_json(services: list[Service], *, single: bool) -> None:
    found = [{**service.about, "tree": service.tree} for service in services]
    print(json.dumps(found[0] if single else found), flush=True)


def _print(services: list[Service], *, clear: bool) -> None:
    if not sys.stdout.isatty():
        for service in services:
            for line, _ in render(service):
                print(line)
        if not services:
            print("no service of this user runs here", file=sys.stderr)
        sys.stdout.flush()
        return
    from rich.console import Console

    console = Console(highlight=False)
    if clear:
        console.clear()
    for service in services:
        for line, style in render(service):
            console.print(_styled(line, style), soft_wrap=True)
    if not services:
        console.print(
            "no service of this user runs here; start one with: holdfast serve", style="dim"
        )


def _styled(line: str, style: str) -> Text:
    from rich.text import Text

    return Text(line, style=style)


def render(service: Service) -> Iterator[tuple[str, str]]:
    """Lines with the style of each."""
    about = service.about
    name = about.get("service") or about.get("target") or about.get("url") or "service"
    words = [str(name)]
    if "problem" in about:
        yield f"process {about['pid']}  {about['problem']}: its event loop is blocked", "bold red"
        return
    if "pid" in about:
        words += [f"process {about['pid']}", str(about["url"]), str(about["mode"])]
    yield _clean("  ".join(words)), "bold"
    roots: list[dict[str, Any]] = service.tree.get("roots", [])
    open_scopes = [scope for root in roots for scope in root.get("children", [])]
    if not open_scopes:
        yield "  nothing is open", "dim"
    for scope in open_scopes:
        yield from _scope(scope, "  ")
    requests: dict[str, int] = service.tree.get("requests", {})
    if requests:
        yield _clean("  " + ", ".join(f"{k} {n}" for k, n in sorted(requests.items()))), "dim"


def _scope(scope: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    left = scope["remaining_s"]
    words = [f"{scope['name']}  {format_duration(scope['age_s'])} old"]
    words.append("no deadline" if left is None else f"{format_duration(left)} left")
    for key, word in (
        ("task", "task"),
        ("request_id", "request"),
        ("stage", "stage"),
        ("origin", "from"),
    ):
        if scope.get(key):
            words.append(f"{word} {scope[key]}")
    yield _clean(indent + ", ".join(words)), _style(scope, left)
    if scope.get("cancelled"):
        ago = format_duration(scope["cancelled_for_s"])
        yield (
            _clean(f"{indent}    ! cancelled {ago} ago, still open: {scope['cancelled']}"),
            "bold red",
        )
    if scope.get("waits"):
        yield _clean(f"{indent}    waits in {scope['waits'][-1]}"), "dim"
    for child in scope.get("children", ()):
        yield from _scope(child, indent + "  ")


def _style(scope: dict[str, Any], left: float | None) -> str:
    if scope.get("cancelled"):
        return "red"
    if left is not None and left < _LITTLE * (left + scope["age_s"]):
        return "yellow"
    return ""


def _clean(line: str) -> str:
    # Names can come from requests: what is not printable must not reach a terminal.
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)
