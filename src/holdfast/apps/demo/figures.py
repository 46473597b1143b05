"""What was measured in one run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from holdfast.apps.demo.users import PATIENCE, Experience
from holdfast.domain.cause import Cause
from holdfast.domain.instant import NEVER, Duration

__all__ = ["Hop", "Run", "Told", "chain_of", "quantile"]

_RUNS: Final = ("off", "on")


def quantile(values: Iterable[float], part: float) -> float:
    """The smallest of `values` that `part` of them do not exceed; NaN when there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def chain_of(cause: Cause) -> list[Cause]:
    """A cause and those of the hops below it, one after the other."""
    chain = [cause]
    while chain[-1].below:
        chain.append(chain[-1].below[0])
    return chain


@dataclass(frozen=True, slots=True)
class Hop:
    """One service in one run. "After" is after the user had gone.

    Attributes:
        name: of the service.
        requests: that it began.
        ended_early: of these, those that were cancelled or ran out of time.
        work: seconds of work.
        after_requests: requests of which at least one whole piece of work (10 ms) was done after.
        after_work: seconds of work done after.
        after_held: seconds that requests were open after, at work or waiting.
        leaked: tasks more than before the load, 1 s after it stopped.
    """

    name: str
    requests: int
    ended_early: int
    work: float
    after_requests: int
    after_work: float
    after_held: float
    leaked: int

    @classmethod
    def of(cls, end: Mapping[str, Any], *, leaked: int) -> Hop:
        """From what the service shows of itself in the end."""
        return cls(
            name=str(end["service"]),
            requests=int(end["requests"]),
            ended_early=int(end["ended_early"]),
            work=float(end["work_s"]),
            after_requests=int(end["after_requests"]),
            after_work=float(end["after_work_s"]),
            after_held=float(end["after_held_s"]),
            leaked=leaked,
        )

    def as_dict(self) -> dict[str, object]:
        """For programs."""
        return {
            "requests": self.requests,
            "ended_early": self.ended_early,
            "work_s": _digits(self.work),
            "after_the_caller_had_gone": {
                "requests": self.after_requests,
                "work_s": _digits(self.after_work),
                "held_s": _digits(self.after_held),
            },
            "tasks_left_after_1_s": self.leaked,
        }


@dataclass(frozen=True, slots=True)
class Told:
    """One 504 as a user got it.

    Attributes:
        document: the problem document.
        cause: the same, read.
    """

    document: dict[str, Any]
    cause: Cause


@dataclass(frozen=True, slots=True)
class Run:
    """Everything of one run.

    Attributes:
        carriers: whether Holdfast was at work.
        hops: from the user on.
        experiences: what the users got.
        late: the most seconds that a user came later than planned.
        tree: what `holdfast tree` printed about a service meanwhile.
    """

    carriers: bool
    hops: Sequence[Hop]
    experiences: Sequence[Experience]
    late: Duration
    tree: Sequence[str] = ()

    @property
    def name(self) -> str:
        """`off` or `on`."""
        return _RUNS[self.carriers]

    @property
    def bought(self) -> int:
        """Users who got what they came for."""
        return sum(e.status == 200 for e in self.experiences)

    @property
    def told(self) -> int:
        """Users who were told in time that it cannot be."""
        return sum(e.status == 504 for e in self.experiences)

    @property
    def named(self) -> Counter[str]:
        """Of these, those whose answer says which hop behind the edge spent the budget, by hop."""
        origins = [e.cause.origin.hop for e in self.experiences if e.status == 504 and e.cause]
        return Counter(hop for hop in origins if hop and hop != self.hops[0].name)

    @property
    def left(self) -> int:
        """Users who waited and left without an answer."""
        return sum(_no_answer(e) and e.user.patience == PATIENCE for e in self.experiences)

    @property
    def closed(self) -> int:
        """Users who closed the tab early."""
        return sum(_no_answer(e) and e.user.patience < PATIENCE for e in self.experiences)

    @property
    def failed(self) -> int:
        """Users who got something else, or whose connection failed."""
        return len(self.experiences) - self.bought - self.told - self.left - self.closed

    @property
    def times(self) -> list[Duration]:
        """Seconds to an answer, infinite for none, of those who did not close the tab early."""
        patient = [e for e in self.experiences if e.user.patience == PATIENCE]
        return [e.took if e.status else NEVER for e in patient]

    @property
    def leaked(self) -> int:
        """Tasks that were still at work 1 s after the load stopped."""
        return sum(hop.leaked for hop in self.hops)

    def sample(self) -> Told | None:
        """The 504 that says most; the first of several."""
        best: Told | None = None
        for e in self.experiences:
            if e.status != 504 or e.cause is None or e.reply is None:
                continue
            if best is None or len(chain_of(e.cause)) > len(chain_of(best.cause)):
                best = Told(json.loads(e.reply.body), e.cause)
        return best

    def as_dict(self) -> dict[str, object]:
        """For programs."""
        told = self.sample()
        times = self.times
        return {
            "hops": {hop.name: hop.as_dict() for hop in self.hops},
            "after_the_caller_had_gone": {
                "requests": sum(hop.after_requests for hop in self.hops),
                "work_s": _digits(sum(hop.after_work for hop in self.hops)),
                "held_s": _digits(sum(hop.after_held for hop in self.hops)),
            },
            "tasks_left_after_1_s": self.leaked,
            "users": {
                "came": len(self.experiences),
                "bought": self.bought,
                "told_why_not": self.told,
                "told_which_hop": dict(self.named),
                "left_without_an_answer": self.left,
                "closed_the_tab": self.closed,
                "failed": self.failed,
                "came_late_by_at_most_s": _digits(self.late),
            },
            "time_to_answer_s": {
                "p50": _digits(quantile(times, 0.5)),
                "p95": _digits(quantile(times, 0.95)),
                "max": _digits(quantile(times, 1.0)),
            },
            "example_504": None if told is None else told.document,
            "example_chain": [] if told is None else [c.hop for c in chain_of(told.cause)],
            "tree": list(self.tree),
        }


def _no_answer(experience: Experience) -> bool:
    return not experience.status and not experience.failed


def _digits(value: float) -> float | None:
    """To the millisecond; none where there is no number, which JSON cannot say."""
    return round(value, 3) if math.isfinite(value) else None
