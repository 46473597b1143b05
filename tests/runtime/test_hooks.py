"""At the end of a request: once, however it ends, without a change to how it ends."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

import pytest

import holdfast
from holdfast import CauseKind, UsageError, lifecycle
from holdfast.domain.context import Carried, Identity
from holdfast.domain.tree import Outcome
from holdfast.runtime.ambient import carried, use
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle import ExitCode, Host
from tests.runtime.hosting import TERMS, forever, later, no_breach, now

WHO = Carried(Identity("a" * 32, "b" * 16), "canary")


class Notes:
    def __init__(self) -> None:
        self.ends: list[Any] = []

    def __call__(self, outcome: Outcome, cause: holdfast.Cause | None) -> None:
        self.ends.append((outcome, cause.kind if cause is not None else None))


@pytest.fixture
def notes() -> Notes:
    return Notes()


# -- however it ends -------------------------------------------------------------------------------


async def test_done(notes: Notes) -> None:
    async with holdfast.scope("request"):
        lifecycle.at_end(notes)
        assert notes.ends == []
    assert notes.ends == [(Outcome.DONE, None)]


async def test_failed_and_the_error_is_the_same(notes: Notes) -> None:
    boom = ValueError("x")
    with pytest.raises(ValueError, match="x") as caught:
        async with holdfast.scope("request"):
            lifecycle.at_end(notes)
            raise boom
    assert caught.value is boom
    assert notes.ends == [(Outcome.FAILED, None)]


async def test_expired(notes: Notes) -> None:
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(1, name="request"):
            lifecycle.at_end(notes)
            await forever()
    assert notes.ends == [(Outcome.EXPIRED, CauseKind.DEADLINE)]


@pytest.mark.parametrize("kind", [CauseKind.CALLER, CauseKind.DISCONNECT, CauseKind.OVERLOAD])
async def test_cancelled(notes: Notes, kind: CauseKind) -> None:
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.scope("request") as scope:
            lifecycle.at_end(notes)
            later(1, lambda: scope.cancel(kind=kind))
            await forever()
    assert notes.ends == [(Outcome.CANCELLED, kind)]


async def test_cancelled_by_a_stranger(notes: Notes) -> None:
    async def request() -> None:
        async with holdfast.scope("request"):
            lifecycle.at_end(notes)
            await forever()

    task = asyncio.ensure_future(request())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert notes.ends == [(Outcome.CANCELLED, None)]


async def test_cut_by_the_end_of_the_process_and_what_waits_then_has_its_time() -> None:
    done: list[Any] = []

    async def slow(outcome: Outcome, cause: holdfast.Cause | None) -> None:
        assert cause is not None
        await asyncio.sleep(0.5)
        done.append((outcome, cause.kind, now(), holdfast.current().identity.request_id))

    async def request() -> None:
        async with use(WHO, name="request"):
            lifecycle.at_end(slow)
            await forever()

    host = Host(terms=TERMS)
    host.add("web", start=lambda: None)
    await host.start()
    task = asyncio.ensure_future(request())
    later(5, host.stop)
    later(7, host.cut)
    began = now()
    assert await host.ended() is ExitCode.CLEAN  # nothing that serves was there to wait for it
    assert done == [(Outcome.CANCELLED, CauseKind.SHUTDOWN, began + 5.5, "a" * 32)]
    await asyncio.wait([task])
    assert isinstance(task.exception(), holdfast.Cancelled)
    no_breach()


# -- where it is registered ------------------------------------------------------------------------


async def test_deep_inside_it_is_the_request_that_counts(notes: Notes) -> None:
    async with holdfast.timeout(10, name="request"):
        async with holdfast.timeout(1), holdfast.scope("inner"):
            lifecycle.at_end(notes)
        async with holdfast.tasks() as group:

            async def child() -> None:
                async with holdfast.timeout(1):
                    lifecycle.at_end(notes)

            group.start(child())
        assert notes.ends == []
    assert notes.ends == [(Outcome.DONE, None)] * 2


async def test_the_last_registered_comes_first() -> None:
    order: list[int] = []
    async with holdfast.scope("request"):
        for n in range(3):
            lifecycle.at_end(lambda *_, n=n: order.append(n))
    assert order == [2, 1, 0]


async def test_in_a_thread_of_the_request(notes: Notes) -> None:
    async with holdfast.timeout(10, name="request"):
        await asyncio.to_thread(lifecycle.at_end, notes)
        assert notes.ends == []
    assert notes.ends == [(Outcome.DONE, None)]


async def test_from_a_thread_that_outlives_the_request(notes: Notes) -> None:
    async with holdfast.timeout(10, name="request"):
        here = contextvars.copy_context()
    # The scope is closed, so there is no request any more.
    with pytest.raises(UsageError, match="outside of a request"):
        await asyncio.to_thread(here.run, lifecycle.at_end, notes)
    assert notes.ends == []


async def test_of_a_worker_each_message_is_a_request(notes: Notes) -> None:
    refused: list[str] = []

    async def consume() -> None:
        try:
            lifecycle.at_end(notes)
        except UsageError as error:
            refused.append(str(error))
        for _ in range(2):
            async with holdfast.timeout(1, name="message"), holdfast.scope("inner"):
                lifecycle.at_end(notes)
        await forever()

    host = Host(terms=TERMS)
    host.add("worker", run=consume)
    await host.start()
    await asyncio.sleep(1)
    assert notes.ends == [(Outcome.DONE, None)] * 2
    assert len(refused) == 1
    host.stop()
    await host.ended()


async def test_outside_of_a_request_it_is_refused(notes: Notes) -> None:
    with pytest.raises(UsageError, match="at_exit"):
        lifecycle.at_end(notes)


async def test_of_detached_work_it_is_its_own_end(notes: Notes) -> None:
    async def audit() -> None:
        async with holdfast.timeout(2, name="write"):
            lifecycle.at_end(notes)
        assert notes.ends == []

    async with holdfast.scope("request"):
        task = holdfast.detach(audit(), name="audit")
    await task
    await asyncio.sleep(0)
    assert notes.ends == [(Outcome.DONE, None)]


# -- what it may do --------------------------------------------------------------------------------


async def test_an_error_in_it_is_told_and_changes_nothing(
    notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(outcome: Outcome, cause: Any) -> None:
        raise KeyError("later")

    def raises(outcome: Outcome, cause: Any) -> None:
        raise ValueError("now")

    async def told_to_go(outcome: Outcome, cause: Any) -> None:
        raise asyncio.CancelledError

    with caplog.at_level(logging.ERROR):
        async with holdfast.scope("request"):
            lifecycle.at_end(notes)
            lifecycle.at_end(raises)
            lifecycle.at_end(late)
            lifecycle.at_end(told_to_go)
        await asyncio.sleep(1)
    assert notes.ends == [(Outcome.DONE, None)]
    assert len(caplog.records) == 3
    assert {str(r.exc_info[1]) for r in caplog.records if r.exc_info} >= {"now", "'later'"}


async def test_what_waits_goes_on_by_itself_with_the_identity_of_the_request() -> None:
    seen: list[Any] = []

    async def audit(outcome: Outcome, cause: Any) -> None:
        here = holdfast.current()
        seen.append((here.identity.request_id, here.stage, holdfast.remaining()))
        await asyncio.sleep(2)
        seen.append(now())

    began = now()
    async with use(WHO, name="request"):
        lifecycle.at_end(audit, timeout=3)
    assert now() == began
    assert seen == []
    await asyncio.sleep(5)
    assert seen == [("a" * 32, "canary", 3.0), began + 2]
    assert not driver_of(asyncio.get_running_loop()).closing


async def test_a_plain_function_still_reads_the_identity() -> None:
    seen: list[str] = []
    async with use(WHO, name="request"):
        lifecycle.at_end(lambda *_: seen.append(carried().identity.request_id))
    assert seen == ["a" * 32]


async def test_what_waits_too_long_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with holdfast.scope("request"):
            lifecycle.at_end(lambda *_: forever(), timeout=1)
        await asyncio.sleep(5)
    assert len(caplog.records) == 1


async def test_the_stop_waits_for_what_requests_left_to_be_done() -> None:
    done: list[float] = []

    async def audit(outcome: Outcome, cause: Any) -> None:
        await asyncio.sleep(3)
        done.append(now())

    async def request() -> None:
        async with holdfast.scope("request"):
            lifecycle.at_end(audit)

    host = Host(terms=TERMS)
    host.add("web", start=lambda: None)
    await host.start()
    await request()
    began = now()
    host.stop()
    assert await host.ended() is ExitCode.CLEAN
    assert done == [began + 3]
    no_breach()


async def test_a_scope_without_any_is_left_as_quietly_as_before() -> None:
    driver = driver_of(asyncio.get_running_loop())
    async with holdfast.scope("request") as scope:
        assert scope.closers is None
        assert not scope.settled
    assert "closers" not in vars(scope)
    assert driver.young == []
