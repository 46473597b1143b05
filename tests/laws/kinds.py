"""The carrier laws for what differs from a service in the same way: statements, and work that
nobody can cancel."""

from __future__ import annotations

from holdfast.domain.instant import Duration
from holdfast.runtime.ambient import timeout
from holdfast.runtime.tasks import tasks
from holdfast.testing.laws import CarrierLaws

__all__ = ["NotCancelled", "StatementLaws"]


class NotCancelled(CarrierLaws):
    """What runs on the far side, or waits here in a thread, is told of deadlines alone."""

    test_an_explicit_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_from_above_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_native_cancellation_reaches_the_far_side = None  # type: ignore[assignment]
    test_a_cancellation_reaches_over_many_hops = None  # type: ignore[assignment]


class StatementLaws(CarrierLaws):
    """A statement calls nobody on, and a database knows nothing of requests: there are neither hops
    nor identities behind it."""

    test_the_deadline_only_shrinks_over_many_hops = None  # type: ignore[assignment]
    test_a_cancellation_reaches_over_many_hops = None  # type: ignore[assignment]
    test_identity_and_stage_are_unchanged = None  # type: ignore[assignment]

    @staticmethod
    def granted(left: Duration) -> Duration:
        """Seconds that a server may have been told at most, where `left` are left."""
        return left

    async def test_concurrent_calls_do_not_mix(self) -> None:
        """Fifty at once, each with its own deadline; see above for identities."""
        answers: dict[str, str] = {}

        async def caller(n: int) -> None:
            async with timeout(self.unit * (2 + n)):
                answers[f"k{n}"] = await call(f"k{n}", self.unit * (n % 7) / 14)

        async with self.crossing() as (peer, call):
            async with tasks() as group:
                for n in range(50):
                    group.start(caller(n))
            for n in range(50):
                (visit,) = peer.visits[f"k{n}"]
                latest = self.granted(self.unit * (2 + n))
                assert visit.left <= latest, f"k{n} got the deadline of another"
                assert answers[f"k{n}"] == f"k{n}", "an answer went to another caller"
