"""What waits for a worker, against a list that is sorted anew each time."""

from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from holdfast.domain.resilience.waiting import Waiting

LIMITS = st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, math.inf])


class Machine(RuleBasedStateMachine):
    """The model is a plain list of (number, item, limit) in the order of arrival."""

    numbers: Bundle[int] = Bundle("numbers")
    order = "fifo"

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Waiting[str] = Waiting(self.order)  # type: ignore[arg-type]
        self.model: list[tuple[int, str, float]] = []
        self.now = 0.0

    def key(self, entry: tuple[int, str, float]) -> tuple[float, int]:
        number, _, limit = entry
        return (limit if self.order == "deadline" else 0.0, number)

    @rule(target=numbers, limit=LIMITS)
    def push(self, limit: float) -> int:
        item = f"item {len(self.model)}"
        number = self.waiting.push(item, self.now + limit)
        self.model.append((number, item, self.now + limit))
        return number

    @rule(times=st.integers(1, 200), limit=LIMITS)
    def push_and_remove_many(self, times: int, limit: float) -> None:
        for number in [self.waiting.push("passing", self.now + limit) for _ in range(times)]:
            assert self.waiting.remove(number) == "passing"

    @rule()
    def pop(self) -> None:
        expected = min(self.model, key=self.key, default=None)
        assert self.waiting.pop() == (expected and expected[1])
        if expected:
            self.model.remove(expected)

    @rule(number=consumes(numbers))
    def remove(self, number: int) -> None:
        expected = next((entry for entry in self.model if entry[0] == number), None)
        assert self.waiting.remove(number) == (expected and expected[1])
        if expected:
            self.model.remove(expected)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        late = sorted(
            (entry for entry in self.model if entry[2] <= self.now), key=lambda e: (e[2], e[0])
        )
        assert self.waiting.expired(self.now) == [item for _, item, _ in late]
        self.model = [entry for entry in self.model if entry[2] > self.now]

    @rule()
    def clear(self) -> None:
        assert self.waiting.clear() == [item for _, item, _ in self.model]
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        assert len(self.waiting) == len(self.model)
        assert self.waiting.earliest() == min((e[2] for e in self.model), default=math.inf)

    @invariant()
    def carries_no_more_than_it_must(self) -> None:
        most = 2 * len(self.model) + 66
        assert len(self.waiting._line) <= most
        assert len(self.waiting._heap) <= most


class ByDeadline(Machine):
    order = "deadline"


TestFifo = Machine.TestCase
TestByDeadline = ByDeadline.TestCase


def test_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match="'fifo' or 'deadline'"):
        Waiting("lifo")  # type: ignore[arg-type]
