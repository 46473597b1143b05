"""Figure 1: to enter and leave one scope that does not fire.

The limit is what any timer of its own must cost: one `loop.call_at()` and its `cancel()`. The work
around the scopes (two `for` loops, one turn of the loop in 256, a call of a coroutine for every ten
levels) is measured by itself and taken off all contestants alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Final

from bench._harness import (
    LOOPS,
    Case,
    Cell,
    Check,
    Table,
    Tell,
    absent,
    compare,
    duel,
    new_loop,
    rounds,
)

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Enter and leave one scope"
VARIANTS: Final = [{"loop": loop, "anyio": anyio} for loop in LOOPS for anyio in (False, True)]

SECONDS: Final = 30
BATCH: Final = 256
DEPTHS: Final = (1, 5, 20)
LIMIT: Final = "loop.call_at + cancel (limit)"
OURS: Final = "holdfast.timeout"
TIGHTER: Final = "holdfast.timeout, each tighter than the last"
PEER: Final = "asyncio.timeout"
SETTLED: Final = "holdfast.timeout that lives on: in the tree and the timers"
EMPTY: Final = "empty"

_LEVELS: Final = 10
_FLOOR: Final = ContextVar[object]("floor", default=None)

Run = Callable[[int], Awaitable[object]]


def nested(names: dict[str, Any], opening: str, depth: int, body: str = "pass") -> Run:
    """A function that runs n batches of `depth` blocks, one within the other.

    `opening` is the head of a block; `{level}` in it counts from 0. `body` is in the innermost.
    """
    lines: list[str] = []
    for low in reversed(range(0, depth, _LEVELS)):
        heads = [opening.format(level=level) for level in range(low, min(low + _LEVELS, depth))]
        if low == 0:
            lines += [
                "async def run(batches):",
                " for _ in range(batches):",
                f"  for _ in range({BATCH}):",
            ]
            lines += [*_indented(heads, body, 3), "  await turn()"]
        else:
            lines += [f"async def below_{low}():", *_indented(heads, body, 1)]
            body = f"await below_{low}()"
    scope: dict[str, Any] = {**names, "turn": _turn}
    exec("\n".join(lines), scope)
    return scope["run"]  # type: ignore[no-any-return]


def _indented(heads: list[str], body: str, level: int) -> list[str]:
    return [
        *(" " * (level + index) + head for index, head in enumerate(heads)),
        " " * (level + len(heads)) + body,
    ]


async def _turn() -> None:
    await asyncio.sleep(0)


def flat(names: dict[str, Any], first: str, last: str, depth: int) -> Run:
    """The same for what needs no block: all of `first`, then all of `last` in reverse."""
    heads = [first.format(level=level) for level in range(depth)]
    tails = [last.format(level=level) for level in reversed(range(depth))]
    lines = ["async def run(batches):", " for _ in range(batches):", f"  for _ in range({BATCH}):"]
    lines += ["   " + line for line in heads + tails]
    scope: dict[str, Any] = {**names, "turn": _turn}
    exec("\n".join([*lines, "  await turn()"]), scope)
    return scope["run"]  # type: ignore[no-any-return]


def waiting(depth: int) -> Run:
    """`asyncio.wait_for` around coroutines, `depth` of them."""

    async def level(left: int) -> None:
        if left:
            await asyncio.wait_for(level(left - 1), SECONDS)

    async def run(batches: int) -> None:
        for _ in range(batches):
            for _ in range(BATCH):
                await level(depth)
            await _turn()

    return run


def contestants(depth: int, with_anyio: bool) -> list[Case]:
    import holdfast
    from holdfast.runtime.driver import driver_of

    loop = asyncio.get_running_loop()
    handles = {"call_at": loop.call_at, "time": loop.time, "nothing": _nothing}
    tokens = {"enter": _FLOOR.set, "leave": _FLOOR.reset}
    cases = [
        Case(
            LIMIT,
            flat(
                handles,
                f"h{{level}} = call_at(time() + {SECONDS}, nothing)",
                "h{level}.cancel()",
                depth,
            ),
        ),
        Case(
            "ContextVar set + reset (floor)",
            flat(tokens, "t{level} = enter(run)", "leave(t{level})", depth),
        ),
        Case(EMPTY, nested({}, "if True:", depth)),
        Case(OURS, nested({"open": holdfast.timeout}, f"async with open({SECONDS}):", depth)),
        Case(PEER, nested({"open": asyncio.timeout}, f"async with open({SECONDS}):", depth)),
        Case("asyncio.wait_for", waiting(depth)),
    ]
    settled = {"open": holdfast.timeout, "settle": driver_of(loop).settle}
    opening = f"async with open({SECONDS}):"
    cases.append(Case(SETTLED, nested(settled, opening, depth, "settle()")))
    if depth > 1:
        tighter = f"async with open({SECONDS} - {{level}}):"
        cases.append(Case(TIGHTER, nested({"open": holdfast.timeout}, tighter, depth)))
    return cases + _optional(depth, with_anyio)


def _optional(depth: int, with_anyio: bool) -> list[Case]:
    cases: list[Case] = []
    if not absent("async_timeout"):
        open_ = {"open": import_module("async_timeout").timeout}
        cases.append(
            Case("async_timeout.timeout", nested(open_, f"async with open({SECONDS}):", depth))
        )
    if not absent("quattro"):
        open_ = {"open": import_module("quattro").fail_after}
        cases.append(Case("quattro.fail_after", nested(open_, f"with open({SECONDS}):", depth)))
    if with_anyio:
        import anyio

        open_ = {"open": anyio.fail_after}
        cases.append(Case("anyio.fail_after", nested(open_, f"with open({SECONDS}):", depth)))
    return cases


def _nothing() -> None: ...


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    loaded = bool(variant["anyio"])
    if loaded:
        import anyio._backends._asyncio  # noqa: F401 - its presence is what is measured
    title = f"{TITLE}: {variant['loop']}, anyio {'loaded' if loaded else 'not loaded'}"
    table = Table(title, "us", [f"depth {depth}" for depth in DEPTHS])
    table.notes = [f"absent: {name}" for name in absent("async_timeout", "quattro")]
    with asyncio.Runner(loop_factory=lambda: new_loop(variant["loop"])) as runner:
        for index, depth in enumerate(DEPTHS):

            def part(done: float, what: str, index: int = index) -> None:
                tell((index + done) / len(DEPTHS), what)

            cells = runner.run(_column(depth, loaded, rounds(quick, 40), part))
            compare(table, f"depth {depth}", cells)
    for depth in DEPTHS:
        point = f"depth {depth}"
        table.goal(OURS, point, 1.5 if depth == 1 else 1.0)
        peer = table.cell(OURS, point).over(table.cell(PEER, point))
        table.checks.append(Check(f"{OURS}, {point}, against {PEER}", peer, 1.0))
    return [table]


async def _column(depth: int, with_anyio: bool, count: int, tell: Tell) -> dict[str, Cell]:
    cells = await duel(contestants(depth, with_anyio), count, tell, f"depth {depth}")
    empty = cells.pop(EMPTY)
    return {name: cell.less(empty).per(BATCH * depth) for name, cell in cells.items()}
