"""WSGI: the carrier of Flask, Django and every other application that speaks it.

    from holdfast.adapters.wsgi import HoldfastMiddleware

    app.wsgi_app = HoldfastMiddleware(app.wsgi_app)          # Flask
    application = HoldfastMiddleware(get_wsgi_application())  # Django

Put it outermost. It needs nothing but the standard library.

What belongs here: what PEP 3333 has and ASGI has not. A handler runs in a thread and cannot be
cancelled; a body is made after the callable has returned; a client that leaves cannot be seen.
"""

from __future__ import annotations

from holdfast.adapters.wsgi.middleware import HoldfastMiddleware

__all__ = ["HoldfastMiddleware"]
