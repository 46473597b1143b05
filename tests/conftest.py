"""With HOLDFAST_NO_SKIP=1 a skipped test is a failed one: nothing goes missing unnoticed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from importlib import import_module
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["holdfast.testing.plugin"]

# Hypothesis measures time on its own account; on a busy machine that fails tests that are right.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if settings.get_current_profile_name() == "default":  # mutation runs bring their own
    settings.load_profile("holdfast")

# Whoever runs the tests may ignore signals (`nohup`, `command &` in a script), and processes
# inherit that: then those that are started here would rightly ignore them too.
for _number, _usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)

FORBIDDEN = os.environ.get("HOLDFAST_NO_SKIP", "") not in ("", "0")


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped too, but it did run.
    if FORBIDDEN and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipping is forbidden here: {report.longreprtext or report.longrepr}"


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse(report)
    return report


# Real servers, one for each process of the tests, started when the first test asks. Their modules
# name the libraries of their clients, so they are loaded no sooner.


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL; see `tests.peers.postgres.Postgres`."""
    with import_module("tests.peers.postgres").postgres_running() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgres: Any) -> Iterator[Any]:
    """A pgbouncer in transaction mode before `postgres`; its `port` is the bouncer's."""
    with import_module("tests.peers.postgres").pgbouncer_running(postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Any]:
    """A Redis; see `tests.peers.redis.RedisServer`."""
    with import_module("tests.peers.redis").redis_running() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Any]:
    """A RabbitMQ; see `tests.peers.rabbitmq.RabbitMQ`."""
    with import_module("tests.peers.rabbitmq").rabbitmq_running() as server:
        yield server
