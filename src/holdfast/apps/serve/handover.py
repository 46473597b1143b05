"""What a worker process is given by its supervisor, as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast

from holdfast.apps.serve.plan import Plan
from holdfast.domain.instant import Instant

__all__ = ["Handover", "handover_from_json", "plan_from_plain", "plan_to_plain"]

_PATH: Final = "$path"
_TUPLE: Final = "$tuple"


@dataclass(frozen=True, slots=True)
class Handover:
    """See the module.

    Attributes:
        plan: what to host, and how.
        url: where the service listens, for people.
        sockets: numbers of the listening sockets, which the process has inherited.
        supervisor: pid of the process that looks after this one.
        slot: which of the workers this is, from 0 on.
        generation: how often the settings had changed when it was started.
        path: where the supervisor looks for modules.
        announced: monotonic instant at which the stop was announced (`holdfast prestop`).
    """

    plan: Plan
    url: str
    sockets: tuple[int, ...]
    supervisor: int
    slot: int
    generation: int
    path: tuple[str, ...]
    announced: Instant | None = None

    def to_json(self) -> str:
        """One line.

        Raises:
            TypeError: the plan has a value in it that is not plain.
        """
        return json.dumps(
            {
                "plan": plan_to_plain(self.plan),
                "url": self.url,
                "sockets": list(self.sockets),
                "supervisor": self.supervisor,
                "slot": self.slot,
                "generation": self.generation,
                "path": list(self.path),
                "announced": self.announced,
            }
        )


def handover_from_json(text: str | bytes) -> Handover:
    """What `Handover.to_json` has written.

    Raises:
        ValueError: it is something else, or of another version.
    """
    try:
        given: dict[str, Any] = json.loads(text)
        return Handover(
            plan=plan_from_plain(given["plan"]),
            url=str(given["url"]),
            sockets=tuple(int(number) for number in given["sockets"]),
            supervisor=int(given["supervisor"]),
            slot=int(given["slot"]),
            generation=int(given["generation"]),
            path=tuple(str(place) for place in given["path"]),
            announced=None if given["announced"] is None else float(given["announced"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not what a supervisor hands over: {error!r}") from None


def plan_to_plain(plan: Plan) -> dict[str, object]:
    """A plan as values of JSON.

    Raises:
        TypeError: there is a value in it that is not plain.
    """
    return {item.name: _plain(getattr(plan, item.name), item.name) for item in fields(plan)}


def plan_from_plain(given: Mapping[str, object]) -> Plan:
    """What `plan_to_plain` has made.

    Raises:
        TypeError: a setting is missing, or unknown.
    """
    return Plan(**cast("dict[str, Any]", {name: _rich(value) for name, value in given.items()}))


def _plain(value: object, where: str) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return {_PATH: str(value)}
        case tuple():
            items = cast("tuple[object, ...]", value)
            return {_TUPLE: [_plain(item, where) for item in items]}
        case list():
            return [_plain(item, where) for item in cast("list[object]", value)]
        case Mapping():
            table = cast("Mapping[str, object]", value)
            return {str(key): _plain(item, f"{where}.{key}") for key, item in table.items()}
        case _:
            raise TypeError(f"{where}: {value!r} cannot be handed over to a worker")


def _rich(value: object) -> object:
    if isinstance(value, list):
        return [_rich(item) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, object]", value)
    if table.keys() == {_PATH}:
        return Path(str(table[_PATH]))
    if table.keys() == {_TUPLE}:
        return tuple(_rich(item) for item in cast("list[object]", table[_TUPLE]))
    return {key: _rich(item) for key, item in table.items()}
