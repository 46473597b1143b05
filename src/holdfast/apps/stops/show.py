"""Print what services remember of their last stops."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.lifecycle.history import History, Outcome, Stop
from holdfast.domain.lifecycle.stopbudget import adaptive
from holdfast.runtime.memory import SUFFIX, StopMemory, place_of_memories

__all__ = ["StopsError", "next_drain", "show"]

_UNKNOWN: Final = "under way"


class StopsError(HoldfastError):
    """There is nothing to show, or it cannot be forgotten. The text says why, and what to do."""


def show(*, service: str, file: Path | None, reset: bool, as_json: bool) -> int:
    """Print what is remembered, or forget it; the exit code, 1 where nothing is remembered.

    Args:
        service: of this service; empty for all of this user, where no file is named either.
        file: in this file.
        reset: whether it is to be forgotten.
        as_json: whether programs are to read it.

    Raises:
        StopsError: the file is not there or cannot be written, or it is not clear which one.
    """
    memories = _memories(service, file)
    if reset:
        return _reset(memories)
    found = [(memory, memory.read()) for memory in memories]
    if as_json:
        shown = [_as_dict(memory, history) for memory, history in found]
        print(json.dumps(shown[0] if service or file else shown))
    else:
        for memory, history in found:
            print("\n".join(_lines(memory, history)))
        if not found:
            print("no service of this user remembers a stop", file=sys.stderr)
    return 0 if any(history.stops for _, history in found) else 1


def next_drain(history: History) -> Duration | None:
    """What requests under way will get at the next stop; `None` when nothing is remembered.

    As the service was set when it stopped last: a setting that was changed since is not seen.
    """
    if not history.stops:
        return None
    terms = history.stops[-1].terms
    return adaptive(terms.base, history.failures, terms.most)


def _memories(service: str, file: Path | None) -> list[StopMemory]:
    if file is None and not service:
        paths = sorted(place_of_memories().glob(f"*{SUFFIX}"))
    elif file is not None:
        paths = [file]
    else:
        paths = [StopMemory.of(service).path]
    for path in paths:
        if not path.exists():
            hint = "the service never stopped, or has a memory of its own in [stop]: use --file"
            raise StopsError(f"{path}: no such file; {hint}")
    return [StopMemory(path, tell=_tell) for path in paths]


def _reset(memories: list[StopMemory]) -> int:
    if len(memories) > 1:
        names = ", ".join(_name(memory) for memory in memories)
        raise StopsError(f"several services remember stops, so name one with --service: {names}")
    for memory in memories:
        try:
            memory.reset()
        except OSError as error:
            raise StopsError(f"{memory.path}: cannot be written: {error.strerror}") from None
        print(f"{memory.path}: forgotten")
    if not memories:
        print("no service of this user remembers a stop", file=sys.stderr)
    return 0 if memories else 1


def _tell(text: str) -> None:
    print(f"holdfast stops: {text}", file=sys.stderr)


def _name(memory: StopMemory) -> str:
    return unquote(memory.path.name.removesuffix(SUFFIX))


def _took(stop: Stop) -> Duration | None:
    # When one that never finished was found says nothing about how long it took.
    if stop.outcome in (None, Outcome.UNFINISHED):
        return None
    return max(0.0, stop.ended - stop.begun)


def _as_dict(memory: StopMemory, history: History) -> dict[str, Any]:
    return {
        "service": _name(memory),
        "file": str(memory.path),
        "failures": history.failures,
        "next_drain_s": next_drain(history),
        "stops": [
            {
                "begun": stop.begun,
                "took_s": _took(stop),
                "outcome": stop.outcome and stop.outcome.value,
                "drain_s": stop.terms.drain,
                "grace_s": stop.terms.grace,
                "processes": len(stop.members),
            }
            for stop in history.stops
        ],
    }


def _lines(memory: StopMemory, history: History) -> Iterator[str]:
    # A name comes from a file's: what is not printable must not reach a terminal.
    name = _name(memory)
    yield f"{name if name.isprintable() else ascii(name)}  {memory.path}"
    rows = [_row(stop) for stop in history.stops]
    widths = [max(len(row[i]) for row in rows) for i in range(4)] if rows else []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
    drain = next_drain(history)
    if drain is None:
        yield "  no stop is remembered"
        return
    terms = history.stops[-1].terms
    failed = "1 failure" if history.failures == 1 else f"{history.failures} failures"
    yield (
        f"  next drain: {format_duration(drain)} (base {format_duration(terms.base)}, {failed} "
        f"in the last {len(history.over)}, at most {format_duration(terms.most)})"
    )


def _row(stop: Stop) -> tuple[str, str, str, str]:
    took = _took(stop)
    workers = f", {len(stop.members)} processes" if len(stop.members) > 1 else ""
    return (
        datetime.fromtimestamp(stop.begun).astimezone().isoformat(" ", "seconds"),
        (stop.outcome or _UNKNOWN).replace("_", " "),
        "" if took is None else f"after {format_duration(took)}",
        f"of a drain of {format_duration(stop.terms.drain)}{workers}",
    )
