"""Messages of the PostgreSQL protocol that we send, as bytes.

What belongs here: how they look. Trap: a message that is not followed by a Sync and fails makes the
server skip all that comes until the next Sync, a simple query too.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack
from typing import Final

__all__ = ["ANSWERS_OF_PREFIX", "ASK", "SYNC", "local_prefix", "set_for_session", "set_local"]

_NAME: Final = b"__holdfast__\0"
"""Of the statement in a prefix. Never the unnamed one: asyncpg may rely on that."""

SYNC: Final = b"S\x00\x00\x00\x04"
ANSWERS_OF_PREFIX: Final = b"312DC3"
"""Types of the messages that answer a prefix, in order."""


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + pack("!i", len(body) + 4) + body


def _query(text: str) -> bytes:
    return _message(b"Q", text.encode() + b"\0")


ASK: Final = _query(
    "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('statement_timeout')"
)
"""Asks who is at the other end, and which time-out it has by itself."""

_CLOSE: Final = _message(b"C", b"S" + _NAME)
_PARSE: Final = _message(
    b"P",
    _NAME + b"SELECT pg_catalog.set_config('statement_timeout', $1, true)\0" + pack("!h", 0),
)
_EXECUTE: Final = _message(b"E", b"\0" + pack("!i", 0))


@lru_cache(maxsize=512)
def set_for_session(milliseconds: int) -> bytes:
    """A query of its own that sets the time-out of every statement from now on."""
    return _query(f"SET statement_timeout = {milliseconds}")


@lru_cache(maxsize=512)
def set_local(milliseconds: int) -> bytes:
    """The same for the rest of the transaction that is open."""
    return _query(f"SET LOCAL statement_timeout = {milliseconds}")


@lru_cache(maxsize=512)
def local_prefix(milliseconds: int) -> bytes:
    """Sets it for what comes before the next Sync; has none itself.

    The statement is closed before, too: it is there still if it failed the last time.
    """
    value = str(milliseconds).encode()
    bind = _message(b"B", b"\0" + _NAME + pack("!hhi", 0, 1, len(value)) + value + pack("!h", 0))
    return _CLOSE + _PARSE + bind + _EXECUTE + _CLOSE
