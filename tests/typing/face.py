"""What the type checkers see of the face. Nobody runs this: mypy and pyright read it, both strict.

A name that is missing from the face, or has another type, is an error here. So is a suppression
that suppresses nothing: with it a misspelt name is proven to be one.
"""

# mypy warns of unused suppressions for the whole project, pyright for this file:
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, assert_type

import holdfast
from holdfast import (
    Cancelled,
    Cause,
    CauseKind,
    ConfigError,
    Context,
    DeadlineExceeded,
    Fault,
    HoldfastError,
    Identity,
    InsufficientBudget,
    Scope,
    ScopeEnded,
    TaskGroup,
    UsageError,
    lifecycle,
)
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.policy import Policy, policy_from_mapping
from holdfast.lifecycle import ExitCode, Host
from holdfast.runtime.ambient import Split
from holdfast.runtime.live import LiveScope, LiveTree
from holdfast.runtime.shield import Shield
from holdfast.testing import run_virtual


async def number() -> int:
    return 1


async def bounded_work() -> None:
    async with holdfast.timeout(3.0, name="charge", grace=0.5) as scope:
        assert_type(scope, Scope)
        assert_type(scope.remaining(), float)
        assert_type(scope.age(), float)
        assert_type(scope.deadline, float)
        assert_type(scope.path, str)
        assert_type(scope.name, str)
        assert_type(scope.cancel("enough"), bool)
        assert_type(scope.cancel(kind=CauseKind.OVERLOAD), bool)
        assert_type(scope.move_deadline(scope.deadline - 1), float)
    async with holdfast.deadline_at(1.0, name="until", grace=0.1) as scope:
        assert_type(scope, Scope)
    async with holdfast.scope("part") as scope:
        assert_type(scope, Scope)
    async with holdfast.reserve(0.5, name="rest") as scope:
        assert_type(scope, Scope)
    split = holdfast.split(1, 2.5)
    assert_type(split, Split)
    assert_type(split.step("first"), Scope)
    for step in split:
        assert_type(step, Scope)
    shield = holdfast.shield(grace=0.5, name="clean up")
    assert_type(shield, Shield)
    async with shield as scope:
        assert_type(scope, Scope)


def bounded_plainly() -> None:
    with holdfast.timeout(3.0) as scope:
        assert_type(scope, Scope)


async def side_by_side() -> None:
    async with holdfast.tasks("parts", seconds=2.0) as group:
        assert_type(group, TaskGroup)
        assert_type(group.start(number(), name="one"), asyncio.Task[int])
        assert_type(group.cancel("enough"), bool)
    assert_type(holdfast.detach(number(), name="audit", timeout=30), asyncio.Task[int])


def looking() -> None:
    assert_type(holdfast.__version__, str)
    assert_type(holdfast.remaining(), float)
    context = holdfast.current()
    assert_type(context, Context)
    assert_type(context.deadline, float)
    assert_type(context.stage, str)
    assert_type(context.scope, str)
    assert_type(context.baggage, Mapping[str, str])
    identity = context.identity
    assert_type(identity, Identity)
    assert_type(identity.trace_id, str)
    assert_type(identity.request_id, str)
    assert_type(identity.echo_id, str)
    assert_type(identity.sampled, bool)
    tree = holdfast.tree()
    assert_type(tree, LiveTree)
    assert_type(len(tree), int)
    assert_type(tree.roots, tuple[LiveScope, ...])
    assert_type(tree.counts, dict[str, int])
    assert_type(tree.as_dict(), dict[str, Any])


def refusing() -> None:
    holdfast.refuse_below(0.2)


def ends(error: ScopeEnded) -> None:
    cause = error.cause
    assert_type(cause, Cause)
    assert_type(cause.kind, CauseKind)
    assert_type(cause.scope, str)
    assert_type(cause.hop, str)
    assert_type(cause.budget, float)
    assert_type(cause.elapsed, float)
    assert_type(cause.below, tuple[Cause, ...])
    assert_type(cause.origin, Cause)
    assert_type(cause.line(), str)


def the_tree_of_errors(cause: Cause) -> None:
    late: TimeoutError = DeadlineExceeded(cause)
    refused: DeadlineExceeded = InsufficientBudget(cause)
    gone: ScopeEnded = Cancelled(cause)
    wrong_call: RuntimeError = UsageError("entered twice")
    wrong_setting: ValueError = ConfigError("timeouts.request", "must be a duration")
    every: list[HoldfastError] = [InsufficientBudget(cause), Cancelled(cause), UsageError("x")]
    print(late, refused, gone, wrong_call, wrong_setting, every)


def failures(error: BaseException) -> None:
    assert_type(holdfast.classify(error), Fault)
    assert_type(holdfast.is_retryable(error, idempotent=False), bool)


def around_an_application(app: Any) -> None:
    policy = policy_from_mapping({"timeouts": {"request": "3s"}}, service="shop")
    assert_type(policy, Policy)
    guarded = HoldfastMiddleware(app, policy, service="shop", debug=True)
    guarded.policy = policy
    assert_type(guarded.counts["ended.deadline"], int)


def in_a_test() -> None:
    assert_type(run_virtual(number()), int)


class Db:
    """A component, by its shape."""

    async def start(self) -> None: ...
    async def prepare(self, request: lifecycle.ShutdownRequest) -> None:
        assert_type(request.deadline, float)
        assert_type(request.answer_by, float)
        assert_type(request.cause, Cause)

    async def stop(self, deadline: float) -> None: ...
    async def wait(self) -> None: ...
    async def preclean(self, idle: float) -> int:
        return 0


async def a_process() -> None:
    terms = lifecycle.HostTerms(drain=10.0)
    host = lifecycle.Host("shop", terms=terms, journal=lifecycle.Journal(lifecycle.LogReader()))
    host.add("db", Db())
    host.add("cache", start=looking, stop=bounded_work, needs=["db"])
    host.add("consumer", run=number)
    host.pool("db", Db())
    host.on_stop(looking)
    host.at_exit(bounded_work, name="flush")
    host.on_reload(looking)
    host.health.check("db", number, timeout=1.0, critical=False)
    report = await host.health.ready()
    assert_type(report, lifecycle.HealthReport)
    assert_type(report.as_dict(), dict[str, Any])
    assert_type(host.phase, lifecycle.Phase)
    assert_type(host.stop("enough"), bool)
    assert_type(host.brief, str)
    assert_type(await host.run(), lifecycle.ExitCode)
    assert_type(await host.ended(), lifecycle.ExitCode)
    assert_type(host.journal.records, tuple[lifecycle.Record, ...])
    assert_type(lifecycle.current(), lifecycle.Host)
    assert_type(holdfast.lifecycle.current(), Host)
    assert_type(host.code, ExitCode)
    lifecycle.at_end(lambda outcome, cause: print(outcome, cause))


class Wrapped:
    """A scope opens and closes by hand, in a class of one's own."""

    def __init__(self) -> None:
        self.scope = holdfast.timeout(1.0)

    async def __aenter__(self) -> Scope:
        return await self.scope.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.scope.__aexit__(exc_type, exc, traceback)


def what_must_be_an_error(scope: Scope) -> None:
    holdfast.timeot(1.0)  # type: ignore[attr-defined]
    holdfast.timeout("3s")  # type: ignore[arg-type]
    holdfast.timeout(3.0, "charge")  # type: ignore[call-arg]
    holdfast.shield()  # type: ignore[call-arg]
    holdfast.detach(number)  # type: ignore[arg-type]
    lifecycle.Host(1)  # type: ignore[arg-type]
    print(holdfast.CauseKind.TIMEOUT)  # type: ignore[attr-defined]
    scope.remaining = 3.0  # type: ignore[assignment, method-assign]
