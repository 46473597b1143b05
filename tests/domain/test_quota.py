"""The processors that a container may use."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.lifecycle.quota import (
    Advice,
    Quota,
    cpus_of_v1,
    cpus_of_v2,
    memory_of,
    smallest,
    threads_for,
    workers_for,
)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", math.inf),
        ("max", math.inf),
        ("150000 100000\n", 1.5),
        ("50000 50000", 1.0),
        ("20000", 0.2),
        ("1 1000000", 1e-6),
    ],
)
def test_a_cpu_max(text: str, cpus: float) -> None:
    assert cpus_of_v2(text) == cpus


@pytest.mark.parametrize(
    "text", ["", "max 0", "max x", "0 100000", "-1 100000", "1 2 3", "x 100000", "²", "1" * 20]
)
def test_what_is_no_cpu_max(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        cpus_of_v2(text)


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [
        ("-1\n", "100000\n", math.inf),
        ("250000\n", "100000\n", 2.5),
        ("1000", "100000", 0.01),
    ],
)
def test_a_cfs_quota(quota: str, period: str, cpus: float) -> None:
    assert cpus_of_v1(quota, period) == cpus


@pytest.mark.parametrize(
    ("quota", "period"), [("", "1"), ("1", ""), ("0", "1"), ("1", "0"), ("-2", "1"), ("-1", "x")]
)
def test_what_is_no_cfs_quota(quota: str, period: str) -> None:
    with pytest.raises(ValueError, match="is not a positive whole number"):
        cpus_of_v1(quota, period)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max\n", None),
        ("9223372036854771712\n", None),
        (str(1 << 60), None),
        (str((1 << 60) - 1), (1 << 60) - 1),
        ("536870912\n", 512 * 1024 * 1024),
    ],
)
def test_a_memory_limit(text: str, limit: int | None) -> None:
    assert memory_of(text) == limit


def test_what_is_no_memory_limit() -> None:
    with pytest.raises(ValueError, match="'-1' is not a positive whole number"):
        memory_of("-1")


def test_the_smallest_counts() -> None:
    limits = [(2.0, "a"), (1.5, "b"), (1.5, "c"), (math.inf, "d")]
    assert smallest(limits, 8, 8) == Quota(1.5, "b", 8)
    assert smallest(limits, 1, 8) == Quota(1.0, "the CPU affinity", 8)
    assert smallest([(4.0, "a")], 4, 8) == Quota(4.0, "the CPU affinity", 8)
    assert smallest([(16.0, "a")], 8, 8) == Quota(8.0, "", 8)
    assert smallest([], 8, 8) == Quota(8.0, "", 8)
    assert smallest([(0.0, "a")], 8, 8) == Quota(8.0, "", 8)


def test_what_is_unknown_says_nothing() -> None:
    assert smallest([], 0, 0) == Quota(1.0, "", 0)
    assert smallest([], 4, 0) == Quota(4.0, "", 0)
    assert smallest([], 0, 4) == Quota(4.0, "", 4)
    assert smallest([(0.5, "a")], 0, 0) == Quota(0.5, "a", 0)


@pytest.mark.parametrize(
    ("quota", "workers", "threads"),
    [
        (
            Quota(1.5, "cgroup v2 cpu.max", 8),
            Advice(2, "2 workers: cgroup v2 cpu.max allows 1.5 CPUs of 8"),
            Advice(6, "6 threads: cgroup v2 cpu.max allows 1.5 CPUs of 8"),
        ),
        (
            Quota(0.1, "cgroup v1 cpu.cfs_quota_us"),
            Advice(1, "1 worker: cgroup v1 cpu.cfs_quota_us allows 0.1 CPUs"),
            Advice(5, "5 threads: cgroup v1 cpu.cfs_quota_us allows 0.1 CPUs"),
        ),
        (
            Quota(1.0, "the CPU affinity", 2),
            Advice(1, "1 worker: the CPU affinity allows 1 CPU of 2"),
            Advice(5, "5 threads: the CPU affinity allows 1 CPU of 2"),
        ),
        (
            Quota(64.0, "", 64),
            Advice(64, "64 workers: the machine has 64 CPUs"),
            Advice(32, "32 threads: the machine has 64 CPUs"),
        ),
    ],
)
def test_how_many_and_why(quota: Quota, workers: Advice, threads: Advice) -> None:
    assert workers_for(quota) == workers
    assert threads_for(quota) == threads


@given(st.floats(min_value=1e-6, max_value=1e4))
def test_never_none_and_never_one_too_many(cpus: float) -> None:
    quota = Quota(cpus)
    assert 1 <= workers_for(quota).count < cpus + 1
    assert 5 <= threads_for(quota).count <= 32


@pytest.mark.parametrize("cpus", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_number_of_processors(cpus: float) -> None:
    with pytest.raises(ValueError, match="is not a number of processors"):
        Quota(cpus)
