"""What a test left behind: tasks, scopes, timers, cancellations, errors that nobody retrieved.

The third law says that nothing outlives its scope. A test has no scope around it, so somebody has
to look.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from holdfast.domain.instant import Duration
from holdfast.domain.laws import (
    breaches_of_closure,
    breaches_of_containment,
    breaches_of_reach,
)
from holdfast.domain.tree import Node
from holdfast.runtime.driver import driver_of
from holdfast.testing.virtual import VirtualLoop

__all__ = ["SETTLE", "Leak", "leaks_of", "run_checked"]

T = TypeVar("T")

_TURNS: Final = 5
SETTLE: Final[Duration] = 60.0
"""Virtual seconds after which the driver of a loop without scopes must hold no timer either."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing left behind.

    Attributes:
        kind: `task`, `scope`, `timer`, `cancellation`, `law` or `error`.
        what: one line that says which.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


async def leaks_of(loop: asyncio.AbstractEventLoop) -> list[Leak]:
    """What is left on `loop`, which runs this. On a virtual loop this lets a minute pass."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    driver = driver_of(loop)
    me = asyncio.current_task()
    found = [Leak("task", repr(task)) for task in asyncio.all_tasks(loop) if task is not me]
    found += [Leak("scope", repr(node)) for node in _below(driver.root)]
    for law in (breaches_of_closure, breaches_of_containment, breaches_of_reach):
        found += [Leak("law", str(breach)) for breach in law(driver.root)]
    if me is not None and me.cancelling():
        found.append(Leak("cancellation", f"{me.cancelling()} not taken back"))
    if isinstance(loop, VirtualLoop) and not found:
        await asyncio.sleep(SETTLE)
        if left := len(driver.timers):
            found.append(Leak("timer", f"{left} left after {SETTLE:g} s without a scope"))
    return found


def _below(root: Node) -> Iterator[Node]:
    for child in tuple(root.children or ()):
        yield child
        yield from _below(child)


def run_checked(
    main: Callable[[], Coroutine[Any, Any, T]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = VirtualLoop,
) -> T:
    """Run `main()` on a fresh loop and look at what it left behind.

    Args:
        main: called without arguments, on the loop.
        loop_factory: makes the loop; None for the default one, in real time.

    Raises:
        AssertionError: `main` returned and left something behind. What `main` raises comes first.
    """
    errors: list[Leak] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        errors.append(Leak("error", f"{context['message']}: {context.get('exception')!r}"))

    async def checked() -> tuple[T, list[Leak]]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(note)
        result = await main()
        return result, await leaks_of(loop)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result, found = runner.run(checked())
        # The complaint about an error that nobody retrieved comes when its task is collected.
        gc.collect(1)
    if found := [*found, *errors]:
        raise AssertionError("left behind:\n" + "\n".join(f"  {leak}" for leak in found))
    return result
