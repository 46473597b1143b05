"""The release stage of a request, as a header.

A stage from outside is believed only where the policy says that the one in front of us sets it; a
client must not be able to choose its own. The value has the characters of a DNS name.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["STAGE_HEADER", "parse_stage", "valid_stage"]

STAGE_HEADER: Final = "x-release-stage"
"""The name that is used when configuration gives no other."""

_LONGEST: Final = 63
_STAGE: Final = re.compile(r"[a-z0-9.-]{1,63}")


def valid_stage(stage: str) -> bool:
    """Whether a text can be a stage: 1 to 63 characters of `a-z 0-9 . -`."""
    return _STAGE.fullmatch(stage) is not None


def parse_stage(raw: bytes) -> str | None:
    """The stage in a header value; `None` when it is not one. Never raises."""
    if len(raw) > _LONGEST + 2:
        return None
    stage = raw.strip(b" \t").decode("latin-1")
    return stage if valid_stage(stage) else None
