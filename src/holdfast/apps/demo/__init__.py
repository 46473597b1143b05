"""`holdfast demo`: the same load on the same four services, without Holdfast and then with it.

    trouble   what can go wrong, as sentences for whoever typed the command
    fleet     the four services of `examples/shop` as processes, which never outlive the demo
    child     what such a process does first, so that this is so
    http      one request over one connection
    users     the load: when each user comes, how long it waits, what it gets
    figures   what was measured
    show      what is to be seen while it runs
    report    what is to be seen in the end
    conduct   all of it together

What belongs here: driving, measuring and showing. What does not: the services, which are ordinary
ones, and how they measure themselves (`examples/shop/meter.py`). No figure is known beforehand:
whatever is shown was measured in the same run.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["run"]


def run(json: bool, seconds: float = 12.0, export: Path | None = None) -> int:
    """Run the demo; the exit code.

    Args:
        json: whether to print the figures for programs, and nothing else on standard output.
        seconds: how long there is load, in each of the two runs.
        export: an SVG file for a picture of the report.
    """
    from holdfast.apps.demo.conduct import demo

    return demo(as_json=json, seconds=seconds, export=export)
