"""From a file of JSON lines to records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from holdfast.apps.timeline.problem import TimelineError
from holdfast.domain.record import Record, record_from_dict

__all__ = ["LARGEST", "Found", "parse", "read"]

LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a file that are read."""
_LONGEST: Final = 1024 * 1024
"""Bytes of a line that are read."""


@dataclass(slots=True)
class Found:
    """What is in a file.

    Attributes:
        records: in the order of the file.
        problems: what was left out, a sentence for each.
        unfinished: whether the last line ends in the middle, as that of a killed process does.
    """

    records: list[Record] = field(default_factory=list[Record])
    problems: list[str] = field(default_factory=list[str])
    unfinished: bool = False


def read(name: str) -> Found:
    """The records in the file `name`; `-` is standard input.

    Raises:
        TimelineError: it cannot be read, or has no record.
    """
    if name == "-":
        found = parse(sys.stdin.buffer)
    else:
        try:
            with Path(name).open("rb") as stream:
                found = parse(stream)
        except OSError as error:
            raise TimelineError(f"{name} cannot be read: {error.strerror}") from None
    if not found.records:
        where = "standard input" if name == "-" else name
        text = f"there is no record in {where}; holdfast serve --timeline FILE writes them"
        if found.problems:
            text += f". {found.problems[0]}"
        raise TimelineError(text)
    return found


def parse(stream: BinaryIO) -> Found:
    """The records in a stream of JSON lines."""
    found = Found()
    size = 0
    for number, line, whole in _lines(stream):
        size += len(line)
        if size > LARGEST:
            found.problems.append(
                f"line {number} and what follows was not read: "
                f"a file is read up to {LARGEST // 1024 // 1024} MiB"
            )
            break
        if not line.strip():
            continue
        if len(line) > _LONGEST:
            found.problems.append(f"line {number} was left out: it is longer than 1 MiB")
            continue
        try:
            found.records.append(_record(line))
        except ValueError as error:
            if whole:
                found.problems.append(f"line {number} was left out: {error}")
            else:
                found.unfinished = True
    return found


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Number, text and whether it is whole, of each line; of a too long one only its beginning."""
    number = 0
    while line := stream.readline(_LONGEST + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(_LONGEST)):
            pass
        yield number, line, rest.endswith(b"\n")


def _record(line: bytes) -> Record:
    try:
        value: object = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg}, column {error.colno}") from None
    try:
        return record_from_dict(value)
    except OverflowError:
        raise ValueError("a number in it is too large") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
