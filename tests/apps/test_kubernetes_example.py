"""The example manifest keeps law 1, by the code that a service does its sums with."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.domain.instant import parse_duration
from holdfast.domain.lifecycle.settings import LifecycleSettings, lifecycle_from_mapping
from holdfast.domain.lifecycle.stopbudget import StopBudget, breaches, stop_budget
from holdfast.domain.policy import Policy, policy_from_mapping

MANIFEST = Path(__file__).parents[2] / "examples" / "kubernetes" / "deployment.yaml"


@dataclass
class Manifest:
    policy: Policy
    lifecycle: LifecycleSettings
    deployment: dict[str, Any]
    service: dict[str, Any]

    @property
    def pod(self) -> dict[str, Any]:
        return self.deployment["spec"]["template"]["spec"]

    @property
    def container(self) -> dict[str, Any]:
        return self.pod["containers"][0]

    @property
    def grace(self) -> float:
        return float(self.pod["terminationGracePeriodSeconds"])

    @property
    def prestop(self) -> float:
        command = self.container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:2] == ["holdfast", "prestop"]
        (option,) = command[2:]
        return parse_duration(option.removeprefix("--wait="))

    @property
    def longest(self) -> float:
        paths = [route.path.rstrip("*") for route in self.policy.routes]
        return max(self.policy.limits(path, "GET").limits.request for path in ["/other", *paths])

    def budget(self, failures: int = 0) -> StopBudget:
        stop = self.lifecycle.stop
        return stop_budget(
            grace=stop.grace,
            cleanup=stop.cleanup,
            base=self.longest + 1.0 if stop.base is None else stop.base,
            failures=failures,
            cap=stop.cap,
            lame_duck=stop.lame_duck,
            lame_duck_least=stop.lame_duck_least,
        )

    def breaches(self, failures: int = 0) -> tuple[str, ...]:
        """Of the whole: the hook runs while the grace does."""
        budget = self.budget(failures)
        whole = StopBudget(budget.lame_duck + self.prestop, budget.drain, budget.cleanup)
        return breaches(whole, grace=self.grace, longest=self.longest)


@pytest.fixture
def manifest() -> Manifest:
    config, deployment, service = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    data = tomllib.loads(config["data"]["holdfast.toml"])
    return Manifest(policy_from_mapping(data), lifecycle_from_mapping(data), deployment, service)


@pytest.mark.parametrize("failures", range(4))
def test_law_1(manifest: Manifest, failures: int) -> None:
    assert manifest.grace >= manifest.prestop + manifest.lifecycle.stop.grace
    assert manifest.breaches(failures) == ()
    assert manifest.budget(failures).total <= manifest.lifecycle.stop.grace


def test_the_sums_of_the_comment(manifest: Manifest) -> None:
    assert (manifest.grace, manifest.prestop, manifest.lifecycle.stop.grace) == (40, 5, 35)
    assert manifest.budget() == StopBudget(lame_duck=3, drain=16, cleanup=5)
    assert manifest.budget(failures=3).drain == 27
    assert manifest.longest == 15


def test_a_grace_that_is_too_short_is_seen(manifest: Manifest) -> None:
    manifest.pod["terminationGracePeriodSeconds"] = 28
    (breach,) = manifest.breaches()
    assert "the platform kills before the stop is over; give it at least 29 s" in breach


def test_the_probes_ask_what_the_service_answers(manifest: Manifest) -> None:
    health, container = manifest.lifecycle.health, manifest.container
    live, ready, start = (container[f"{n}Probe"] for n in ("liveness", "readiness", "startup"))
    assert live["httpGet"]["path"] == health.live
    assert ready["httpGet"]["path"] == start["httpGet"]["path"] == health.ready
    assert min(ready["timeoutSeconds"], start["timeoutSeconds"]) > health.check_timeout
    patience = start["periodSeconds"] * start["failureThreshold"]
    assert patience >= manifest.lifecycle.stop.start
    assert math.isfinite(manifest.lifecycle.stop.start)


def test_the_parts_fit_together(manifest: Manifest) -> None:
    container = manifest.container
    labels = manifest.deployment["spec"]["template"]["metadata"]["labels"]
    assert manifest.deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifest.service["spec"]["selector"] == labels
    assert container["command"][:2] == ["holdfast", "serve"]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["command"]
    assert manifest.service["spec"]["ports"][0]["targetPort"] == port["name"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in manifest.pod["volumes"]}
    (policy,) = (path for path, name in mounts.items() if name == "policy")
    assert f"--config={policy}/holdfast.toml" in container["command"]
    (runtime,) = (item["value"] for item in container["env"] if item["name"] == "XDG_RUNTIME_DIR")
    # The root cannot be written, so what is written has a volume.
    assert runtime in mounts
    assert str(Path(manifest.lifecycle.stop.memory).parent) in mounts
