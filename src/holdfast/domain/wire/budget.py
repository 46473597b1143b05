"""Codecs of the time left. Deadlines cross hosts as what is left, never as instants.

Sources: Envoy's HTTP router filter (`x-envoy-expected-rq-timeout-ms`), gRPC over HTTP/2
(`grpc-timeout`), the Connect protocol (`connect-timeout-ms`).

Two rules hold for every grammar. Encoding rounds down, so that the absolute deadline never moves
later over any number of hops. Decoding tells three things apart: seconds left, `0.0` for a
well-formed zero or negative value (expired), and `None` for what is not in the grammar (ignored).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import Duration

__all__ = [
    "DEFAULT_HEADERS",
    "GRAMMARS",
    "LONGEST",
    "BudgetHeaders",
    "Decode",
    "Encode",
    "budget_headers",
    "decode_connect",
    "decode_grpc",
    "decode_millis",
    "decode_seconds",
    "decoder",
    "encode_connect",
    "encode_grpc",
    "encode_millis",
    "encode_seconds",
    "outbound",
    "tightest",
    "valid_name",
]

Decode: TypeAlias = Callable[[bytes], Duration | None]
Encode: TypeAlias = Callable[[Duration], str]

LONGEST: Final[Duration] = 315_576_000.0
"""Seconds in ten years of 365.25 days. A longer time from outside is taken for garbage."""

_TOKEN: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_DECIMAL: Final = re.compile(rb"([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_MILLIS_DIGITS: Final = 16
_CONNECT_DIGITS: Final = 10
_GRPC_DIGITS: Final = 8
# Finest first: value per second for the parts of one, seconds per value for the multiples.
_GRPC_PARTS: Final = (("n", 1_000_000_000), ("u", 1_000_000), ("m", 1_000), ("S", 1))
_GRPC_MULTIPLES: Final = (("M", 60), ("H", 3600))
_GRPC_PER: Final = {ord(unit): per for unit, per in _GRPC_PARTS}
_GRPC_OF: Final = {ord(unit): size for unit, size in _GRPC_MULTIPLES}


def valid_name(name: str) -> bool:
    """Whether a text is a lower-case header name: 1 to 64 characters of an HTTP token."""
    return _TOKEN.fullmatch(name) is not None


def _whole_millis(raw: bytes, digits: int) -> Duration | None:
    text = raw.strip(b" \t")
    if not text.isdigit():
        if text[:1] == b"-" and text[1:].isdigit() and len(text) <= digits + 1:
            return 0.0
        return None
    if len(text) > digits:
        return None
    seconds = int(text) / 1000
    return seconds if seconds <= LONGEST else None


def decode_millis(raw: bytes) -> Duration | None:
    """Seconds left from whole milliseconds (`x-envoy-expected-rq-timeout-ms`); see the module."""
    return _whole_millis(raw, _MILLIS_DIGITS)


def decode_connect(raw: bytes) -> Duration | None:
    """Seconds left from `connect-timeout-ms`: whole milliseconds of at most ten digits."""
    return _whole_millis(raw, _CONNECT_DIGITS)


def decode_seconds(raw: bytes) -> Duration | None:
    """Seconds left from decimal seconds, `12` or `1.25`: at most nine digits on either side."""
    text = raw.strip(b" \t")
    sign = text[:1] == b"-"
    match = _DECIMAL.fullmatch(text[1:] if sign else text)
    if match is None:
        return None
    if sign:
        return 0.0
    seconds = float(text)
    return seconds if seconds <= LONGEST else None


def decode_grpc(raw: bytes) -> Duration | None:
    """Seconds left from `grpc-timeout`: one to eight digits and a unit of `H M S m u n`."""
    text = raw.strip(b" \t")
    digits = text[:-1]
    if not digits.isdigit():
        if digits[:1] != b"-" or not digits[1:].isdigit():
            return None
        digits = digits[1:]
        expired = True
    else:
        expired = False
    if len(digits) > _GRPC_DIGITS:
        return None
    unit = text[-1]
    if per := _GRPC_PER.get(unit):
        return 0.0 if expired else int(digits) / per
    if size := _GRPC_OF.get(unit):
        seconds = float(int(digits) * size)
        return 0.0 if expired else seconds if seconds <= LONGEST else None
    return None


def _floored(seconds: Duration, per: int) -> int:
    """The greatest n with `n / per <= seconds`: `seconds * per` itself may round up, or down."""
    n = math.floor(seconds * per) + 1
    while n > 0 and n / per > seconds:
        n -= 1
    return n


def _bounded(seconds: Duration, longest: Duration) -> Duration:
    # The order of the comparisons makes NaN, which should not get here, an expired budget.
    return min(seconds, longest) if seconds > 0 else 0.0


def encode_millis(seconds: Duration) -> str:
    """Whole milliseconds, rounded down; `"0"` when nothing is left."""
    return str(_floored(_bounded(seconds, LONGEST), 1000))


def encode_connect(seconds: Duration) -> str:
    """Whole milliseconds, rounded down, at most ten digits (115 days)."""
    return str(_floored(_bounded(seconds, 9_999_999.999), 1000))


def encode_seconds(seconds: Duration) -> str:
    """Decimal seconds with three places, rounded down; `"0"` when nothing is left."""
    millis = _floored(_bounded(seconds, LONGEST), 1000)
    # Read back as the double nearest to the decimal, which is what `millis / 1000` is as well.
    return f"{millis // 1000}.{millis % 1000:03d}" if millis else "0"


def encode_grpc(seconds: Duration) -> str:
    """`grpc-timeout` in the finest unit that fits in eight digits, rounded down; `"0n"` at 0."""
    left = _bounded(seconds, LONGEST)
    for unit, per in _GRPC_PARTS:
        n = _floored(left, per)
        if n < 10**_GRPC_DIGITS:
            return f"{n}{unit}"
    minutes = math.floor(left / 60)
    return f"{minutes if minutes * 60 <= left else minutes - 1}M"


GRAMMARS: Final[dict[str, tuple[Decode, Encode]]] = {
    "millis": (decode_millis, encode_millis),
    "seconds": (decode_seconds, encode_seconds),
    "grpc": (decode_grpc, encode_grpc),
    "connect": (decode_connect, encode_connect),
}
"""Decoder and encoder of every grammar, by the name that configuration uses."""

_KNOWN: Final = {
    "x-envoy-expected-rq-timeout-ms": "millis",
    "grpc-timeout": "grpc",
    "connect-timeout-ms": "connect",
}


@dataclass(frozen=True, slots=True)
class BudgetHeaders:
    """Which headers carry the time left, each with the name of its grammar.

    Attributes:
        inbound: headers that are read, lower-case; the tightest valid value wins.
        outbound: headers that are sent, lower-case.

    Raises:
        ConfigError: a name is not a header name, or a grammar is not known.
    """

    inbound: tuple[tuple[bytes, str], ...] = tuple((k.encode(), g) for k, g in _KNOWN.items())
    outbound: tuple[tuple[bytes, str], ...] = ((b"x-envoy-expected-rq-timeout-ms", "millis"),)

    def __post_init__(self) -> None:
        for side, pairs in (("inbound", self.inbound), ("outbound", self.outbound)):
            for index, (name, grammar) in enumerate(pairs):
                path = f"headers.{side}[{index}]"
                if not valid_name(name.decode("latin-1")):
                    raise ConfigError(path, f"{name!r} is not a lower-case header name")
                if grammar not in GRAMMARS:
                    known = ", ".join(GRAMMARS)
                    raise ConfigError(path, f"unknown grammar {grammar!r}; use one of: {known}")


DEFAULT_HEADERS: Final = BudgetHeaders()


def _pair(path: str, text: str) -> tuple[bytes, str]:
    name, colon, grammar = (part.strip().lower() for part in text.partition(":"))
    if not colon:
        grammar = _KNOWN.get(name, "")
    if not valid_name(name):
        raise ConfigError(path, f"{text!r} is not a header name")
    if not grammar:
        hint = f"write '{name}: millis', or one of: {', '.join(GRAMMARS)}"
        raise ConfigError(path, f"the grammar of header {name!r} is not known; {hint}")
    return name.encode(), grammar


def budget_headers(inbound: Iterable[str], outbound: Iterable[str]) -> BudgetHeaders:
    """Headers from configuration: a well-known name, or `name: grammar` for one of your own.

    Raises:
        ConfigError: not a header name, an unknown grammar, or an own name without one.
    """
    return BudgetHeaders(
        inbound=tuple(_pair(f"headers.inbound[{i}]", text) for i, text in enumerate(inbound)),
        outbound=tuple(_pair(f"headers.outbound[{i}]", text) for i, text in enumerate(outbound)),
    )


def decoder(grammar: str) -> Decode:
    """The decoder of a grammar, a key of `GRAMMARS`."""
    return GRAMMARS[grammar][0]


def tightest(left: Duration | None, other: Duration | None) -> Duration | None:
    """The smaller of two budgets in seconds, where `None` is no budget at all."""
    if left is None:
        return other
    return left if other is None or left <= other else other


def outbound(
    left: Duration | None, reserve: Duration = 0.0, headers: BudgetHeaders = DEFAULT_HEADERS
) -> list[tuple[str, str]]:
    """Headers that tell the next hop what is left.

    Args:
        left: seconds left; `None`, infinite or NaN is no deadline, which sends nothing.
        reserve: seconds that this hop keeps for itself.
        headers: which headers to send.
    """
    if left is None or math.isnan(left) or left == math.inf:
        return []
    rest = left - reserve
    return [(name.decode(), GRAMMARS[grammar][1](rest)) for name, grammar in headers.outbound]
