"""Functions that take the ambient context along into a thread or another process.

A thread gets a copy of all context variables, and the scope itself: it reads the deadline, and is
told when the scope has ended (see `runtime.elsewhere`). Another process gets what can be pickled:
the deadline as an instant, for all processes of a host have one monotonic clock, and identity,
stage and baggage. It is not told of a cancellation: there is nobody who could.

The trap: executors are queues. Work whose scope has ended while it waited there must not begin.
What runs already cannot be stopped, neither in a thread nor in a worker process; it can only ask
(`holdfast.remaining()`), and everything that waits by our carriers does.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any, Final, Generic, NamedTuple, ParamSpec, TypeVar

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import InsufficientBudget, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.runtime.clock import monotonic
from holdfast.runtime.elsewhere import Stub, ended_by, on_its_loop
from holdfast.runtime.hosted import HostedNode, error_for
from holdfast.runtime.scope import AMBIENT, Scope, ambient

__all__ = ["Bound", "CarryingExecutor", "bind", "executor"]

P = ParamSpec("P")
T = TypeVar("T")

_NOWHERE: Final = -1


class _Parcel(NamedTuple):
    """What goes to another process of this host.

    Attributes:
        name: of the function.
        until: monotonic instant; infinite without a deadline.
        given: seconds that were left when it was bound.
        bound_at: monotonic instant of that.
        carried: identity, stage and baggage, picklable.
        origin: path of the scope that it came from.
    """

    name: str
    until: Instant
    given: Duration
    bound_at: Instant
    carried: Carried
    origin: str


class _Work(Scope):
    """The scope of a bound function. Its errors name the scope that it was bound in, too."""

    def cause_of(self, kind: CauseKind, now: Instant, detail: str = "") -> Cause:
        """See `HostedNode`; this scope begins a tree, so its own path says little."""
        cause = super().cause_of(kind, now, detail)
        return replace(cause, scope=f"{self.origin}/{cause.scope}") if self.origin else cause


class Bound(Generic[P, T]):
    """A function with the context in which it was bound; see `bind`."""

    __slots__ = ("_call", "_context", "_here", "_parcel", "_pid")

    def __init__(
        self,
        call: Callable[P, T],
        parcel: _Parcel,
        context: contextvars.Context | None = None,
        here: HostedNode | None = None,
    ) -> None:
        self._call = call
        self._parcel = parcel
        self._context = context
        self._here = here
        self._pid = _NOWHERE if context is None else os.getpid()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it.

        Raises:
            InsufficientBudget: the deadline passed before this began; the function is not called.
            Cancelled: the scope was cancelled, or has ended, before this began.
            DeadlineExceeded: the function ran on beyond the deadline.
            UsageError: this is a coroutine, whose loop the function would block.
        """
        _refuse_in_coroutine(self._parcel.name)
        if self._context is not None and self._pid == os.getpid():
            # A copy for each call: a context can be entered by one thread at a time.
            return self._context.copy().run(self._run, self._here, *args, **kwargs)
        return contextvars.Context().run(self._run, None, *args, **kwargs)

    def _run(self, here: HostedNode | None, *args: P.args, **kwargs: P.kwargs) -> T:
        parcel = self._parcel
        scope = _Work(parcel.name)
        if here is None:
            scope.at, scope.given, scope.origin = parcel.until, parcel.carried, parcel.origin
        refusal = self._refusal(here)
        if refusal is not None:
            raise refusal
        with scope:
            if isinstance(scope.parent, Stub):
                scope.parent.bound = True
            return self._call(*args, **kwargs)

    def _refusal(self, here: HostedNode | None) -> ScopeEnded | None:
        parcel = self._parcel
        if here is None:
            now, until, cause = monotonic(), parcel.until, None
            waited = now - parcel.bound_at
        else:
            now, until, cause = here.driver.now(), here.limit, ended_by(here)
            waited = parcel.given - (until - now)
        if until > now and cause is None:
            return None
        if cause is not None and cause.kind is not CauseKind.DEADLINE:
            return error_for(cause)
        waited = max(0.0, waited)
        detail = f"waited {format_duration(waited)} for its turn, so it was not begun"
        path = f"{parcel.origin}/{parcel.name}" if parcel.origin else parcel.name
        budget = parcel.given
        return InsufficientBudget(
            Cause(CauseKind.DEADLINE, path, "", now, budget, waited, detail)
            if cause is None
            else replace(cause, scope=path, budget=budget, elapsed=waited, detail=detail)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Bound, (self._call, self._parcel)

    def __repr__(self) -> str:
        return f"<bound {self._parcel.name!r} from {self._parcel.origin!r}>"


def _refuse_in_coroutine(name: str) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if asyncio.current_task(loop) is not None:
        raise UsageError(
            f"'{name}' was bound for a thread or another process, and this is a coroutine: call "
            f"'{name}' itself here, or give what was bound to loop.run_in_executor()"
        )


def _refuse_what_runs_later(call: Any) -> None:
    """What only makes a coroutine or a generator would do its work outside of the scope."""
    while isinstance(call, functools.partial):
        call = call.func
    called: Any = type(call).__call__
    for each in (call, called):
        if inspect.iscoroutinefunction(each):
            raise UsageError(
                "bind() takes a plain function; a coroutine function runs on a loop, where tasks "
                "have the context already"
            )
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise UsageError(
                "bind() takes a plain function; a generator function does nothing when it is "
                "called, and what it makes would run outside: bind a function that runs through it"
            )


def bind(call: Callable[P, T], /, *, detached: bool = False) -> Bound[P, T]:
    """`call`, made to run in the context that is ambient now, wherever it is called.

        loop.run_in_executor(None, holdfast.carry.bind(work), argument)
        processes.submit(holdfast.carry.bind(work), argument)

    In a thread it sees all context variables; in another process, where it goes by pickle,
    deadline, identity, stage and baggage. When the scope has ended before it begins, it does not
    begin. It may be called many times and in many threads at once.

    Args:
        call: a plain function.
        detached: work that must be done whoever waits: no deadline, no cancellation; identity and
            stage go along.

    Raises:
        UsageError: `call` is a coroutine function, which no thread can run, or a generator
            function, or an object that is called like one.
    """
    _refuse_what_runs_later(call)
    here = ambient()
    around = AMBIENT.get()
    carried = ANONYMOUS if around is None else around.carried
    name = getattr(call, "__name__", None) or type(call).__name__
    until, given, bound_at = NEVER, NEVER, monotonic()
    if here is not None and not detached and here.limit != NEVER:
        given = here.limit - here.driver.now()
        # The clock of a loop may be its own, and then means nothing elsewhere.
        until = here.limit if here.driver.now is monotonic else bound_at + given
    parcel = _Parcel(
        name,
        until,
        given,
        bound_at,
        carried._replace(baggage=dict(carried.baggage)),
        "" if around is None else around.path,
    )
    lent = None if detached else here
    context = contextvars.copy_context()
    context.run(AMBIENT.set, lent)
    return Bound(call, parcel, context, lent)


class CarryingExecutor(Executor):
    """An executor whose work has the context of whoever submits it; see `executor`."""

    def __init__(self, inner: Executor, detached: bool = False) -> None:
        self._inner = inner
        self._detached = detached
        self._of_scopes: dict[HostedNode, set[Future[Any]]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `concurrent.futures.Executor`; `fn` is bound, and leaves the queue with its scope."""
        future = self._inner.submit(bind(fn, detached=self._detached), *args, **kwargs)
        if not self._detached:
            self._tether(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor`; the one inside is shut down."""
        self._inner.shutdown(wait, cancel_futures=cancel_futures)

    def _tether(self, future: Future[Any]) -> None:
        """What still waits when its scope ends is cancelled."""
        here = ambient()
        if here is None or here.task is None or future.done() or not on_its_loop(here):
            return  # of a thread, which must leave the tree alone: what was bound asks on beginning
        waiting = self._of_scopes.get(here)
        if waiting is None:
            here.settle()  # one that nobody has looked at would be left without its closers
            waiting = self._of_scopes[here] = set()
            here.closers = [*(here.closers or ()), self._closed]
        waiting.add(future)
        future.add_done_callback(waiting.discard)

    def _closed(self, scope: HostedNode) -> None:
        for future in tuple(self._of_scopes.pop(scope, ())):
            future.cancel()


def executor(inner: Executor, /, *, detached: bool = False) -> CarryingExecutor:
    """`inner`, made to carry: a pool of threads or of processes.

        threads = holdfast.carry.executor(ThreadPoolExecutor(8))
        await loop.run_in_executor(threads, work, argument)

    Everything that is submitted is bound (see `bind`), and what still waits in the queue when its
    scope ends is cancelled. A pool of processes takes one item more than it has workers out of its
    queue beforehand, which cannot be cancelled any more; it is bounded by its deadline alone.

    Args:
        inner: is used as it is, and shut down with this one.
        detached: as for `bind`.
    """
    return CarryingExecutor(inner, detached)
