"""ASGI: the carrier of every server and framework that speaks it.

    from holdfast.adapters.asgi import HoldfastMiddleware

    app = HoldfastMiddleware(app)

Put it outermost. It needs nothing but the standard library.

Beside the carrier there is what the life of a process needs of ASGI:

    HealthPages  whether the process lives, and whether to send requests here
    Gate         announces a stop, for servers whose connections cannot be reached
    Lifespan     start-up and shutdown of an application, as a component of a host

    LifecycleMiddleware  all of it inside a server that was started by its own command
"""

from __future__ import annotations

from holdfast.adapters.asgi.gate import Gate
from holdfast.adapters.asgi.health import HealthPages
from holdfast.adapters.asgi.library import LifecycleMiddleware
from holdfast.adapters.asgi.lifespan import Lifespan
from holdfast.adapters.asgi.middleware import HoldfastMiddleware

__all__ = ["Gate", "HealthPages", "HoldfastMiddleware", "LifecycleMiddleware", "Lifespan"]
