"""The first of two GOAWAY frames of HTTP/2 (RFC 9113, section 6.8).

It names the highest stream that there can be: open nothing more, and whatever is on the wire is
served. The last one, which names the last stream that was served, is sent by the parser of the
server when the connection ends. Parsers know no first one, so here it is, byte by byte.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_GOAWAY"]

_LAST_POSSIBLE: Final = 2**31 - 1

FIRST_GOAWAY: Final = (
    (8).to_bytes(3, "big")  # length of what follows the header of the frame
    + b"\x07"  # its type
    + b"\x00"  # no flags
    + (0).to_bytes(4, "big")  # the connection itself
    + _LAST_POSSIBLE.to_bytes(4, "big")
    + (0).to_bytes(4, "big")  # NO_ERROR
)
"""The frame. Servers write frames whole, so it may be written between any two."""
