"""The life of a process. Users know the same names as `holdfast.lifecycle`.

What belongs here: components, the order of a stop, hooks, health, the journal. What does not: what
is decided (`domain.lifecycle`), signals (`runtime.signals`) and servers (the adapters).
"""

from __future__ import annotations

from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.domain.lifecycle.phase import ExitCode, Phase
from holdfast.domain.record import Record
from holdfast.ports.component import Component
from holdfast.ports.pool import Pool
from holdfast.runtime.lifecycle.health import CheckResult, Health, HealthReport
from holdfast.runtime.lifecycle.hooks import at_end
from holdfast.runtime.lifecycle.host import ComponentFailed, Host, current
from holdfast.runtime.lifecycle.journal import FileReader, Journal, LogReader
from holdfast.runtime.lifecycle.terms import HostTerms

__all__ = [
    "CheckResult",
    "Component",
    "ComponentFailed",
    "ExitCode",
    "FileReader",
    "Health",
    "HealthReport",
    "Host",
    "HostTerms",
    "Journal",
    "LogReader",
    "Phase",
    "Pool",
    "Record",
    "ShutdownRequest",
    "at_end",
    "current",
]
