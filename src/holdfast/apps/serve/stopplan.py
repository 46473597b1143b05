"""From the settings, the policy and the last stops to the times of the next one."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.apps.serve.hosted import drain_limit, longest_request
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.history import Terms
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.domain.lifecycle.stopbudget import StopBudget, adaptive, breaches, stop_budget
from holdfast.runtime.lifecycle import HostTerms
from holdfast.runtime.memory import StopMemory
from holdfast.runtime.policyfile import PolicyFile

__all__ = ["StopPlan", "memory_of", "stop_plan"]

_LONGEST_START: Duration = 86_400.0
_UNWINDING_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class StopPlan:
    """The times of one stop.

    Attributes:
        settings: what was asked for.
        budget: how the grace is shared out.
        base: of the drain, in seconds.
        failures: among the last stops.
        warnings: where this breaks a law, as sentences.
    """

    settings: StopSettings
    budget: StopBudget
    base: Duration
    failures: int
    warnings: tuple[str, ...]

    def host_terms(self) -> HostTerms:
        """For the host."""
        return HostTerms(
            start=min(self.settings.start, _LONGEST_START),
            drain=self.budget.lame_duck + self.budget.drain,
            cleanup=self.budget.cleanup,
        )

    def drain_terms(self, *, tls: bool, at_once: bool, heirs: bool, waited: Duration) -> DrainTerms:
        """For the server.

        Args:
            tls: whether handshakes may be under way.
            heirs: whether others accept from the same socket and go on: nobody has to be served
                only since he does not know yet.
            at_once: whether somebody sits at the terminal and wants it to end: nobody else has to
                learn of it first.
            waited: seconds that a lame duck has lasted already, before the stop.
        """
        settings = self.settings
        if at_once:
            return DrainTerms(
                calm=0.0,
                most=0.0,
                quiet=0.0,
                farewell=min(0.5, settings.websocket),
                unwinding=self._unwinding(),
            )
        if heirs:
            return DrainTerms(
                calm=0.0,
                most=0.0,
                drain=self.budget.drain,
                quiet=settings.quiet,
                farewell=settings.websocket,
                unwinding=self._unwinding(),
                handshakes=tls,
            )
        return DrainTerms(
            calm=settings.calm,
            least=max(0.0, settings.lame_duck_least - waited),
            most=max(0.0, self.budget.lame_duck - waited),
            drain=self.budget.drain,
            quiet=settings.quiet,
            farewell=settings.websocket,
            unwinding=self._unwinding(),
            handshakes=tls,
        )

    def _unwinding(self) -> Duration:
        """Less than the host waits for a server whose work was cut, so that it can tell of it."""
        return min(1.0, self.host_terms().moment * _UNWINDING_SHARE)

    def memory_terms(self) -> Terms:
        """What is remembered of the stop."""
        settings, budget = self.settings, self.budget
        room = settings.grace - budget.lame_duck - budget.cleanup
        return Terms(budget.drain, self.base, min(settings.cap, room), settings.grace)

    def line(self) -> str:
        """The shares, for people."""
        budget = self.budget
        text = (
            f"lame duck up to {format_duration(budget.lame_duck)}, drain "
            f"{format_duration(budget.drain)}, clean-up {format_duration(budget.cleanup)}, "
            f"of {format_duration(self.settings.grace)}"
        )
        if self.failures:
            longer = format_duration(adaptive(self.base, self.failures, self.settings.cap))
            text += f" ({self.failures} of the last stops failed, so the drain may take {longer})"
        return text


def memory_of(file: PolicyFile, target: str) -> StopMemory:
    """Where a service remembers its stops: under its name, or under what it serves."""
    return StopMemory.of(file.policy.service or target, file.lifecycle.stop.memory)


def stop_plan(file: PolicyFile, failures: int = 0, *, margin: Duration = 0.0) -> StopPlan:
    """The times of a stop under a policy file.

    Args:
        file: the policy and its settings.
        failures: among the last stops.
        margin: seconds of the grace that a supervisor keeps for itself.
    """
    settings = file.lifecycle.stop
    grace = max(0.0, settings.grace - margin)
    base = float(drain_limit(file.policy)) if settings.base is None else settings.base
    budget = stop_budget(
        grace=grace,
        cleanup=settings.cleanup,
        base=base,
        failures=failures,
        cap=settings.cap,
        lame_duck=settings.lame_duck,
        lame_duck_least=settings.lame_duck_least,
    )
    longest = longest_request(file.policy)
    warnings = breaches(budget, grace=settings.grace, longest=longest)
    return StopPlan(settings, budget, base, failures, warnings)
