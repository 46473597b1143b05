"""Classes that are theirs and ours: made once for each pair, and taken on by objects there are.

An object can change its class only where both are laid out alike. So what is ours derives from the
same base as what it is mixed into: `class OnLoop(AbstractConnection)`, never a plain mixin.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from holdfast.adapters.redis.settings import Settings

__all__ = ["behind", "kind_of", "opaque", "plain", "variant"]

_MARK = "holdfast"
_MOST: Final = 256
"""Classes that are kept: settings may be made anew for each client."""


def opaque(kind: Any) -> Any:
    """The same class, as a base whose types nobody looks into: redis-py declares few of them."""
    return kind


def kind_of(subject: object) -> Any:
    """The class of an object, whose types nobody looks into either."""
    return type(subject)


def behind(connection: Any) -> Any:
    """The connection itself, where a cache of redis-py stands before it."""
    return getattr(connection, "_conn", connection)


@lru_cache(_MOST)
def variant(ours: Any, theirs: Any, settings: Settings) -> Any:
    """The class that is `theirs` and `ours`, with `settings` as its attribute `holdfast`.

    Methods that `ours` names in `direct` are called for every command. They are attributes as well,
    `theirs_read_response`: to find one by `super()` costs as much as what we do in them.
    """
    body = {
        _MARK: settings,
        "__module__": theirs.__module__,
        "__doc__": theirs.__doc__,
        "__hash__": theirs.__hash__,
        **{f"theirs_{name}": getattr(theirs, name, None) for name in getattr(ours, "direct", ())},
    }
    return type(theirs.__name__, (ours, theirs), body)


def plain(kind: Any) -> Any:
    """What `variant` was made from; `kind` itself where it is no variant."""
    return kind.__bases__[1] if _MARK in vars(kind) else kind
