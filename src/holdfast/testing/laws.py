"""The carrier laws: one suite that every carrier has to pass.

A *carrier* moves a context over one boundary. To put one under the laws, say how a call crosses it
and, where it differs from the rest, in what:

    class QueueCarrier:
        @asynccontextmanager
        async def open(self, handler: Handler) -> AsyncIterator[Call]:
            ...                     # start the far side, which awaits handler(key, takes)
            yield call              # await call(key, takes) crosses and brings the key back

    class TestQueue(CarrierLaws):
        carrier = QueueCarrier

Run with the plugin of this package, which also looks at what each test left behind. Both sides live
in this process, so that their instants are on one clock. A carrier over real sockets is marked with
`@pytest.mark.real_time` and has a shorter `unit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import pytest

from holdfast.domain.context import Carried, Identity
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.laws import Breach, Law, breaches_of_identity, breaches_on_the_wire
from holdfast.runtime.ambient import carried, remaining, scope, timeout, use
from holdfast.runtime.clock import clock_of
from holdfast.runtime.tasks import tasks

__all__ = ["Call", "Carrier", "CarrierLaws", "Handler", "Peer", "Visit"]

Handler: TypeAlias = Callable[[str, Duration], Awaitable[str]]
"""What the far side awaits for each call: a key, and the seconds to take. Answers with the key."""

Call: TypeAlias = Callable[[str, Duration], Coroutine[Any, Any, str]]
"""One call over the carrier, in the ambient context. Raises what its user would see."""


class Carrier(Protocol):
    """A carrier under test."""

    def open(self, handler: Handler) -> AbstractAsyncContextManager[Call]:
        """Both sides, for as long as the block is open."""
        ...


def _now() -> Instant:
    return clock_of(asyncio.get_running_loop())()


@dataclass
class Visit:
    """What the far side saw of one call.

    Attributes:
        began: instant at which its handler began.
        left: seconds of budget that it read then; infinite without a deadline.
        carried: identity, stage and baggage that it read.
        ends: how its handler ended, with the instant; exactly one entry, once it is over.
    """

    began: Instant
    left: Duration
    carried: Carried
    ends: list[tuple[str, Instant]] = field(default_factory=list[tuple[str, Instant]])


class Peer:
    """The far side: does as it is told and notes what it saw.

    Attributes:
        visits: by key, in the order in which they began; a call that came twice has two.
        relay: set to a call to pass on keys that contain a `>`: `a>b` visits as `a`, then as `b`.
    """

    def __init__(self) -> None:
        self.visits: dict[str, list[Visit]] = {}
        self.relay: Call | None = None

    async def handle(self, key: str, takes: Duration) -> str:
        """The handler."""
        here, _, rest = key.partition(">")
        visit = Visit(_now(), remaining(), carried())
        self.visits.setdefault(here, []).append(visit)
        end = "failed"
        try:
            if rest and self.relay is not None:
                await self.relay(rest, takes)
            else:
                await asyncio.sleep(takes)
            end = "done"
        except (asyncio.CancelledError, ScopeEnded):
            end = "cancelled"
            raise
        finally:
            visit.ends.append((end, _now()))
        return key

    async def arrival(self, key: str, patience: Duration) -> Visit:
        """The visit of that key, as soon as it has begun.

        Raises:
            AssertionError: it did not within `patience` seconds.
        """
        until = _now() + patience
        while key not in self.visits:
            assert _now() < until, f"call '{key}' did not arrive within {patience} s"
            await asyncio.sleep(patience / 200)
        return self.visits[key][0]

    def open_visits(self) -> list[str]:
        """Keys of calls whose handler still runs."""
        return [key for key, all_ in self.visits.items() if any(not v.ends for v in all_)]


def _who(n: int) -> Carried:
    digits = f"{0x5EED + n:x}"
    stage = ("", "canary", "blue")[n % 3]
    return Carried(
        Identity(digits.rjust(32, "a"), digits.rjust(16, "b"), sampled=n % 2 == 0), stage
    )


def _spread(n: int) -> float:
    # Multiples of the golden ratio: evenly spread over 0 to 1, and the same in every run.
    return n * 0.618033988749895 % 1.0


def _none(breaches: Iterable[Breach]) -> None:
    found = [str(breach) for breach in breaches]
    assert not found, "\n".join(found)


class CarrierLaws:
    """Subclass it, set `carrier`, and say in what your carrier differs.

    Attributes:
        carrier: makes the carrier.
        unit: seconds of budget that a call gets. In virtual time a second costs nothing.
        slack: seconds after which the far side must know that the near side has gone, and that a
            crossing may take.
        least: seconds of budget below which the carrier refuses to cross; 0.0 if it always tries.
        cap: seconds that the far side grants at most; infinite when it believes every caller. A
            call without a deadline may get that one there.
        carries_stage: whether the far side trusts the near one with the stage.
    """

    carrier: ClassVar[type[Carrier]]
    unit: ClassVar[Duration] = 1.0
    slack: ClassVar[Duration] = 0.1
    least: ClassVar[Duration] = 0.0
    cap: ClassVar[Duration] = NEVER
    carries_stage: ClassVar[bool] = True

    @asynccontextmanager
    async def crossing(self) -> AsyncGenerator[tuple[Peer, Call]]:
        """A far side, and the way to it."""
        peer = Peer()
        async with self.carrier().open(peer.handle) as call:
            peer.relay = call
            yield peer, call

    # -- containment -----------------------------------------------------------------------------

    async def test_the_deadline_only_shrinks(self) -> None:
        """It arrives, not later than it was and not much earlier."""
        async with self.crossing() as (peer, call):
            for n, budget in enumerate((self.unit, 7.123456 * self.unit, 3600.0)):
                async with timeout(budget):
                    sent, left = _now(), remaining()
                    await call(f"k{n}", 0.0)
                (visit,) = peer.visits[f"k{n}"]
                _none(breaches_on_the_wire(sent, left, visit.began, visit.left))
                assert visit.left >= min(left, self.cap) - self.slack, (
                    f"of {left:.6f} s only {visit.left:.6f} s arrived"
                )

    async def test_the_deadline_only_shrinks_over_many_hops(self) -> None:
        """Nothing is rounded up on the way, however often the call is passed on."""
        async with self.crossing() as (peer, call):
            hops = [f"h{n}" for n in range(6)]
            async with timeout(3.0333333 * self.unit):
                at, left = _now(), remaining()
                await call(">".join(hops), 0.0)
            for hop in hops:
                (visit,) = peer.visits[hop]
                _none(breaches_on_the_wire(at, left, visit.began, visit.left, hop))
                at, left = visit.began, visit.left

    async def test_no_deadline_is_not_turned_into_one(self) -> None:
        """Absence is neither zero nor garbage."""
        async with self.crossing() as (peer, call):
            assert await call("free", 0.0) == "free"
            (visit,) = peer.visits["free"]
            assert visit.left >= self.cap - self.slack

    async def test_a_spent_budget_is_refused_before_crossing(self) -> None:
        """Nobody on the far side hears of it."""
        async with self.crossing() as (peer, call):
            with pytest.raises(DeadlineExceeded):  # noqa: PT012
                async with timeout(self.unit / 10):
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(self.unit)
                    await call("late", 0.0)
            await asyncio.sleep(self.slack)
            assert not peer.visits, "a call crossed after its deadline"

    async def test_too_small_a_budget_is_refused_before_crossing(self) -> None:
        """Where the carrier knows what a crossing needs."""
        async with self.crossing() as (peer, call):
            if self.least:
                with pytest.raises(InsufficientBudget):
                    async with timeout(self.least / 2):
                        await call("tiny", 0.0)
                await asyncio.sleep(self.slack)
                assert not peer.visits, "a call crossed that could not be done in time"
            async with timeout(self.least + self.unit):
                assert await call("enough", 0.0) == "enough"

    # -- reach -----------------------------------------------------------------------------------

    async def test_the_deadline_reaches_the_far_side(self) -> None:
        """The caller is free in time, and the far side stops as well."""
        async with self.crossing() as (peer, call):
            began = _now()
            with pytest.raises(TimeoutError):
                async with timeout(self.unit):
                    await call("slow", 100 * self.unit)
            assert _now() <= began + self.unit + self.slack, "the caller was kept waiting"
            await self._ended(peer, "slow", began + self.unit)

    async def test_an_explicit_cancellation_reaches_the_far_side(self) -> None:
        """`scope.cancel()` around the call."""
        async with self.crossing() as (peer, call), tasks() as group:

            async def caller() -> None:
                with suppress(ScopeEnded):
                    async with scope("call") as inner:
                        scopes.append(inner)
                        await call("slow", 100 * self.unit)

            scopes = [scope("never entered")]
            task = group.start(caller())
            await peer.arrival("slow", self.unit)
            scopes[-1].cancel("no longer needed")
            at = _now()
            await asyncio.wait([task])
            assert _now() <= at + self.slack, "the caller was kept waiting"
            await self._ended(peer, "slow", at)

    async def test_a_cancellation_from_above_reaches_the_far_side(self) -> None:
        """The scope that is cancelled is an ancestor, in another task."""
        async with self.crossing() as (peer, call):
            at = 0.0
            with suppress(ScopeEnded):
                async with tasks("parent") as parent, tasks("between") as between:
                    between.start(call("slow", 100 * self.unit))
                    await peer.arrival("slow", self.unit)
                    at = _now()
                    parent.cancel("all of it")
            await self._ended(peer, "slow", at)

    async def test_a_native_cancellation_reaches_the_far_side(self) -> None:
        """`task.cancel()`, as a server does it to a handler."""
        async with self.crossing() as (peer, call), tasks() as group:
            task = group.start(call("slow", 100 * self.unit))
            await peer.arrival("slow", self.unit)
            at = _now()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "the cancellation was turned into something else"
            await self._ended(peer, "slow", at)

    async def test_a_cancellation_reaches_over_many_hops(self) -> None:
        """Each hop tells the next."""
        async with self.crossing() as (peer, call), tasks() as group:
            task = group.start(call("a>b>c", 100 * self.unit))
            await peer.arrival("c", self.unit)
            at = _now()
            task.cancel()
            await asyncio.wait([task])
            for hops, key in enumerate("abc", 1):
                await self._ended(peer, key, at, hops)

    async def _ended(self, peer: Peer, key: str, at: Instant, hops: int = 1) -> None:
        until = at + hops * self.slack
        while key in peer.open_visits() and _now() < until:  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(self.slack / 20)
        for visit in peer.visits.get(key, ()):
            late = f"{Law.REACH.value} The far side still works {hops * self.slack} s later."
            assert visit.ends, late
            how, when = visit.ends[0]
            assert how == "cancelled", f"the handler ended as {how}"
            assert when <= until + self.slack, late

    # -- identity --------------------------------------------------------------------------------

    async def test_identity_and_stage_are_unchanged(self) -> None:
        """At the leaf they are what they were at the root."""
        async with self.crossing() as (peer, call):
            for n in range(6):
                async with use(_who(n)), timeout(self.unit):
                    await call(f"a{n}>b{n}>c{n}", 0.0)
                for hop in "abc":
                    (visit,) = peer.visits[f"{hop}{n}"]
                    self._same(_who(n), visit.carried, f"{hop}{n}")

    async def test_concurrent_calls_do_not_mix(self) -> None:
        """Fifty at once, each with its own identity, stage and deadline."""
        answers: dict[str, str] = {}

        async def caller(n: int) -> None:
            async with use(_who(n)), timeout(self.unit * (2 + n)):
                answers[f"k{n}"] = await call(f"k{n}", _spread(n) * self.unit / 2)

        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(50):
                    group.start(caller(n))
            for n in range(50):
                (visit,) = peer.visits[f"k{n}"]
                self._same(_who(n), visit.carried, f"k{n}")
                assert visit.left <= self.unit * (2 + n), f"k{n} got the deadline of another"
                assert answers[f"k{n}"] == f"k{n}", "an answer went to another caller"

    def _same(self, sent: Carried, seen: Carried, where: str) -> None:
        if not self.carries_stage:
            seen = Carried(seen.identity, sent.stage, seen.baggage)
        _none(breaches_of_identity(sent, seen, where))

    # -- closure ---------------------------------------------------------------------------------

    async def test_every_call_has_exactly_one_outcome(self) -> None:
        """Also where the answer and the deadline come together."""
        outcomes: dict[str, list[str]] = {}

        async def caller(key: str, takes: Duration) -> None:
            try:
                async with timeout(self.unit):
                    answer = await call(key, takes)
            except TimeoutError:
                outcomes.setdefault(key, []).append("expired")
            else:
                assert answer == key
                outcomes.setdefault(key, []).append("done")

        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(40):
                    group.start(caller(f"k{n}", self.unit * (0.5 + n / 40)))
            await asyncio.sleep(2 * self.slack)
            for n in range(40):
                assert len(outcomes[f"k{n}"]) == 1
                # None at all, where the call was over before it could cross.
                visits = peer.visits.get(f"k{n}", [])
                assert len(visits) <= 1, f"{len(visits)} calls crossed instead of one"
                assert all(len(visit.ends) == 1 for visit in visits)
            assert outcomes["k0"] == ["done"]
            assert outcomes["k39"] == ["expired"]

    async def test_nothing_outlives_its_scope(self) -> None:
        """When the caller has gone, for whatever reason, the far side goes too."""
        async with self.crossing() as (peer, call):
            with suppress(ScopeEnded):
                async with tasks(seconds=self.unit) as group:
                    for n in range(20):
                        group.start(call(f"k{n}", 100 * self.unit))
            await asyncio.sleep(2 * self.slack)
            assert not peer.open_visits(), Law.CLOSURE.value

    async def test_the_carrier_is_usable_after_many_cancellations(self) -> None:
        """No connection, slot or stream is lost, and no answer goes to the wrong call."""
        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(60):
                    task = group.start(call(f"x{n}", self.unit / 2))
                    asyncio.get_running_loop().call_later(_spread(n) * self.unit / 2, task.cancel)
                    if n % 10 == 9:
                        await asyncio.sleep(self.unit / 4)
            for n in range(20):
                async with timeout(self.unit):
                    assert await call(f"k{n}", 0.0) == f"k{n}"
            await asyncio.sleep(2 * self.slack)
            assert not peer.open_visits()
