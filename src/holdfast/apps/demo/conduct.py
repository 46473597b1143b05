"""All of it together: two runs, one after the other, and what was measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from holdfast.apps.demo.figures import Hop, Run
from holdfast.apps.demo.fleet import SERVICES, Fleet, check_installation
from holdfast.apps.demo.http import ask_json
from holdfast.apps.demo.report import WIDTH, figures, report, save
from holdfast.apps.demo.show import Live, Look, Plain, Show, Silent
from holdfast.apps.demo.trouble import DemoError
from holdfast.apps.demo.users import Visits
from holdfast.domain.instant import Duration
from holdfast.runtime.clock import monotonic
from holdfast.runtime.tasks import tasks

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["demo"]

_FAILED: Final = 1
_WRONG: Final = 2
_OF_SIGNAL: Final = 128
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY: Final[Duration] = 0.25
_LEAK_AFTER: Final[Duration] = 1.0
_RUNS_OUT_WITHIN: Final[Duration] = 6.0
_ANSWER_WITHIN: Final[Duration] = 2.0
_TREE_AT: Final = 0.5
_TREE_OF: Final = "payments"


def demo(*, as_json: bool, seconds: Duration, export: Path | None) -> int:
    """Run the demo; the exit code. 2 stands for what the caller can put right."""
    try:
        if not 0 < seconds < math.inf:
            raise DemoError(f"the load must last for some seconds, not {seconds:g}")
        check_installation()
    except DemoError as error:
        return _tell(error, _WRONG)
    console = None if as_json else _console()
    show = _show_for(console)
    try:
        runs = asyncio.run(_until_signal(seconds, show))
    except DemoError as error:
        return _tell(error, _FAILED)
    if isinstance(runs, int):
        print("holdfast demo: stopped, and no process is left behind", file=sys.stderr)
        return runs
    if console is None:
        print(json.dumps(figures(seconds, runs), indent=2))
    else:
        report(console, seconds, runs)
    try:
        if export is not None:
            save(export, seconds, runs)
    except DemoError as error:
        return _tell(error, _WRONG)
    return 0


def _tell(error: DemoError, code: int) -> int:
    print(f"holdfast demo: {error}", file=sys.stderr)
    return code


def _console() -> Console:
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def _show_for(console: Console | None) -> Show:
    if console is None:
        return Silent()
    return Live(console) if console.is_terminal else Plain()


async def _until_signal(seconds: Duration, show: Show) -> list[Run] | int:
    """Both runs, or the exit code when a signal ends them. What was started is stopped before."""
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    came: list[int] = []

    def end(number: int) -> None:
        # Once: a second Ctrl-C must not disturb the clearing up, which takes a second at most.
        if not came:
            this.cancel()
        came.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        return [await _run(False, seconds, show), await _run(True, seconds, show)]
    except asyncio.CancelledError:
        if not came:
            raise
        return _OF_SIGNAL + came[0]
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        show.close()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _first(error: BaseException) -> BaseException:
    """What went wrong first in a group, and in the groups in it."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _first(inner[0]) if inner else error


async def _run(carriers: bool, seconds: Duration, show: Show) -> Run:
    """One run from the start of the services to their end."""
    show.look(Look(carriers, "the four services start"))
    async with Fleet(carriers=carriers) as fleet:
        before = await _gauges(fleet)
        visits = Visits()
        tree: list[str] = []
        async with tasks("run") as group:
            watch = group.start(_watch(fleet, visits, seconds, show))
            if carriers:
                group.start(_climb(fleet, seconds * _TREE_AT, tree))
            await visits.drive(fleet.port(SERVICES[0]), seconds, fleet.check)
            watch.cancel()
        show.look(Look(carriers, "the load has stopped; what still runs?", seconds, seconds))
        await asyncio.sleep(_LEAK_AFTER)
        after = await _gauges(fleet)
        end = await _run_out(fleet)
    leaked = {name: after[name]["tasks"] - before[name]["tasks"] for name in SERVICES}
    hops = [Hop.of(end[name], leaked=max(0, leaked[name])) for name in SERVICES]
    return Run(carriers, hops, visits.experiences, visits.late, tree)


async def _gauges(fleet: Fleet) -> dict[str, Mapping[str, Any]]:
    """What each service says of itself.

    Raises:
        DemoError: one does not answer.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name in SERVICES:
        said = await ask_json(fleet.port(name), "/stats", _ANSWER_WITHIN)
        if said is None:
            fleet.check()
            raise DemoError(f"the service {name} does not say how it is; is this machine too busy?")
        found[name] = said
    return found


async def _run_out(fleet: Fleet) -> dict[str, Mapping[str, Any]]:
    """Let what still runs come to its end, so that it is counted; what each service says then."""
    limit = monotonic() + _RUNS_OUT_WITHIN
    while True:
        said = await _gauges(fleet)
        if not any(gauge["open"] for gauge in said.values()) or monotonic() > limit:
            return said
        await asyncio.sleep(_LOOK_EVERY)


async def _watch(fleet: Fleet, visits: Visits, seconds: Duration, show: Show) -> None:
    began = monotonic()
    while True:
        with contextlib.suppress(DemoError):  # who drives the load sees it too, and tells more
            said = await _gauges(fleet)
            answered = sum(e.status > 0 for e in visits.experiences)
            elapsed = monotonic() - began
            users = len(visits.experiences)
            hops = list(said.values())
            show.look(Look(fleet.carriers, "under load", elapsed, seconds, users, answered, hops))
        await asyncio.sleep(_LOOK_EVERY)


async def _climb(fleet: Fleet, after: Duration, found: list[str]) -> None:
    await asyncio.sleep(after)
    found += await fleet.tree(_TREE_OF)
