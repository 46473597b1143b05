"""From `MODULE:ATTR` to what it names, or to one sentence about why not."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Final

from holdfast.domain.errors import HoldfastError

__all__ = ["TargetError", "a_or_an", "called", "find_target"]

_NEAR: Final = 3


class TargetError(HoldfastError):
    """A target names nothing that can be used. The text says why, and what to write instead.

    Attributes:
        trace: traceback of the user's own code, where that is what failed; else empty.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


def find_target(target: str, *, what: str, usual: Sequence[str]) -> Any:
    """What `target` names.

    Args:
        target: `MODULE:ATTR`; the attribute may have dots.
        what: it ought to be, in a word: `application`.
        usual: names that such a thing often has, the most usual first.

    Raises:
        TargetError: there is none, or the user's code failed while it was imported.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path or "/" in module_name or path.startswith("."):
        article = "an" if what[:1] in "aeiou" else "a"
        form = _form(module_name, usual[0])
        raise TargetError(f"{target!r} does not name {article} {what}; {form}")
    return _walk(_import(module_name), module_name, path, what, usual)


def called(factory: Any, target: str) -> Any:
    """What the factory makes that `target` names.

    Raises:
        TargetError: it is none, or failed.
    """
    if not callable(factory):
        raise TargetError(f"{target} is {a_or_an(factory)}, not a factory; leave --factory away")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"the factory {target} failed: {type(error).__name__}: {error}", _trace(error)
        ) from None
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(
            f"{target} is no factory but a coroutine function; leave --factory away, "
            "or make the factory a plain function"
        )
    return made


def a_or_an(thing: object) -> str:
    """The type of a thing with its article."""
    name = type(thing).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _form(name: str, usual: str) -> str:
    if name.endswith(".py"):
        name = name.removesuffix(".py").strip("./").replace("/", ".")
        return f"write the module, not the file: {name}:{usual}"
    return f"write MODULE:ATTR, for example shop.main:{usual}"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (name == missing or name.startswith(f"{missing}.")):
            raise TargetError(_not_found(name, missing)) from None
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


def _failed(name: str, error: BaseException) -> TargetError:
    return TargetError(
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


def _walk(module: ModuleType, module_name: str, path: str, what: str, usual: Sequence[str]) -> Any:
    found: Any = module
    done = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise TargetError(_no_attribute(found, done, name, what, usual)) from None
        done = f"{done}:{name}" if done == module_name else f"{done}.{name}"
    return found


def _no_attribute(holder: object, done: str, name: str, what: str, usual: Sequence[str]) -> str:
    kind = "module" if isinstance(holder, ModuleType) else type(holder).__name__
    text = f"{kind} {done!r} has no attribute {name!r}"
    names = [
        item
        for item, value in vars(holder).items()
        if not item.startswith("_") and (callable(value) or item in usual)
    ] if hasattr(holder, "__dict__") else []  # fmt: skip
    near = difflib.get_close_matches(name, names, n=_NEAR, cutoff=0.5)
    near += [item for item in usual if item in names and item not in near]
    if near:
        return f"{text}; did you mean {' or '.join(repr(item) for item in near[:_NEAR])}?"
    return f"{text}; name the {what} that it defines"
