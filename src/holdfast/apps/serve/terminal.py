"""Whether somebody sits in front of this process."""

from __future__ import annotations

import os
import sys

__all__ = ["has_terminal"]


def has_terminal() -> bool:
    """Whether standard input is a terminal that is there."""
    try:
        return os.isatty(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        return False
