"""The suite's own test: the reference passes, and every way of breaking a law is noticed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.testing import run_checked
from holdfast.testing.laws import CarrierLaws

# Loaded by path: test directories are no packages here.
_spec = importlib.util.spec_from_file_location(
    "carrier_reference", Path(__file__).with_name("reference.py")
)
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = reference
_spec.loader.exec_module(reference)

LAWS = sorted(name for name in vars(CarrierLaws) if name.startswith("test_"))

BROKEN = {
    "Extending": "test_the_deadline_only_shrinks",
    "RoundingUp": "test_the_deadline_only_shrinks_over_many_hops",
    "Forgetful": "test_the_deadline_only_shrinks",
    "ZeroForNone": "test_no_deadline_is_not_turned_into_one",
    "Reckless": "test_a_spent_budget_is_refused_before_crossing",
    "Optimistic": "test_too_small_a_budget_is_refused_before_crossing",
    "Deaf": "test_an_explicit_cancellation_reaches_the_far_side",
    "Anonymous": "test_identity_and_stage_are_unchanged",
    "Stageless": "test_identity_and_stage_are_unchanged",
    "Mixing": "test_concurrent_calls_do_not_mix",
    "Twice": "test_every_call_has_exactly_one_outcome",
    "Lingering": "test_nothing_outlives_its_scope",
    "WearingOut": "test_the_carrier_is_usable_after_many_cancellations",
    "Swallowing": "test_a_native_cancellation_reaches_the_far_side",
}
ALSO = {
    "Deaf": {
        "test_a_cancellation_from_above_reaches_the_far_side",
        "test_a_native_cancellation_reaches_the_far_side",
        "test_a_cancellation_reaches_over_many_hops",
    },
    "Lingering": {"test_the_deadline_reaches_the_far_side"},
}


class TestReference(CarrierLaws):
    carrier = reference.QueueCarrier
    least = reference.LEAST


def broken_laws(carrier: type[Any]) -> set[str]:
    suite = type("Suite", (CarrierLaws,), {"carrier": carrier, "least": reference.LEAST})
    found: set[str] = set()
    for law in LAWS:
        try:
            run_checked(getattr(suite(), law))
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            found.add(law)
    return found


@pytest.mark.parametrize(("name", "law"), BROKEN.items(), ids=BROKEN)
def test_a_broken_carrier_fails(name: str, law: str) -> None:
    found = broken_laws(getattr(reference, name))
    assert law in found
    assert ALSO.get(name, set()) <= found


def test_every_law_is_broken_by_somebody() -> None:
    caught = set(BROKEN.values()) | {law for laws in ALSO.values() for law in laws}
    assert caught == set(LAWS)
