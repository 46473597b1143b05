"""Answers of name servers, kept for as long as each of them allows.

An answer is *fresh* until its own time to live is over. Then it is *stale*: it is asked for again,
and serves only when that fails, for as long as a bound allows (RFC 8767). That a name or a type
does not exist is an answer as well (RFC 2308).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

from holdfast.domain.instant import Duration, Instant

__all__ = ["Answer", "CacheTerms", "Found", "Freshness", "NameCache", "NameStats", "canonical"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name server says of one name and one type.

    Attributes:
        addresses: in its order; none when there is no such name, or none of this type.
        ttl: seconds that it may be kept: the least along a chain of CNAMEs, and of an answer that
            there is nothing the minimum of the SOA record. Zero: use it once.
        exists: whether the name exists, with records of whatever type.
    """

    addresses: tuple[str, ...]
    ttl: Duration
    exists: bool = True


class Freshness(Enum):
    """What an answer that is kept may be used for."""

    FRESH = "fresh"
    """Use it."""
    AGING = "aging"
    """Use it, and ask again meanwhile: it is about to end."""
    STALE = "stale"
    """Ask again; use it only if that fails."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that is kept.

    Attributes:
        answer: what was said.
        freshness: what it may be used for.
        until: when what may be done with it changes; before that nobody needs to look again.
        hold: whether asking again has failed a short while ago: use what is stale at once.
    """

    answer: Answer
    freshness: Freshness
    until: Instant
    hold: bool = False


@dataclass(frozen=True, slots=True)
class CacheTerms:
    """How long answers are kept.

    Attributes:
        floor: seconds that an answer is fresh at the least, whatever it says: against records of
            one second that nobody changes. One that may be used only once, with a time to live of
            zero, is not kept all the same.
        ceiling: seconds that an answer is fresh at the most, whatever it says. A wrong record with
            a time to live of a year must not be a problem for a year (RFC 8767, section 4).
        negative_ceiling: the same for answers that there is nothing (RFC 2308, section 5, asks for
            one to three hours at the most; a name that is about to be made should not wait).
        stale: seconds that an answer may serve after its end, when nobody answers (RFC 8767,
            section 5, proposes one to three days).
        recheck: seconds that nobody is asked again after asking has failed and something stale is
            there (RFC 8767, section 5, proposes 30). As long is remembered that asking for the
            other type of a name that has addresses had no answer: such servers exist.
        aging: the last part of the life of an answer, from 0 to 1, in which whoever uses it has it
            asked for again, ahead of its end.
        most: names and types that are kept; the one that was not used for longest goes.

    Raises:
        ValueError: a number is negative, or the floor is above a ceiling.
    """

    floor: Duration = 0.0
    ceiling: Duration = 3600.0
    negative_ceiling: Duration = 60.0
    stale: Duration = 86_400.0
    recheck: Duration = 30.0
    aging: float = 0.1
    most: int = 4096

    def __post_init__(self) -> None:
        for name in ("floor", "ceiling", "negative_ceiling", "stale", "recheck", "aging"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.floor <= min(self.ceiling, self.negative_ceiling):
            raise ValueError(f"a floor of {self.floor} s is above a ceiling")
        if self.aging > 1:
            raise ValueError(f"aging is a part of a life, at most 1, got {self.aging}")
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")


_TERMS: Final = CacheTerms()


@dataclass(slots=True)
class NameStats:
    """What happened to look-ups, counted since the beginning.

    Attributes:
        hits: answered from fresh answers.
        negative_hits: of these, that there is nothing.
        misses: had to be asked.
        shared: waited for a question that was under way already.
        stale: answered from what was stale, since nobody answered.
        asked: questions that went out.
        failed: of these, without an answer.
        evicted: answers that gave way to others.
        size: answers that are kept now.
    """

    hits: int = 0
    negative_hits: int = 0
    misses: int = 0
    shared: int = 0
    stale: int = 0
    asked: int = 0
    failed: int = 0
    evicted: int = 0
    size: int = 0


class _Entry:
    __slots__ = ("aging_at", "answer", "fresh_until", "hold_until", "stale_until")

    def __init__(self, answer: Answer, now: Instant, ttl: Duration, terms: CacheTerms) -> None:
        self.answer = answer
        self.fresh_until = now + ttl
        self.aging_at = now + ttl * (1.0 - terms.aging)
        # That there is nothing does not serve when it is stale: it would hide what is new.
        self.stale_until = self.fresh_until + (terms.stale if answer.addresses else 0.0)
        self.hold_until: Instant = now

    def found(self, now: Instant) -> Found:
        hold = now < self.hold_until
        if now >= self.fresh_until:
            until = min(self.hold_until, self.stale_until) if hold else now
            return Found(self.answer, Freshness.STALE, until, hold)
        if now < self.aging_at or hold:
            until = min(self.fresh_until, max(self.aging_at, self.hold_until))
            return Found(self.answer, Freshness.FRESH, until)
        return Found(self.answer, Freshness.AGING, now)


class NameCache:
    """Answers by name and type. Pure: whoever uses it brings the time, and a lock if need be."""

    def __init__(self, terms: CacheTerms = _TERMS) -> None:
        self.terms = terms
        self.evicted = 0
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._silent: OrderedDict[tuple[str, str], Instant] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, name: str, kind: str, now: Instant) -> Found | None:
        """What is kept of a name and a type, or none."""
        key = (name, kind)
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.stale_until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry.found(now)

    def silent(self, name: str, kind: str, now: Instant) -> bool:
        """Whether nothing is kept, and asking had no answer a short while ago."""
        return now < self._silent.get((name, kind), now)

    def store(self, name: str, kind: str, answer: Answer, now: Instant) -> None:
        """Keep an answer, in place of an older one. One that may be used only once is not kept."""
        terms = self.terms
        key = (name, kind)
        self._entries.pop(key, None)
        self._silent.pop(key, None)
        if not answer.ttl > 0:
            return
        ceiling = terms.ceiling if answer.addresses else terms.negative_ceiling
        ttl = min(max(answer.ttl, terms.floor), ceiling)
        if not ttl > 0:
            return
        self._entries[key] = _Entry(answer, now, ttl, terms)
        while len(self._entries) > terms.most:
            self._entries.popitem(last=False)
            self.evicted += 1

    def failed(self, name: str, kind: str, now: Instant) -> None:
        """Asking has failed: what is kept serves on, and nobody is asked for a while."""
        key = (name, kind)
        entry = self._entries.get(key)
        if entry is not None and now < entry.stale_until:
            entry.hold_until = now + self.terms.recheck
            return
        self._silent.pop(key, None)
        self._silent[key] = now + self.terms.recheck
        while len(self._silent) > self.terms.most:
            self._silent.popitem(last=False)

    def forget(self, name: str | None = None) -> None:
        """Drop everything, or what is kept of one name."""
        for kept in (self._entries, self._silent):
            if name is None:
                kept.clear()
                continue
            for key in [key for key in kept if key[0] == name]:
                del kept[key]


def canonical(name: str) -> str:
    """A name as it is compared: in lower case, without the dot at its end."""
    return name.rstrip(".").lower()
