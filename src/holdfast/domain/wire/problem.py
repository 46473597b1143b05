"""A cause on the wire: as a problem document, and in one header line.

Sources: RFC 9457 (`application/problem+json`: type, title, status, detail, instance, extension
members), RFC 3986 for the percent-encoding in the header.

The header `deadline-exceeded` is for hops whose body is replaced on the way (a gateway's own error
page). Its presence alone tells a caller that a retry is pointless: the budget is spent. It lists
this hop first and then, after commas, the hops below it along the nearest cause.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Final, cast
from urllib.parse import quote, unquote

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.wire.budget import LONGEST

__all__ = [
    "CAUSE_HEADER",
    "PROBLEM_TYPE",
    "encode_cause_header",
    "parse_cause_header",
    "parse_problem",
    "problem",
    "problem_type",
]

PROBLEM_TYPE: Final = "application/problem+json"
"""The content type of a problem document."""
CAUSE_HEADER: Final = "deadline-exceeded"
"""The header of the one-line form, in lower case."""

_URN: Final = "urn:holdfast:problem:"
_TYPES: Final = {
    CauseKind.DEADLINE: "deadline-exceeded",
    CauseKind.CALLER: "cancelled-by-caller",
    CauseKind.DISCONNECT: "client-disconnected",
    CauseKind.PARENT: "parent-cancelled",
    CauseKind.SIBLING: "sibling-failed",
    CauseKind.SHUTDOWN: "shutting-down",
    CauseKind.OVERLOAD: "overloaded",
    CauseKind.HEDGE_LOST: "hedge-lost",
    CauseKind.CHAOS: "chaos-experiment",
}
_KINDS: Final = {kind.value: kind for kind in CauseKind}
_BODY: Final = 16_384
_HEADER: Final = 2048
_NAME: Final = 960
"""Characters of a name in a header: two of them leave room for the numbers."""
_DEPTH: Final = 16
_BREADTH: Final = 16
_TEXT: Final = 256
_DETAIL: Final = 1024
_SAFE: Final = "/:._~@+-"


def _clean(value: object, longest: int = _TEXT) -> str:
    """A text without control characters, surrogates and line breaks, cut to a length."""
    if not isinstance(value, str):
        return ""
    value = value[:longest]
    return value if value.isprintable() else "".join(c for c in value if c.isprintable())


def _millis(seconds: Duration) -> float:
    # To the microsecond: more digits are noise, and they cost bytes.
    return round(min(max(seconds, 0.0), LONGEST) * 1000, 3)


def _seconds(value: object, absent: Duration) -> Duration:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return absent
    try:
        millis = float(value)
    except OverflowError:
        return absent
    if not math.isfinite(millis):
        return absent
    return min(max(millis / 1000, 0.0), LONGEST)


def _members(cause: Cause, depth: int) -> dict[str, object]:
    found: dict[str, object] = {"kind": cause.kind.value, "scope": _clean(cause.scope)}
    if cause.hop:
        found["hop"] = _clean(cause.hop)
    if cause.budget < math.inf:
        found["budget_ms"] = _millis(cause.budget)
    found["elapsed_ms"] = _millis(cause.elapsed)
    if cause.detail:
        found["note"] = _clean(cause.detail)
    if cause.below and depth > 1:
        found["below"] = [_members(below, depth - 1) for below in cause.below[:_BREADTH]]
    return found


def problem_type(kind: CauseKind) -> str:
    """The stable URN of the problem type of a kind of cause."""
    return _URN + _TYPES[kind]


def problem(
    cause: Cause, *, status: int, title: str = "", instance: str = "", request_id: str = ""
) -> bytes:
    """A problem document of at most 16 KiB, as UTF-8 JSON.

    Members of RFC 9457: `type`, `title`, `status`, `detail` (the cause in one line), `instance`.
    Extension members: `kind`, `scope`, `hop`, `budget_ms` (absent without a deadline),
    `elapsed_ms`, `note`, `request_id`, and `below`: the causes of hops further down in the same
    form. Texts are cut to 256 characters (`detail`: 1024), the chain to 16 hops, and further where
    it would not fit otherwise.

    Args:
        cause: what ended the work.
        status: the HTTP status of the response, for example 504, 503 or 499.
        title: a short summary of the type; the kind in words when empty.
        instance: URI of this occurrence; left out when empty.
        request_id: what the response shows as `X-Request-ID`; left out when empty.
    """
    name = _TYPES[cause.kind]
    head: dict[str, object] = {
        "type": _URN + name,
        "title": _clean(title) or name.replace("-", " ").capitalize(),
        "status": status,
        "detail": _clean(cause.line(), _DETAIL),
    }
    if instance:
        head["instance"] = _clean(instance)
    if request_id:
        head["request_id"] = _clean(request_id)
    depth = _DEPTH
    while True:
        body = json.dumps(head | _members(cause, depth), ensure_ascii=False).encode()
        if len(body) <= _BODY or depth == 1:
            return body
        depth //= 2


def parse_problem(body: bytes, content_type: str = PROBLEM_TYPE) -> Cause | None:
    """The cause in a problem document of ours; `None` for anything else. Never raises.

    Bodies over 16 KiB are not looked at. The chain is cut after 16 hops, texts after 256
    characters; control characters are removed; numbers that are not finite count as absent.
    """
    essence = content_type.partition(";")[0].strip().lower()
    if essence != PROBLEM_TYPE or len(body) > _BODY:
        return None
    try:
        data: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    members = cast("dict[str, object]", data)
    kind = members.get("type")
    if not isinstance(kind, str) or not kind.startswith(_URN):
        return None
    return _cause(members, _DEPTH)


def _cause(members: dict[str, object], depth: int) -> Cause | None:
    kind = members.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    below: list[Cause] = []
    listed = members.get("below")
    if isinstance(listed, list) and depth > 1:
        for item in cast("list[object]", listed)[:_BREADTH]:
            if isinstance(item, dict):
                found = _cause(cast("dict[str, object]", item), depth - 1)
                if found is not None:
                    below.append(found)
    return Cause(
        kind=_KINDS[kind],
        scope=_clean(members.get("scope")),
        hop=_clean(members.get("hop")),
        budget=_seconds(members.get("budget_ms"), NEVER),
        elapsed=_seconds(members.get("elapsed_ms"), 0.0),
        detail=_clean(members.get("note")),
        below=tuple(below),
    )


def _chain(cause: Cause) -> Iterable[Cause]:
    for _ in range(_DEPTH):
        yield cause
        if not cause.below:
            return
        cause = cause.below[0]


def _quoted(name: str) -> str:
    text = quote(_clean(name), safe=_SAFE)
    if len(text) > _NAME:  # a character of other scripts takes up to twelve
        text = text[:_NAME]
        cut = text.rfind("%", _NAME - 2)
        text = text if cut < 0 else text[:cut]
    return text


def _element(cause: Cause) -> str:
    parts = [f"hop={_quoted(cause.hop)}"] if cause.hop else []
    parts.append(f"scope={_quoted(cause.scope)}")
    if cause.budget < math.inf:
        parts.append(f"budget-ms={_millis(cause.budget):.15g}")
    parts.append(f"elapsed-ms={_millis(cause.elapsed):.15g}")
    if cause.kind is not CauseKind.DEADLINE:
        parts.append(f"kind={cause.kind.value}")
    return "; ".join(parts)


def encode_cause_header(cause: Cause) -> str:
    """The value of the `deadline-exceeded` header: this hop, then the hops below, in 2048 bytes.

    `kind` is left out when it is a deadline. The detail and all but the nearest of several causes
    below are not in this form.
    """
    value = ""
    for element in map(_element, _chain(cause)):
        longer = f"{value}, {element}" if value else element
        if len(longer) > _HEADER and value:
            break
        value = longer
    return value


def parse_cause_header(raw: str | bytes) -> Cause | None:
    """The cause in a `deadline-exceeded` header; `None` when it has none. Never raises.

    Unknown members are skipped, so that the form can grow. A value that cannot be read still means
    that the budget is spent: look at the presence of the header for that.
    """
    text = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    if len(text) > 4 * _HEADER:
        return None
    cause: Cause | None = None
    for element in reversed(text.split(",")[:_DEPTH]):
        found = _parse_element(element)
        if found is not None:
            cause = found if cause is None else found.with_below(cause)
    return cause


def _parse_element(element: str) -> Cause | None:
    members: dict[str, str] = {}
    for part in element.split(";")[:_DEPTH]:
        key, equals, value = part.partition("=")
        if equals:
            members[key.strip().lower()] = _clean(unquote(value.strip()))
    kind = _KINDS.get(members.get("kind", CauseKind.DEADLINE.value))
    if kind is None or not ("hop" in members or "scope" in members):
        return None
    return Cause(
        kind=kind,
        scope=members.get("scope", ""),
        hop=members.get("hop", ""),
        budget=_number(members.get("budget-ms", ""), NEVER),
        elapsed=_number(members.get("elapsed-ms", ""), 0.0),
    )


def _number(text: str, absent: Duration) -> Duration:
    try:
        return _seconds(float(text), absent)
    except ValueError:
        return absent
