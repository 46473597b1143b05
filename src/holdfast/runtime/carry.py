"""The ambient context as a plain dict, for queues and brokers, and back into a scope.

`inject` writes what HTTP carries, in the same headers, and two of its own (see
`domain.wire.carrier`): what waits in a queue must know for how long. `extract` makes a scope of
whatever headers a broker hands out, and never raises because of them.

The traps: `extract` believes a deadline, since the worst that a wrong one does is to end work too
soon; pass `cap` where a sender could ask for too much. It does not believe a stage unless it is
told to. And a wall clock is only asked where sender and receiver do not share a monotonic one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from functools import cache
from hashlib import blake2s
from pathlib import Path
from secrets import token_bytes
from typing import Final

from holdfast.domain.cause import CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import InsufficientBudget, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.tree import Outcome, Refusal
from holdfast.domain.wire.carrier import (
    PUT_AT_HEADER,
    UNTIL_HEADER,
    Due,
    due,
    format_put_at,
    format_until,
    parse_put_at,
    parse_until,
    raw_pairs,
)
from holdfast.domain.wire.inbound import InboundCodec, OutboundCodec
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.domain.wire.trace import identify
from holdfast.runtime.ambient import hop_reserve
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id, monotonic, wall
from holdfast.runtime.driver import driver_of
from holdfast.runtime.hosted import HostedNode, seconds_of
from holdfast.runtime.scope import AMBIENT, Scope, ambient

__all__ = ["Received", "extract", "inject"]

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = Path("/proc/self/ns/time")
_KEY: Final = token_bytes(16)


@cache
def _host_clock() -> str:
    """A name for the monotonic clock of this host; empty where it cannot be told from others.

    It begins with the boot of the kernel, and a time namespace may move it. Both are hashed: what
    goes to a broker need not tell strangers which machine it comes from.
    """
    try:
        boot = _BOOT.read_text("ascii").strip()
    except OSError:
        return ""
    try:
        space = str(_TIME_NAMESPACE.stat().st_ino)
    except OSError:  # a kernel without time namespaces
        space = "0"
    return blake2s(f"{boot}.{space}".encode(), digest_size=8).hexdigest()


def _clock_name(now: Callable[[], Instant]) -> str:
    """The name of a clock: that of the host, or of a loop that brings its own time.

    The latter means something in this process alone. It is made of an address in its memory, which
    is nobody else's business, so the hash has a key.
    """
    if now is monotonic:
        return _host_clock()
    told = f"{os.getpid()}.{id(getattr(now, '__self__', now))}".encode()
    return f"loop.{blake2s(told, digest_size=8, key=_KEY).hexdigest()}"


def _clock(here: HostedNode | None) -> Callable[[], Instant]:
    """The clock that a scope uses which is opened here."""
    if here is not None:
        return here.driver.now
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return monotonic
    return driver_of(loop).now


@cache
def _outbound(wire: WireSettings) -> OutboundCodec:
    return OutboundCodec.of(wire)


@cache
def _inbound(wire: WireSettings, trust_stage: bool) -> InboundCodec:
    return InboundCodec.of(replace(wire, trust_stage=trust_stage or wire.trust_stage))


@cache
def _of_time(wire: WireSettings) -> frozenset[str]:
    named = {name.decode("latin-1") for name, _ in (*wire.headers.inbound, *wire.headers.outbound)}
    return frozenset({PUT_AT_HEADER, UNTIL_HEADER, *named})


# -- out -------------------------------------------------------------------------------------------


def inject(
    carrier: MutableMapping[str, str] | None = None,
    *,
    detached: bool = False,
    refuse_below: Duration = 0.0,
    wire: WireSettings = DEFAULT_WIRE,
) -> dict[str, str]:
    """The ambient context as headers, all of them texts: deadline, identity, stage, baggage.

    Args:
        carrier: is given the headers as well. What it had of ours is replaced, and a deadline that
            it had is taken out where there is none now.
        detached: without a deadline, for work that must be done whoever waits; identity and stage
            go along.
        refuse_below: seconds that the work needs at least.
        wire: names and grammars of the headers.

    Raises:
        InsufficientBudget: nothing is left, or less than `refuse_below`; `carrier` is unchanged.
    """
    here = ambient()
    carried = (here or AMBIENT.get() or _Nobody).carried
    now = _clock(here)
    left: Duration | None = None
    at = NEVER
    if here is not None and not detached and here.limit != NEVER:
        instant = now()
        reserve = hop_reserve()
        at = here.limit - reserve
        left = at - instant
        if left <= 0 or left < refuse_below:
            raise _refused(here, instant, here.limit - instant, max(reserve, refuse_below))
    found = dict(
        _outbound(wire).headers(left, carried.identity, "", carried.stage, carried.baggage)
    )
    found[PUT_AT_HEADER] = format_put_at(wall())
    if left is not None and at >= 0 and (clock := _clock_name(now)):
        found[UNTIL_HEADER] = format_until(clock, at)
    if carrier is not None:
        _write(carrier, found, _of_time(wire))
    return found


class _Nobody:
    carried: Carried = ANONYMOUS


def _refused(
    here: HostedNode, now: Instant, left: Duration, needed: Duration
) -> InsufficientBudget:
    here.driver.counts["refused.too_little"] += 1
    detail = f"not sent, {format_duration(max(0.0, left))} left"
    if needed > 0:
        detail += f", {format_duration(needed)} needed"
    return InsufficientBudget(here.cause_of(CauseKind.DEADLINE, now, detail))


def _write(
    carrier: MutableMapping[str, str], found: dict[str, str], of_time: frozenset[str]
) -> None:
    for key in [key for key in carrier if key.lower() in of_time or key.lower() in found]:
        del carrier[key]
    carrier.update(found)


# -- in --------------------------------------------------------------------------------------------


class Received(Scope):
    """The scope of something that came out of a queue; see `extract`.

    Attributes:
        waited: seconds that it lay in the queue; 0.0 where that is not known.
        malformed: names of headers that were ignored because they were not in their grammar.
    """

    waited: Duration = 0.0
    malformed: tuple[str, ...] = ()
    due: Due = Due()
    read_at: Instant = 0.0

    def refused(self, refusal: Refusal, now: Instant) -> ScopeEnded:
        """See `Scope`; what expired in the queue is told from what ran too long."""
        above = None if self.parent is None else self.parent.reached()
        if refusal is not Refusal.EXPIRED or above is not None or now < self.at:
            return super().refused(refusal, now)
        self.outcome = Outcome.REFUSED
        self.driver.counts["carry.expired"] += 1
        waited = self.waited + max(0.0, now - self.read_at)
        detail = f"waited {format_duration(waited)} in the queue, so its body did not run"
        cause = self.cause_of(CauseKind.DEADLINE, now, detail)
        return InsufficientBudget(replace(cause, budget=self.due.promised, elapsed=waited))


def extract(
    carrier: object,
    *,
    name: str = "job",
    cap: Duration = NEVER,
    trust_stage: bool = False,
    wire: WireSettings = DEFAULT_WIRE,
) -> Received:
    """A scope for what came with these headers; enter it with `async with`, or `with` in threads.

        async with holdfast.carry.extract(message.headers, name="resize") as scope:
            await resize(message.body)

    It has the deadline, identity and baggage that were sent, and is bounded by the scope around it
    as every scope is. Headers that make no sense are ignored, and counted as `carry.malformed`.

    Args:
        carrier: a mapping, or pairs, of texts or bytes; whatever else comes says nothing.
        name: of the scope.
        cap: seconds from now on that are granted at most, also where no deadline was sent.
        trust_stage: whether to believe the release stage that was sent.
        wire: names and grammars of the headers.

    Raises:
        TypeError: `cap` is not a number.
        ValueError: `cap` is nan.

    Raises, on entering:
        InsufficientBudget: the deadline has passed in the queue; the body does not run.
    """
    most = seconds_of(cap, "extract()")
    if most != most:
        raise ValueError("a cap must be a number, got nan")
    pairs, odd = raw_pairs(carrier)
    inbound = _inbound(wire, trust_stage).read(pairs)
    now = _clock(ambient())
    put_at, until, malformed = _times(pairs, now)
    instant = now()
    found = due(inbound.left, put_at, until, instant, wall(), most)
    identity = identify(
        inbound.trace, span_id=fresh_span_id(), new_trace=fresh_trace_id, sample=wire.sample
    )
    made = Received(name)
    made.at = found.at
    made.special = True
    made.given = Carried(identity, inbound.stage, inbound.baggage)
    made.due, made.waited, made.read_at = found, found.waited, instant
    made.malformed = (*inbound.malformed, *malformed, *(("(pairs)",) if odd else ()))
    _count(made)
    return made


def _times(
    pairs: list[tuple[bytes, bytes]], now: Callable[[], Instant]
) -> tuple[float | None, Instant | None, tuple[str, ...]]:
    put_at: float | None = None
    until: Instant | None = None
    malformed: list[str] = []
    for name, value in pairs:
        if name == b"holdfast-put-at":
            found = parse_put_at(value)
            if found is None:
                malformed.append(PUT_AT_HEADER)
            elif put_at is None or found < put_at:
                put_at = found
        elif name == b"holdfast-until":
            told = parse_until(value)
            if told is None:
                malformed.append(UNTIL_HEADER)
            elif told[0] == _clock_name(now):
                until = told[1] if until is None else min(until, told[1])
    return put_at, until, tuple(malformed)


def _count(made: Received) -> None:
    if not made.malformed and not made.due.skewed:
        return
    here = ambient()
    try:
        counts = (driver_of(asyncio.get_running_loop()) if here is None else here.driver).counts
    except RuntimeError:  # a plain function without a loop: nobody reads counters there
        return
    counts["carry.malformed"] += len(made.malformed)
    counts["carry.skewed"] += made.due.skewed
