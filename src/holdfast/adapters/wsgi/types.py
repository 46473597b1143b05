"""The shapes of WSGI, as far as they are used here (source: PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeAlias

__all__ = ["App", "Environ", "ErrorInfo", "Headers", "StartResponse", "Write"]

Environ: TypeAlias = dict[str, Any]
Headers: TypeAlias = list[tuple[str, str]]
Write: TypeAlias = Callable[[bytes], object]
ErrorInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
)


class StartResponse(Protocol):
    """What a server gives to its application."""

    def __call__(
        self, status: str, headers: Headers, exc_info: ErrorInfo | None = None, /
    ) -> Write: ...


App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]
