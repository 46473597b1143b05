"""What the facts mean, and what to do about it. Pure: the same facts, the same rulings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from holdfast.apps.doctor.facts import (
    BUSY,
    IDLE,
    Facts,
    FileFacts,
    HostFacts,
    KernelFacts,
    Lateness,
    NameFacts,
    PortFacts,
)
from holdfast.domain.instant import Duration, format_duration

__all__ = ["LEAST", "Level", "Ruling", "rule", "trusted"]

LEAST: Final[Duration] = 0.020
"""Seconds under which no deadline is called trusted: four times the interval at which threads of
Python hand over."""

_ROUND: Final = (LEAST, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_PART: Final = 10
"""A deadline is trusted whose lateness is at most one part in so many."""

_TRUSTED: Final = "timers.trusted."
_EARLY: Final[Duration] = 50e-6
_LATE: Final[Duration] = 0.005
_MUCH_TOO_LATE: Final[Duration] = 0.050
_FEW_FILES: Final = 1024
_MANY: Final = 0.7
_PATIENT: Final[Duration] = 5.0
_SLOW: Final[Duration] = 0.1


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Ruling:
    """One thing that follows.

    Attributes:
        id: stable, for programs: `timers.trusted`.
        level: how much it matters.
        what: what is so.
        do: what to do about it; empty where there is nothing to do.
    """

    id: str
    level: Level
    what: str
    do: str = ""


def rule(facts: Facts) -> list[Ruling]:
    """All rulings: what can be trusted, then the rest, those that matter most first."""
    found = [
        *_timers(facts.timers, facts.host),
        *_names(facts.names),
        *_ports(facts.ports),
        *_kernel(facts.kernel),
        *_files(facts.files),
    ]
    order = list(Level)
    return sorted(
        found, key=lambda ruling: (not ruling.id.startswith(_TRUSTED), -order.index(ruling.level))
    )


def trusted(timers: Sequence[Lateness]) -> Duration | None:
    """The shortest round deadline that ended within a tenth of itself each time; else none.

    Args:
        timers: one loop under one load, all waits.
    """
    worst = max((found.worst for found in timers), default=0.0)
    return next((at for at in _ROUND if worst * _PART <= at), None)


# -- timers --------------------------------------------------------------------------------------


def _timers(timers: Sequence[Lateness], host: HostFacts) -> Iterator[Ruling]:
    ours = [found for found in timers if found.timer == "holdfast"]
    for load in (IDLE, BUSY):
        for waiter in dict.fromkeys(found.waiter for found in ours):
            rows = [found for found in ours if (found.waiter, found.load) == (waiter, load)]
            yield from _trust(waiter, load, rows)
    early = [found for found in ours if found.earliest < 0]
    if early:
        least = min(found.earliest for found in early)
        yield Ruling(
            "timers.ours_early",
            Level.BAD,
            f"a deadline of Holdfast ended {format_duration(-least)} early, which it never should",
            "report it, with the output of: holdfast doctor net --json",
        )
    for waiter in dict.fromkeys(found.waiter for found in timers):
        rows = [found for found in timers if found.waiter == waiter and found.timer != "holdfast"]
        least = min((found.earliest for found in rows), default=0.0)
        if least < -_EARLY:
            yield Ruling(
                f"timers.{waiter}_early",
                Level.NOTE,
                f"{waiter} wakes up to {format_duration(-least)} early",
                "nothing for deadlines of Holdfast, which ask the clock again; asyncio.timeout and "
                "call_later of your own may end before their time on it",
            )
    yield from _late(ours, host)


def _trust(waiter: str, load: str, rows: Sequence[Lateness]) -> Iterator[Ruling]:
    if not rows:
        return
    least = trusted(rows)
    late = format_duration(max(found.worst for found in rows))
    where = f"{waiter}, {load}"
    name = f"{_TRUSTED}{waiter}.{load.replace(' ', '_')}"
    if least is None:
        yield Ruling(
            name,
            Level.BAD,
            f"{where}: no deadline can be trusted, timers are {late} late",
            "give the process more of a processor, or move what keeps it busy to another process",
        )
    else:
        yield Ruling(
            name,
            Level.OK,
            f"{where}: deadlines of {format_duration(least)} and more can be trusted, they end "
            f"within {late} ({_worst_of(rows)})",
        )


def _worst_of(rows: Sequence[Lateness]) -> str:
    return f"worst of {sum(found.count for found in rows)}"


def _late(ours: Sequence[Lateness], host: HostFacts) -> Iterator[Ruling]:
    at_rest = [found for found in ours if found.load == IDLE]
    beside = [found for found in ours if found.load == BUSY]
    idle = max((found.worst for found in at_rest), default=0.0)
    busy = max((found.worst for found in beside), default=0.0)
    if idle > _LATE:
        load = "" if host.load is None else f", load {host.load:.2g}"
        yield Ruling(
            "timers.idle_late",
            Level.BAD if idle > _MUCH_TOO_LATE else Level.WARNING,
            f"also with nothing else to do, the event loop wakes {format_duration(idle)} late "
            f"({_worst_of(at_rest)}); {host.cpus_reason}{load}",
            "look who else computes here; in a container, whether its quota throttles it "
            "(nr_throttled in cpu.stat)",
        )
    if busy > _LATE and busy > 2 * idle:
        yield Ruling(
            "timers.busy_late",
            Level.NOTE,
            f"one thread that computes makes the event loop wake {format_duration(busy)} late "
            f"({_worst_of(beside)}): it hands the interpreter over every "
            f"{format_duration(host.switch_interval)}",
            "let other processes compute; or shorten sys.setswitchinterval()",
        )


# -- names ---------------------------------------------------------------------------------------


def _names(names: NameFacts) -> Iterator[Ruling]:
    dead = [reply for reply in names.replies if reply.took is None]
    if dead and len(dead) == len(names.replies):
        yield Ruling(
            "names.dead",
            Level.BAD,
            f"no name server answers: {_why(names)}",
            "put one that can be reached into resolv.conf; until then only literal addresses and "
            "what is in the hosts file can be called",
        )
    elif dead:
        yield Ruling(
            "names.some_dead",
            Level.WARNING,
            f"a name server does not answer: {_why(names)}",
            "take it out of resolv.conf: the questions that go to it first are late by "
            f"{format_duration(names.timeout)}",
        )
    else:
        slowest = max((reply.took or 0.0 for reply in names.replies), default=0.0)
        yield Ruling(
            "names.answer",
            Level.WARNING if slowest > _SLOW else Level.OK,
            f"name servers answer within {format_duration(slowest)}",
            "use one that is nearer" if slowest > _SLOW else "",
        )
    if names.dead_searched > _PATIENT:
        what = f"when no server answers, getaddrinfo blocks for {format_duration(names.dead_name)}"
        if names.search:
            what += f", and for {format_duration(names.dead_searched)} with the search domains"
        yield Ruling(
            "names.patience",
            Level.WARNING,
            what,
            "nothing for calls of Holdfast, which give up at their share; for all else here: "
            "options timeout:1 attempts:1 in resolv.conf, or in the variable RES_OPTIONS",
        )
    if names.asked_first:
        yield Ruling(
            "names.ndots",
            Level.WARNING if names.asked_first > 1 else Level.NOTE,
            f"for api.example.com {names.asked_first} other names are asked for first "
            f"(ndots {names.ndots}, search {' '.join(names.search)})",
            "end names outside the cluster with a dot, or set ndots to 1 (dnsConfig of a pod)",
        )
    yield from _looked_up(names)


def _why(names: NameFacts) -> str:
    return ", ".join(f"{r.server} ({r.problem})" for r in names.replies if r.took is None)


def _looked_up(names: NameFacts) -> Iterator[Ruling]:
    for done in names.look_ups:
        took = format_duration(done.took)
        if done.name.endswith(".invalid."):
            if done.ended == "found":
                yield Ruling(
                    "names.invented",
                    Level.WARNING,
                    f"names that do not exist lead to {done.detail}",
                    "use a name server that does not invent answers: a wrong name here is a "
                    "connection to somebody else",
                )
        elif done.ended != "found":
            yield Ruling(
                "names.look_up",
                Level.BAD,
                f"{done.name}: {done.ended} after {took}: {done.detail}",
                "look at the name, at the servers above, and at hosts: in nsswitch.conf",
            )
        elif done.took > _SLOW:
            yield Ruling(
                "names.look_up",
                Level.WARNING,
                f"{done.name} took {took} to look up",
                "look at the servers above; end the name with a dot where search domains are tried",
            )
    late = names.bound_late
    yield Ruling(
        "names.bound",
        Level.OK if late < _MUCH_TOO_LATE else Level.WARNING,
        f"with a silent server, a look-up of Holdfast ends {format_duration(max(0.0, late))} "
        "after its limit",
        "" if late < _MUCH_TOO_LATE else "threads wake late here: see what is said of timers",
    )


# -- the kernel ----------------------------------------------------------------------------------


def _ports(ports: PortFacts | None) -> Iterator[Ruling]:
    if ports is None or not ports.total:
        return
    used = ports.to_busiest / ports.total
    text = f"{ports.first}-{ports.last} are {ports.total} ports for connections to one peer"
    if ports.to_busiest > 1:
        text += f"; {ports.busiest} has most, {ports.to_busiest} ({used:.0%})"
    yield Ruling(
        "ports.range",
        Level.OK if used < _MANY else Level.BAD,
        text,
        ""
        if used < _MANY
        else "keep connections instead of making new ones, or widen "
        "net.ipv4.ip_local_port_range: without a free port a connect fails at once",
    )
    for state, why in (
        ("CLOSE_WAIT", "their peers have gone, and programs here do not close them"),
        ("FIN_WAIT2", "their peers do not close; only those that a program still holds stay"),
    ):
        count = ports.states.get(state, 0)
        if count > _FEW_FILES:
            yield Ruling(
                f"ports.{state.lower()}",
                Level.WARNING,
                f"{count} connections are in {state}: {why}",
                "find who holds them: ss -tnp state " + state.lower().replace("_", "-"),
            )


def _kernel(kernel: KernelFacts) -> Iterator[Ruling]:
    if kernel.connect_gives_up is not None and kernel.connect_gives_up > _PATIENT:
        yield Ruling(
            "kernel.connect",
            Level.NOTE,
            "a connect that nobody answers ends by itself after "
            f"{format_duration(kernel.connect_gives_up)} (tcp_syn_retries)",
            "nothing for calls of Holdfast; give everything else that connects a time-out",
        )
    if kernel.write_gives_up is not None and kernel.write_gives_up > _PATIENT:
        yield Ruling(
            "kernel.write",
            Level.NOTE,
            "a connection whose peer has vanished ends by itself after "
            f"{format_duration(kernel.write_gives_up)} at least (tcp_retries2)",
            "nothing for calls of Holdfast, which end at their deadline; connections that are kept "
            "have no TCP_USER_TIMEOUT unless it is set: SocketOptions(user_timeout=...)",
        )


def _files(files: FileFacts) -> Iterator[Ruling]:
    if 0 <= files.soft <= _FEW_FILES:
        most = "" if files.hard < 0 else f" to {files.hard}"
        yield Ruling(
            "files.limit",
            Level.WARNING,
            f"this process may open {files.soft} files, and each connection is one",
            f"raise it{most} without asking anybody: ulimit -n, or LimitNOFILE= of the unit",
        )
    else:
        soft = "as many files as it likes" if files.soft < 0 else f"{files.soft} files"
        yield Ruling("files.limit", Level.OK, f"this process may open {soft}")
    if files.system_open is not None and files.system_most:
        used = files.system_open / files.system_most
        if used > _MANY:
            yield Ruling(
                "files.system",
                Level.BAD,
                f"{files.system_open} of {files.system_most} files of the machine are open",
                "find who holds them, or raise fs.file-max",
            )
