"""Where everything is: the await chain of every task, and the stack of every thread.

Callable from any thread and from a signal handler: it takes no lock, so it cannot wait for one that
the code it interrupted holds, and it only reads, so it does not touch the timers of a loop that
another thread runs. What is read while another thread runs may be of slightly different moments.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Final

from holdfast.domain.instant import NEVER, Duration, format_duration
from holdfast.domain.tree import Node
from holdfast.runtime.delivery import stack_of
from holdfast.runtime.driver import drivers
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.scope import AMBIENT, Scope

__all__ = ["Stacks", "TaskStack", "ThreadStack", "dump", "stacks"]

_MOST_TASKS: Final = 10_000
_MOST_FRAMES: Final = 64
_MOST_CHARACTERS: Final = 1_000_000
_STATES: Final = ("running", "ready", "waits")
_NAMED: Final = 20
"""Tasks of one place that are listed by name; there may be thousands that wait for the same."""


@dataclass(frozen=True, slots=True)
class TaskStack:
    """One task that is not done.

    Attributes:
        name: of the task.
        state: `running`, `ready` (its turn will come) or `waits`.
        waits: its await chain, outermost frame first, as `file:line function`. Of one that runs
            only the outermost is known; the rest is in the stack of its thread.
        on: name of the task that it waits for, if it is one.
        scope: path of its innermost open scope; empty when it has none or that cannot be told.
        remaining: seconds until the deadline of that scope; infinite without one.
        cancelled: the cause of a cancellation that has reached that scope, in one line; a count
            where somebody else cancelled the task; otherwise empty.
    """

    name: str
    state: str
    waits: tuple[str, ...]
    on: str
    scope: str
    remaining: Duration
    cancelled: str

    def line(self) -> str:
        """All but the place, in one line."""
        parts = [self.name, self.state if not self.on else f"waits for task {self.on}"]
        if self.scope:
            parts.append(f"scope {self.scope}")
        if self.remaining != NEVER:
            parts.append(f"{format_duration(self.remaining)} left")
        if self.cancelled:
            parts.append(f"cancelled: {self.cancelled}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """One thread that runs Python.

    Attributes:
        name: of the thread; empty for one that Python did not start.
        ident: its number in Python.
        here: whether it is the one that asks.
        frames: its stack, outermost frame first, as `file:line function`.
    """

    name: str
    ident: int
    here: bool
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stacks:
    """The stacks of a process at one moment.

    Attributes:
        tasks: every task that is not done, of every loop.
        threads: every thread.
        omitted: tasks that were left out because there were too many.
    """

    tasks: tuple[TaskStack, ...]
    threads: tuple[ThreadStack, ...]
    omitted: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a deadline that does not exist is null."""
        found = asdict(self)
        for task in found["tasks"]:
            task["remaining"] = None if task["remaining"] == NEVER else task["remaining"]
        return found

    def text(self, most: int = _MOST_CHARACTERS) -> str:
        """For people; tasks that wait in the same place are written together.

        Args:
            most: characters, about; what does not fit is cut off at the end of a line, with a note.
        """
        kept: list[str] = []
        left = most
        for line in self._lines():
            left -= len(line) + 1
            if left < 0:
                kept.append("... cut off here: the dump has reached its bound")
                break
            kept.append(line)
        return "\n".join(kept)

    def _lines(self) -> Iterator[str]:
        yield f"{len(self.threads)} threads"
        for thread in self.threads:
            here = ", asks for this" if thread.here else ""
            yield f"  thread {thread.ident} {thread.name or '(not started by Python)'}{here}"
            yield from (f"      {frame}" for frame in thread.frames)
        more = f", {self.omitted} more left out" if self.omitted else ""
        yield f"{len(self.tasks)} tasks{more}"
        places: dict[tuple[str, ...], list[TaskStack]] = {}
        for task in self.tasks:
            places.setdefault(task.waits, []).append(task)
        for waits, tasks in places.items():
            yield from (f"  task {task.line()}" for task in tasks[:_NAMED])
            if len(tasks) > _NAMED:
                yield f"  and {len(tasks) - _NAMED} more in the same place"
            yield from (f"      {frame}" for frame in waits)


def dump(most: int = _MOST_CHARACTERS) -> str:
    """Every task with its await chain and every thread with its stack, as text.

    Args:
        most: characters, about.
    """
    return stacks().text(most)


def stacks(most_tasks: int = _MOST_TASKS) -> Stacks:
    """Every task with its await chain and every thread with its stack.

    Args:
        most_tasks: tasks that are looked at.
    """
    tasks = _tasks()
    hosts = _hosts()
    seen = [_task_stack(task, hosts) for task in tasks[:most_tasks]]
    # Those that run come first, then the ready ones; asyncio keeps them in no order at all.
    seen.sort(key=lambda task: (_STATES.index(task.state), task.name))
    return Stacks(tuple(seen), _threads(), max(0, len(tasks) - most_tasks))


# -- threads -------------------------------------------------------------------------------------


def _threads() -> tuple[ThreadStack, ...]:
    # Not `threading.enumerate`, which takes a lock.
    named: dict[int, threading.Thread] = dict(getattr(threading, "_active", {}))
    here = threading.get_ident()
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    return tuple(
        ThreadStack(
            named[ident].name if ident in named else "", ident, ident == here, _frames(frame)
        )
        for ident, frame in frames.items()
    )


def _frames(frame: FrameType | None) -> tuple[str, ...]:
    found: list[str] = []
    while frame is not None and len(found) < _MOST_FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    if frame is not None:
        found.append("... more frames outside")
    return tuple(reversed(found))


# -- tasks ---------------------------------------------------------------------------------------


def _tasks() -> list[asyncio.Task[Any]]:
    """Tasks that are not done, of every loop."""
    found: dict[asyncio.Task[Any], None] = {}
    for task in (*_noted_tasks(), *_tasks_of_loops()):
        if not task.done():
            found[task] = None
    return list(found)


def _noted_tasks() -> Iterable[asyncio.Task[Any]]:
    """What asyncio keeps of all loops, those included that had no scope. Not promised to stay."""
    for name in ("_scheduled_tasks", "_all_tasks", "_eager_tasks"):
        yield from _copied(getattr(asyncio.tasks, name, ()))


def _tasks_of_loops() -> Iterable[asyncio.Task[Any]]:
    loops = [driver.loop for driver in drivers()]
    with suppress(RuntimeError):  # asked from outside of any loop
        loops.append(asyncio.get_running_loop())
    for loop in loops:
        try:
            yield from asyncio.all_tasks(loop)
        except RuntimeError:
            continue  # it changed under our hands a thousand times


def _copied(tasks: Iterable[Any]) -> tuple[Any, ...]:
    for _ in range(100):
        try:
            return tuple(tasks)
        except RuntimeError:
            continue  # another thread made a task meanwhile
    return ()


def _task_stack(task: asyncio.Task[Any], hosts: dict[asyncio.Task[Any], Scope]) -> TaskStack:
    scope = _scope_of(task, hosts)
    cause = scope.reached() if scope is not None else None
    cancelling = task.cancelling()
    if cause is not None:
        cancelled = cause.line()
    else:
        cancelled = f"{cancelling} times by somebody else" if cancelling else ""
    waiter: Any = getattr(task, "_fut_waiter", None)
    waits = stack_of(task)
    if len(waits) > _MOST_FRAMES:
        half = _MOST_FRAMES // 2
        waits = (*waits[:half], f"... {len(waits) - 2 * half} frames", *waits[-half:])
    return TaskStack(
        name=task.get_name(),
        state=_state(task, waiter),
        waits=waits,
        on=waiter.get_name() if isinstance(waiter, asyncio.Task) else "",
        scope=scope.path if scope is not None else "",
        remaining=scope.limit - scope.driver.now() if scope is not None else NEVER,
        cancelled=cancelled,
    )


def _state(task: asyncio.Task[Any], waiter: Any) -> str:
    coro: Any = task.get_coro()
    if getattr(coro, "cr_running", False):
        return "running"
    return "ready" if waiter is None or waiter.done() else "waits"


def _scope_of(task: asyncio.Task[Any], hosts: dict[asyncio.Task[Any], Scope]) -> HostedNode | None:
    """Its innermost open scope: that of its context, and before 3.12 the one that it hosts."""
    context = getattr(task, "get_context", None)
    node = context().get(AMBIENT) if context is not None else None
    while node is not None and node.outcome is not None:
        node = node.outer
    return hosts.get(task) if node is None else node


def _hosts() -> dict[asyncio.Task[Any], Scope]:
    """The innermost open scope of each task that hosts one."""
    found: dict[asyncio.Task[Any], Scope] = {}
    for driver in drivers():
        nodes: list[Node] = [driver.root]
        while nodes:
            node = nodes.pop()
            # One call makes the copy, so no other thread comes in between.
            nodes.extend(tuple(node.children or ()))
            _note(found, node)
        for young in driver.young[:]:
            _note(found, young)
    return found


def _note(found: dict[asyncio.Task[Any], Scope], node: Node) -> None:
    if not isinstance(node, Scope) or node.task is None or node.outcome is not None:
        return
    before = found.get(node.task)
    if before is None or before.depth <= node.depth:
        found[node.task] = node
