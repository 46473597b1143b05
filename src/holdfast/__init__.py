"""Holdfast: one deadline, cancellation, identity and stage, from the edge to the last socket.

    import holdfast

    async with holdfast.timeout(3.0, name="charge"):
        await client.post(...)          # sends what is left; ends when it is spent

Names are loaded at first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from holdfast._version import __version__ as __version__

if TYPE_CHECKING:
    from holdfast import carry as carry
    from holdfast import lifecycle as lifecycle
    from holdfast import net as net
    from holdfast.domain.cause import Cause, CauseKind
    from holdfast.domain.context import Context, Identity
    from holdfast.domain.errors import (
        Cancelled,
        ConfigError,
        DeadlineExceeded,
        HoldfastError,
        InsufficientBudget,
        OutcomeUnknown,
        ScopeEnded,
        UsageError,
    )
    from holdfast.domain.faults import Fault, classify, is_retryable
    from holdfast.runtime.ambient import (
        current,
        deadline_at,
        refuse_below,
        remaining,
        reserve,
        scope,
        shield,
        split,
        timeout,
    )
    from holdfast.runtime.live import tree
    from holdfast.runtime.scope import Scope
    from holdfast.runtime.tasks import TaskGroup, detach, tasks
    from holdfast.runtime.workers import workers
else:
    # In the else branch, so that type checkers see no __getattr__ and report a misspelt name.
    _HOME: Final = {
        "Cause": "domain.cause",
        "CauseKind": "domain.cause",
        "Context": "domain.context",
        "Identity": "domain.context",
        "Cancelled": "domain.errors",
        "ConfigError": "domain.errors",
        "DeadlineExceeded": "domain.errors",
        "HoldfastError": "domain.errors",
        "InsufficientBudget": "domain.errors",
        "OutcomeUnknown": "domain.errors",
        "ScopeEnded": "domain.errors",
        "UsageError": "domain.errors",
        "Fault": "domain.faults",
        "classify": "domain.faults",
        "is_retryable": "domain.faults",
        "current": "runtime.ambient",
        "deadline_at": "runtime.ambient",
        "refuse_below": "runtime.ambient",
        "remaining": "runtime.ambient",
        "reserve": "runtime.ambient",
        "scope": "runtime.ambient",
        "shield": "runtime.ambient",
        "split": "runtime.ambient",
        "timeout": "runtime.ambient",
        "tree": "runtime.live",
        "Scope": "runtime.scope",
        "TaskGroup": "runtime.tasks",
        "detach": "runtime.tasks",
        "tasks": "runtime.tasks",
        "workers": "runtime.workers",
    }
    _MODULES: Final = frozenset({"carry", "lifecycle", "net"})

    def __getattr__(name):
        if name in _MODULES:
            value = import_module(f"holdfast.{name}")
        elif name in _HOME:
            value = getattr(import_module(f"holdfast.{_HOME[name]}"), name)
        else:
            raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted(__all__)


__all__ = [
    "Cancelled",
    "Cause",
    "CauseKind",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Fault",
    "HoldfastError",
    "Identity",
    "InsufficientBudget",
    "OutcomeUnknown",
    "Scope",
    "ScopeEnded",
    "TaskGroup",
    "UsageError",
    "classify",
    "current",
    "deadline_at",
    "detach",
    "is_retryable",
    "refuse_below",
    "remaining",
    "reserve",
    "scope",
    "shield",
    "split",
    "tasks",
    "timeout",
    "tree",
    "workers",
]
