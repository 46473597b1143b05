"""What a service saw of its own stop, as lines in a file."""

from __future__ import annotations

import os
import time

__all__ = ["note"]


def note(what: str) -> None:
    """Append `INSTANT WHAT` to the file; nothing without a file."""
    path = os.environ.get("BENCH_STOP_NOTES")
    if path:
        with open(path, "a") as file:
            file.write(f"{time.monotonic():.6f} {what}\n")
