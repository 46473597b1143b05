"""From `MODULE:ATTR` to the application, or to one sentence about why not."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

from holdfast.apps.serve.problem import ServeError

__all__ = ["load_target"]

_NEAR: Final = 3
_APP_NAMES: Final = ("app", "application", "api", "create_app", "make_app")


def load_target(target: str, *, factory: bool = False) -> Any:
    """The application that `target` names.

    Raises:
        ServeError: there is none, it is not an ASGI application, or the user's code failed.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path or "/" in module_name or path.startswith("."):
        raise ServeError(f"{target!r} does not name an application; {_form(module_name)}")
    module = _import(module_name)
    app = _walk(module, module_name, path)
    if factory:
        app = _make(app, target)
    return _checked(app, target, factory)


def _form(name: str) -> str:
    if name.endswith(".py"):
        name = name.removesuffix(".py").strip("./").replace("/", ".")
        return f"write the module, not the file: {name}:app"
    return "write MODULE:ATTR, for example shop.main:app"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (name == missing or name.startswith(f"{missing}.")):
            raise ServeError(_not_found(name, missing)) from None
        raise _failed(name, error) from None
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from None


def _not_found(name: str, missing: str) -> str:
    if name == missing:
        text = f"there is no module {name!r}"
    else:
        text = f"there is no module {missing!r}, so none {name!r}"
    near = difflib.get_close_matches(missing, _modules_beside(missing), n=1, cutoff=0.6)
    if near:
        return f"{text}; did you mean {near[0]!r}?"
    return f"{text}; run this in the directory it is in, or install it"


def _modules_beside(missing: str) -> Iterable[str]:
    import pkgutil

    parent, _, _ = missing.rpartition(".")
    if not parent:
        return [item.name for item in pkgutil.iter_modules([""])]
    try:
        paths = importlib.import_module(parent).__path__
    except (Exception, SystemExit):
        return []
    return [f"{parent}.{item.name}" for item in pkgutil.iter_modules(paths)]


def _failed(name: str, error: BaseException) -> ServeError:
    return ServeError(
        f"module {name!r} was found, but failed while it was imported: "
        f"{type(error).__name__}: {error}",
        _trace(error),
    )


def _trace(error: BaseException) -> str:
    """The traceback without the frames of ours and of the import machinery above the user's."""
    entries = traceback.TracebackException.from_exception(error)
    first = 0
    for index, frame in enumerate(entries.stack):
        inside = frame.filename == __file__ or "importlib" in frame.filename
        if not inside:
            first = index
            break
    else:
        first = len(entries.stack)
    entries.stack = traceback.StackSummary.from_list(entries.stack[first:])
    return "".join(entries.format())


def _walk(module: ModuleType, module_name: str, path: str) -> Any:
    found: Any = module
    done = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ServeError(_no_attribute(found, done, name)) from None
        done = f"{done}:{name}" if done == module_name else f"{done}.{name}"
    return found


def _no_attribute(holder: object, done: str, name: str) -> str:
    kind = "module" if isinstance(holder, ModuleType) else type(holder).__name__
    text = f"{kind} {done!r} has no attribute {name!r}"
    names = [
        item
        for item, value in vars(holder).items()
        if not item.startswith("_") and callable(value)
    ] if hasattr(holder, "__dict__") else []  # fmt: skip
    near = difflib.get_close_matches(name, names, n=_NEAR, cutoff=0.5)
    near += [item for item in _APP_NAMES if item in names and item not in near]
    if near:
        return f"{text}; did you mean {' or '.join(repr(item) for item in near[:_NEAR])}?"
    return f"{text}; name the application that it defines"


def _make(factory: Any, target: str) -> Any:
    if not callable(factory):
        raise ServeError(f"{target} is {_a(factory)}, not a factory; leave --factory away")
    try:
        app = factory()
    except (Exception, SystemExit) as error:
        raise ServeError(
            f"the factory {target} failed: {type(error).__name__}: {error}", _trace(error)
        ) from None
    if inspect.iscoroutine(app):
        app.close()
        raise ServeError(
            f"{target} is no factory but a coroutine function; leave --factory away, "
            "or make the factory a plain function"
        )
    return app


def _a(thing: object) -> str:
    name = type(thing).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _checked(app: Any, target: str, factory: bool) -> Any:
    what = f"what {target} made" if factory else target
    if not callable(app):
        raise ServeError(f"{what} is {_a(app)}, not an ASGI application")
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
