"""redis-py."""

from __future__ import annotations

from holdfast.adapters.redis.instrumenting import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]
