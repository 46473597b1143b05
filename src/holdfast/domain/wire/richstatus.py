"""A cause in the rich status of gRPC, the metadata `grpc-status-details-bin`.

Sources: google/rpc/status.proto (code = 1, message = 2, details = 3), google/protobuf/any.proto
(type_url = 1, value = 2), google/rpc/error_details.proto (ErrorInfo: reason = 1, domain = 2,
metadata = 3, a map, which is a list of entries of key = 1 and value = 2).

Everybody's libraries read it: an `ErrorInfo` of the domain `holdfast`, its reason is the kind of
the cause, `DEADLINE_EXCEEDED`, and its metadata say the rest: `scope`, `hop`, `budget_ms` (absent
without a deadline), `elapsed_ms`, `note`, and `below`, the hops below in the grammar of the header
`deadline-exceeded`.

Written by hand, as the domain knows no library. gRPC refuses metadata of more than 8 KiB, with an
error of its own in place of what they say. All of ours fits in 6 KiB of these as they are sent, so
that there is room for others: the details of the call, as `cut_message` makes them, in 768 bytes,
the header `deadline-exceeded` in 2 KiB, and the base64 of a status, which is a third longer than it
is, in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.wire.budget import LONGEST
from holdfast.domain.wire.problem import encode_cause_header, parse_cause_header, problem_type

__all__ = [
    "DETAILS_KEY",
    "DOMAIN",
    "cut_message",
    "encode_status",
    "parse_status",
    "printable",
    "status_names",
]

DETAILS_KEY: Final = "grpc-status-details-bin"
"""The key of the trailing metadata."""
DOMAIN: Final = "holdfast"
"""`ErrorInfo.domain` of what is written here."""

_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"
_INFO_NAME: Final = "/google.rpc.ErrorInfo"
_REASONS: Final = {
    kind: problem_type(kind).rpartition(":")[2].replace("-", "_").upper() for kind in CauseKind
}
_KINDS: Final = {reason: kind for kind, reason in _REASONS.items()}

_MOST: Final = 2496
_READ: Final = 16_384
_TEXT: Final = 256
_MESSAGE: Final = 768
_PERCENT: Final = 0x25
_FIELDS: Final = 64
_NAMES: Final = 16

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_VARINT_BYTES: Final = 10


# -- written -------------------------------------------------------------------------------------


def encode_status(code: int, message: str, cause: Cause) -> bytes:
    """A `google.rpc.Status` of at most 2496 bytes with a `google.rpc.ErrorInfo`.

    Texts are cut to 256 bytes, the message as `cut_message` does, and the hops below to what fits.
    Of several causes below the nearest is told.

    Args:
        code: of the status, 4 for `DEADLINE_EXCEEDED`; gRPC wants it equal to that of the call.
        message: of the status; readers want it equal to the details of the call, so those have to
            go through `cut_message` too.
        cause: what ended the work.
    """
    metadata = {"scope": _short(cause.scope)}
    if cause.hop:
        metadata["hop"] = _short(cause.hop)
    if cause.budget < math.inf:
        metadata["budget_ms"] = _millis(cause.budget)
    metadata["elapsed_ms"] = _millis(cause.elapsed)
    if cause.detail:
        metadata["note"] = _short(cause.detail)
    message = cut_message(message)
    status = _status(code, message, cause.kind, metadata)
    below = encode_cause_header(cause.below[0]) if cause.below else ""
    while below:
        longer = _status(code, message, cause.kind, metadata | {"below": below})
        if len(longer) <= _MOST:
            return longer
        below = below.rpartition(", ")[0]
    return status


def cut_message(message: str) -> str:
    """The beginning of a text that gRPC sends as details of a call in at most 768 bytes.

    gRPC writes all bytes of UTF-8 but those that print in ASCII as three, `%E8`: a text of 512
    Chinese characters is 4.5 KiB long then, which is more than half of what metadata may be.
    """
    size = 0
    for index, char in enumerate(message):
        size += sum(
            1 if 0x20 <= byte < 0x7F and byte != _PERCENT else 3
            for byte in char.encode("utf-8", "replace")
        )
        if size > _MESSAGE:
            return message[:index]
    return message


def _status(code: int, message: str, kind: CauseKind, metadata: dict[str, str]) -> bytes:
    info = _text_field(1, _REASONS[kind]) + _text_field(2, DOMAIN)
    for key, value in metadata.items():
        info += _field(3, _text_field(1, key) + _text_field(2, value))
    detail = _text_field(1, _INFO) + _field(2, info)
    said = message.encode("utf-8", "replace").decode()
    # A code is an int32, and a negative one is ten bytes long, as if it were an int64.
    number = _varint(_VARINT | 1 << 3) + _varint(code & (1 << 64) - 1) if code else b""
    return number + _text_field(2, said) + _field(3, detail)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _text_field(number: int, value: str) -> bytes:
    return _field(number, value.encode()) if value else b""


def printable(value: str, longest: int = _TEXT) -> str:
    """A text of somebody else without control characters and line breaks, cut to a length.

    What is in a record or a note goes to logs and terminals, where it could stand for a line of its
    own, or change what is shown.

    Args:
        value: the text.
        longest: characters.
    """
    value = value[:longest]
    return value if value.isprintable() else "".join(c for c in value if c.isprintable())


def _short(value: str) -> str:
    return printable(value).encode()[:_TEXT].decode("utf-8", "ignore")


def _millis(seconds: Duration) -> str:
    return f"{round(min(max(seconds, 0.0), LONGEST) * 1000, 3):.15g}"


# -- read ----------------------------------------------------------------------------------------


class _Broken(Exception):
    """These bytes are no message."""


def parse_status(data: bytes) -> Cause | None:
    """The cause in a status of ours; `None` for anything else. Never raises.

    More than 16 KiB is not looked at. Control characters are removed, texts are cut to 256
    characters, numbers that are not finite count as absent.
    """
    for reason, domain, metadata in _infos(data):
        kind = _KINDS.get(reason)
        if domain != DOMAIN or kind is None:
            continue
        below = parse_cause_header(metadata.get("below", ""))
        return Cause(
            kind=kind,
            scope=printable(metadata.get("scope", "")),
            hop=printable(metadata.get("hop", "")),
            budget=_seconds(metadata.get("budget_ms", ""), NEVER),
            elapsed=_seconds(metadata.get("elapsed_ms", ""), 0.0),
            detail=printable(metadata.get("note", "")),
            below=() if below is None else (below,),
        )
    return None


def status_names(data: bytes) -> tuple[str, ...]:
    """What the errors in a status are called by whoever made it: `STOCKOUT of shop.example`.

    Names of at most 16 `ErrorInfo`, cleaned as everything here; none in what is no status. Never
    raises.
    """
    names: list[str] = []
    for reason, domain, _ in _infos(data):
        name = printable(reason)
        if name:
            names.append(f"{name} of {printable(domain)}" if printable(domain) else name)
    return tuple(names)


def _infos(data: bytes) -> list[tuple[str, str, dict[str, str]]]:
    if len(data) > _READ:
        return []
    found: list[tuple[str, str, dict[str, str]]] = []
    try:
        for number, value in _fields(data):
            if number != 3 or len(found) >= _NAMES:
                continue
            parts = dict(_fields(value))
            if _utf8(parts.get(1, b"")).endswith(_INFO_NAME):
                found.append(_info(parts.get(2, b"")))
    except _Broken:
        return []
    return found


def _info(data: bytes) -> tuple[str, str, dict[str, str]]:
    texts = {1: "", 2: ""}
    metadata: dict[str, str] = {}
    for number, value in _fields(data):
        if number == 3:
            entry = dict(_fields(value))
            metadata[_utf8(entry.get(1, b""))] = _utf8(entry.get(2, b""))
        elif number in texts:
            texts[number] = _utf8(value)
    return texts[1], texts[2], metadata


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The number and the value of each field that has bytes; others are passed over."""
    at = 0
    for _ in range(_FIELDS):
        if at >= len(data):
            return
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _read_varint(data, at)
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _Broken  # groups, which nobody uses, and what is no kind
        begin, at = at, at + size
        if at > len(data):
            raise _Broken
        if kind == _BYTES:
            yield tag >> 3, data[begin:at]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise _Broken


def _utf8(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _seconds(text: str, absent: Duration) -> Duration:
    try:
        millis = float(text)
    except ValueError:
        return absent
    return min(max(millis / 1000, 0.0), LONGEST) if math.isfinite(millis) else absent
