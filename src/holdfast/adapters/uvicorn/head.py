"""The head of a response on HTTP/1.1, checked and written in one pass.

uvicorn asks two regular expressions about each header of each response. The same is found here by
one look into a table for a name, and by one pass over all fields together for the values: the only
control characters that may be in them are the line breaks that stand between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["CONNECTION", "CONTENT_LENGTH", "FRAMING", "TRANSFER_ENCODING", "Defaults", "fields"]

Header = tuple[bytes, bytes]

CONNECTION: Final = b"connection: "
CONTENT_LENGTH: Final = b"content-length: "
TRANSFER_ENCODING: Final = b"transfer-encoding: "
FRAMING: Final = frozenset({CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING})
"""Headers that say where the response ends, or the connection."""

_NO_NAME: Final = re.compile(rb"[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\\"]")
"""What must not be in a name: as in uvicorn, whose own expression is in a module that needs
httptools."""

_CONTROLS: Final = frozenset({*range(0x20), 0x7F}) - {0x09}
_PLAIN: Final = bytes(byte for byte in range(256) if byte not in _CONTROLS)
_MEMO: Final = 512
_MEMO_NAME: Final = 64

_names: Final[dict[bytes, bytes]] = {}


def _named(name: bytes) -> bytes:
    """How the line of a header begins.

    Raises:
        RuntimeError: it is no name.
    """
    if _NO_NAME.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    begin = name.lower() + b": "
    if len(name) <= _MEMO_NAME:
        # Names may come from outside, by way of an application that echoes them.
        if len(_names) >= _MEMO:
            _names.clear()
        _names[name] = begin
    return begin


def fields(headers: Iterable[Header]) -> tuple[bytes, list[Header]]:
    """The lines of `headers`, and those of them that are in `FRAMING`, by how they begin.

    Raises:
        RuntimeError: there is a character in a name or a value that must not be there.
    """
    lines: list[bytes] = []
    framing: list[Header] = []
    for name, value in headers:
        begin = _names.get(name) or _named(name)
        if begin in FRAMING:
            framing.append((begin, value))
        lines += (begin, value, b"\r\n")
    block = b"".join(lines)
    if len(block.translate(None, _PLAIN)) * 3 != len(lines) * 2:
        raise RuntimeError("Invalid HTTP header value.")
    return block, framing


class Defaults:
    """The headers that every response begins with. They are the same for a second.

    Attributes:
        block: their lines.
        framing: as `fields` gives them.
    """

    __slots__ = ("_of", "block", "framing")

    def __init__(self) -> None:
        self._of: list[Header] | None = None
        self.block = b""
        self.framing: list[Header] = []

    def take(self, headers: list[Header]) -> None:
        """Have the lines of `headers`, a list that nobody changes."""
        if headers is not self._of:
            self.block, self.framing = fields(headers)
            self._of = headers
