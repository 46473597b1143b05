"""Which clients keep a second, on 13 bad servers: ours and the plain ones, in one run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from bench._harness import Cell, Check, Sheet, Tell
from bench.net import arena, ground
from bench.net.bad import FINE, SCENARIOS
from bench.net.cell import Result

__all__ = ["LATE", "QUICK", "VARIANTS", "measure", "shown"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
LATE: Final = 1.1
"""Seconds in which a call of one second has to be over."""
EXIT: Final = 1.0
"""Seconds in which the process should have ended after its call."""
QUICK: Final = 6.0
TOLD: Final = ("dns", "syn", "tls", "nohdr", "body", "up")
"""The scenarios in the table of what the caller learns."""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    cap = QUICK if quick else arena.CAP
    namespace = not ground.why_no_namespace()
    found: dict[tuple[str, str], Result] = {}
    absent: dict[str, str] = {}
    pairs = [(name, one) for one in (FINE.name, *SCENARIOS) for name in arena.CLIENTS]
    # Those that hang must not all begin last.
    random.Random(1).shuffle(pairs)
    for done, result in enumerate(arena.run(pairs, namespace=namespace, cap=cap)):
        if isinstance(result, dict):
            absent |= result
        else:
            found[result.client, result.scenario] = result
        tell(min(1.0, done / len(pairs)), "calls")
    names = [name for name in arena.CLIENTS if name not in absent]
    yield _times(names, found, cap, absent)
    yield _learnt(names, found)


def _times(
    names: list[str], found: dict[tuple[str, str], Result], cap: float, absent: dict[str, str]
) -> Sheet:
    sheet = Sheet(
        f"Calls of one second, on {len(SCENARIOS)} bad servers", ["client", "limit", *SCENARIOS]
    )
    for name in names:
        mine = [found[name, one] for one in SCENARIOS]
        how = arena.CLIENTS[name].how
        sheet.rows.append([name, how, *(shown(one, cap) for one in mine)])
        sheet.data += [asdict(one) for one in (found[name, FINE.name], *mine)]
        if arena.CLIENTS[name].ours:
            took = sorted(cap if one.took is None else one.took for one in mine)
            longest = Cell(took[-1], took[len(took) // 2])
            sheet.checks.append(Check(f"{name}: the longest of all", longest, LATE, "s"))
    sheet.notes = [
        "Seconds to the end of the call. **Bold** is what did not keep its second; `ok` came back "
        "as a success; `+9` is how many seconds later the process could end; `fd` is a connection "
        "that was left open when the client was closed.",
        "; ".join(f"{one.name}: {one.what}" for one in SCENARIOS.values()) + ".",
        _where(),
    ]
    if broken := [name for name in names if found[name, FINE.name].status != 200]:
        sheet.notes.append(f"**Not even a fine server is fine for**: {', '.join(broken)}.")
    sheet.notes += [f"Absent: {name}: {why}." for name, why in absent.items()]
    return sheet


def _where() -> str:
    if why := ground.why_no_namespace():
        return f"On loopback, with stand-ins for dropped packets and the dead name server: {why}."
    return (
        "In a network namespace: nftables drops what knocks in syn and syn3, and the name server "
        "of resolv.conf (its defaults: 2 attempts of 5 s) is a socket that nobody reads."
    )


def shown(one: Result, cap: float) -> str:
    """A cell of the table."""
    if one.took is None:
        return f"**>{cap:g}**"
    words = [] if one.error else ["ok"] if one.status == 200 else ["ok", str(one.status)]
    words.append(f"{one.took:.2f}" if 1 < one.took < 2 else f"{one.took:.1f}")
    bad = one.took > LATE or not one.error
    if one.exit is None or one.exit > EXIT:
        bad = True
        words.append("+?" if one.exit is None else f"+{one.exit:.0f}")
    if one.closed.descriptors.get("tcp"):
        bad = True
        words.append("fd")
    text = " ".join(words)
    return f"**{text}**" if bad else text


def _learnt(names: list[str], found: dict[tuple[str, str], Result]) -> Sheet:
    sheet = Sheet("What the caller is told", ["client", *TOLD])
    for name in names:
        sheet.rows.append([name, *(_told(found[name, one]) for one in TOLD)])
    sheet.notes = ["The class of the error, and the phase that it names; `never` came back."]
    return sheet


def _told(one: Result) -> str:
    if one.took is None:
        return "never"
    if not one.error:
        return f"success, {one.status}"
    return f"{one.error}: {one.phase}" if one.phase else one.error
