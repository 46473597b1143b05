"""The one seam to httpx and httpx2: what of them is used, and our errors as they expect them.

The two are the same API under two names. Everything of theirs is `Any` here and in the rest of the
package: a request and its response are theirs, and which of the two it is is decided at run time.
"""

from __future__ import annotations

from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import Phase, Trail
from holdfast.runtime.outbound import ErrorClasses, both

if TYPE_CHECKING:
    import httpx
    import httpx2

    # At run time a transport gets the one base class that fits what it wraps (see `adopt`). To a
    # type checker it is both, so that either client takes it.
    class AsyncBase(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any: ...
        async def aclose(self) -> None: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(
            self,
            exc_type: type[BaseException] | None = None,
            exc_value: BaseException | None = None,
            traceback: TracebackType | None = None,
        ) -> None: ...

    class SyncBase(httpx.BaseTransport, httpx2.BaseTransport):
        def handle_request(self, request: Any) -> Any: ...
        def close(self) -> None: ...
        def __enter__(self) -> Self: ...
        def __exit__(
            self,
            exc_type: type[BaseException] | None = None,
            exc_value: BaseException | None = None,
            traceback: TracebackType | None = None,
        ) -> None: ...
else:
    AsyncBase = SyncBase = object

__all__ = ["LIBRARIES", "AsyncBase", "Library", "SyncBase", "adopt", "library_of", "variant"]

_NAMES: Final = ("httpx", "httpx2")
_HOME: Final = "holdfast.adapters.httpx"
_BLANK: Final = "_request"
"""What the client fills in, for every error that its transport raises."""
_TIMEOUTS: Final = {
    Phase.POOL: "PoolTimeout",
    Phase.REQUEST: "WriteTimeout",
    Phase.HEADER: "ReadTimeout",
    Phase.BODY: "ReadTimeout",
}
"""The library's class for a phase that took too long, where that is not `ConnectTimeout`."""


class Library:
    """httpx or httpx2.

    Attributes:
        name: `httpx` or `httpx2`.
        api: the module.
        core: the module of its pools, httpcore or httpcore2.
        in_memory: transports that have neither a pool nor a socket, so that a cancellation in any
            place does them no harm, and that do not wait for the network.
        errors: ours, as the library's users expect them.
    """

    def __init__(self, name: str, api: Any) -> None:
        self.name = name
        self.api = api
        self.in_memory: tuple[type, ...] = (api.MockTransport, api.ASGITransport)
        self.core: Any = import_module(name.replace("httpx", "httpcore"))
        # Programs catch `httpx.TimeoutException` today and shall go on to work, so our errors are
        # both. Of a spent limit it is the general class: the time for the whole call ran out.
        late: type = api.TimeoutException
        self.errors = ErrorClasses(
            name,
            both(DeadlineExceeded, late, _HOME, _BLANK),
            both(InsufficientBudget, late, _HOME, _BLANK),
            self.phase_timeout,
        )

    def phase_timeout(self, trail: Trail) -> PhaseTimeout:
        """The error for a call whose last phase has used up its share: ours and the library's."""
        phase = trail.phase
        name = "ConnectTimeout" if phase is None else _TIMEOUTS.get(phase, "ConnectTimeout")
        return self._made(getattr(self.api, name), trail)

    def dial_timeout(self, trail: Trail) -> PhaseTimeout:
        """The same as the pool expects it from its network."""
        return self._made(self.core.ConnectTimeout, trail)

    def _made(self, theirs: type, trail: Trail) -> PhaseTimeout:
        error: PhaseTimeout = both(PhaseTimeout, theirs, _HOME, _BLANK)(trail)
        return error


def _installed() -> dict[str, Library]:
    found: dict[str, Library] = {}
    for name in _NAMES:
        try:
            found[name] = Library(name, import_module(name))
        except ModuleNotFoundError as exc:
            if exc.name != name:
                raise
    if not found:
        raise ImportError(
            "holdfast.adapters.httpx needs httpx or httpx2: "
            "pip install 'holdfast[httpx]' or 'holdfast[httpx2]'"
        )
    return found


LIBRARIES: Final[dict[str, Library]] = _installed()
_MODULES: Final = {
    **LIBRARIES,
    **{library.core.__name__: library for library in LIBRARIES.values()},
}
_KNOWN: Final[dict[type, Library]] = {}


def library_of(*things: object) -> Library:
    """The library that the first of `things` to know it belongs to; the newer one otherwise."""
    for thing in things:
        kind = type(thing)
        library = _KNOWN.get(kind)
        if library is None:
            for cls in kind.__mro__:
                library = _MODULES.get(cls.__module__.partition(".")[0])
                if library is not None:
                    break
            else:
                continue
            _KNOWN[kind] = library
        return library
    return LIBRARIES["httpx2" if "httpx2" in LIBRARIES else "httpx"]


_VARIANTS: Final[dict[tuple[type, str], Any]] = {}


def variant(cls: type, base: str, library: Library) -> Any:
    """The subclass of `cls` that is also a `base` of `library`, made once."""
    parent: type = getattr(library.api, base)
    if issubclass(cls, parent):
        return cls
    key = (cls, library.name)
    if key not in _VARIANTS:
        body = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        _VARIANTS[key] = type(cls.__name__, (cls, parent), body)
    return _VARIANTS[key]


def adopt(transport: object, base: str, inner: object) -> None:
    """Make `transport` a `base` of the library that `inner` belongs to."""
    transport.__class__ = variant(type(transport), base, library_of(inner))
