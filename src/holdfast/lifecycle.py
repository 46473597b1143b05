"""The life of a process: components, the order of a stop, hooks, health and the journal.

    from holdfast import lifecycle                        # or: from holdfast.lifecycle import Host

    host = lifecycle.Host("shop")
    host.add("db", start=db.connect, stop=db.close)
    host.add("consumer", run=consume)
    code = await host.run()

    lifecycle.current().on_stop(streams.say_goodbye)      # inside, wherever it runs
    lifecycle.at_end(lambda outcome, cause: ...)          # when this request ends, however

A part of the face: it is for users, it only names what is in `holdfast.runtime.lifecycle`, and
nothing inside imports it.
"""

from __future__ import annotations

from holdfast.runtime.lifecycle import (
    CheckResult,
    Component,
    ComponentFailed,
    ExitCode,
    FileReader,
    Health,
    HealthReport,
    Host,
    HostTerms,
    Journal,
    LogReader,
    Phase,
    Pool,
    Record,
    ShutdownRequest,
    at_end,
    current,
)

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
