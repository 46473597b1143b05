"""ASGI: the carrier of every server and framework that speaks it.

    from holdfast.adapters.asgi import HoldfastMiddleware

    app = HoldfastMiddleware(app)

Put it outermost. It needs nothing but the standard library.
"""

from __future__ import annotations

from holdfast.adapters.asgi.middleware import HoldfastMiddleware

__all__ = ["HoldfastMiddleware"]
