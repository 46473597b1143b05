"""W3C Baggage: names and values that travel with a request.

Caps of the specification: 8192 bytes, 64 members. Properties of a member (after `;`) are dropped:
a context holds plain values. Values are percent-encoded UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote_to_bytes

__all__ = ["NO_BAGGAGE", "format_baggage", "parse_baggage"]

NO_BAGGAGE: Final[Mapping[str, str]] = MappingProxyType({})

_LONGEST: Final = 8192
_MEMBERS: Final = 64
_KEY: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
# The octets of a value that need no escape, less `%` itself.
_SAFE: Final = "!#$&'()*+-./:<=>?@[]^_`{|}~"


def parse_baggage(raw: bytes) -> tuple[Mapping[str, str], bool]:
    """The members of a `baggage` header, and whether every one of them was understood.

    Malformed members and those beyond the caps are left out. Never raises. Several headers are one
    list: join them with a comma first.
    """
    clean = len(raw) <= _LONGEST
    if not clean:
        # A member that the cap cuts in two must not survive as half a value.
        raw = raw[:_LONGEST].rpartition(b",")[0]
    members = raw.decode("latin-1").split(",")
    if len(members) > _MEMBERS:
        members, clean = members[:_MEMBERS], False
    found: dict[str, str] = {}
    for member in members:
        key, equals, value = member.partition(";")[0].partition("=")
        key, value = key.strip(" \t"), value.strip(" \t")
        if not equals or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            clean = clean and not member.strip(" \t")
            continue
        found[key] = unquote_to_bytes(value).decode("utf-8", "replace") if "%" in value else value
    return (MappingProxyType(found) if found else NO_BAGGAGE), clean


def format_baggage(baggage: Mapping[str, str]) -> str:
    """A `baggage` header value, in the order of the mapping; empty when nothing can be sent.

    A name that is not a token is left out; so is every member that does not fit in the caps.
    """
    parts: list[str] = []
    size = -1
    for key, value in baggage.items():
        if not _KEY.fullmatch(key):
            continue
        part = f"{key}={quote(value, safe=_SAFE, errors='replace')}"
        if size + 1 + len(part) > _LONGEST:
            continue
        parts.append(part)
        size += 1 + len(part)
        if len(parts) == _MEMBERS:
            break
    return ",".join(parts)
