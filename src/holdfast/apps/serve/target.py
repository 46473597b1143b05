"""From `MODULE:ATTR` to the application, or to one sentence about why not."""

from __future__ import annotations

import inspect
from typing import Any, Final

from holdfast.apps.serve.problem import ServeError
from holdfast.runtime.target import TargetError, a_or_an, called, find_target

__all__ = ["load_target"]

_USUAL: Final = ("app", "application", "api", "create_app", "make_app")


def load_target(target: str, *, factory: bool = False) -> Any:
    """The application that `target` names.

    Raises:
        ServeError: there is none, it is not an ASGI application, or the user's code failed.
    """
    try:
        app = find_target(target, what="application", usual=_USUAL)
        if factory:
            app = called(app, target)
    except TargetError as error:
        raise ServeError(str(error), error.trace) from None
    return _checked(app, target, factory)


def _checked(app: Any, target: str, factory: bool) -> Any:
    what = f"what {target} made" if factory else target
    if not callable(app):
        raise ServeError(f"{what} is {a_or_an(app)}, not an ASGI application")
    kind = type(app)
    if callable(getattr(app, "wsgi_app", None)) or kind.__module__.startswith(
        "django.core.handlers.wsgi"
    ):
        raise ServeError(
            f"{what} is a WSGI application ({kind.__module__}.{kind.__qualname__}), and serve "
            "hosts ASGI; wrap it, for example in a2wsgi.WSGIMiddleware, or use a WSGI server"
        )
    count = _parameters(app)
    if count == 0 and not factory:
        raise ServeError(f"{what} takes no arguments; if it makes the application, add --factory")
    if count == 2:
        raise ServeError(
            f"{what} takes two arguments, as a WSGI application does; an ASGI application takes "
            "scope, receive and send"
        )
    if count == 1 or (inspect.isclass(app) and not hasattr(app, "__await__")):
        raise ServeError(
            f"{what} is {'a class' if inspect.isclass(app) else 'of ASGI 2'}; "
            "an ASGI 3 application is called with scope, receive and send"
            + ("; name an instance of it" if inspect.isclass(app) else "")
        )
    return app


def _parameters(app: Any) -> int:
    """How many arguments it must be called with; -1 when that cannot be told."""
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return -1
    count = 0
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return -1
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += parameter.default is parameter.empty
    return count
