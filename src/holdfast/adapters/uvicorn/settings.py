"""uvicorn's configuration as far as ours differs."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from uvicorn.config import LOGGING_CONFIG, Config

from holdfast.adapters.uvicorn.guard import HeaderTerms
from holdfast.adapters.uvicorn.watch import Watch
from holdfast.domain.errors import UsageError

__all__ = ["Settings"]


def _http(http2: bool) -> type[asyncio.Protocol]:
    if http2:
        try:
            import zttp  # noqa: F401  # pyright: ignore
        except ImportError:
            raise UsageError(
                "HTTP/2 needs zttp, which is not installed; run: pip install 'holdfast[http2]'"
            ) from None
        from holdfast.adapters.uvicorn.wire_http2 import GuardedEither

        return GuardedEither
    try:
        import httptools  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        from holdfast.adapters.uvicorn.wire_h11 import GuardedH11

        return GuardedH11
    from holdfast.adapters.uvicorn.wire_httptools import GuardedHttpTools

    return GuardedHttpTools


def _websocket() -> Any:
    try:
        import websockets  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "none"
    from holdfast.adapters.uvicorn.wire_websocket import GuardedWebSocket

    return GuardedWebSocket


def _logging() -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["holdfast"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config


class Settings(Config):
    """What uvicorn needs to know, with what our protocols need beside it.

    Args:
        app: the ASGI application, or how uvicorn finds it.
        terms: the limit on headers.
        http2: whether HTTP/2 is spoken, over TLS by ALPN and in the clear by prior knowledge.
        options: everything else that `uvicorn.Config` takes.

    Attributes:
        terms: see above.
        watch: what the connections tell.
    """

    def __init__(
        self, app: Any, terms: HeaderTerms, *, http2: bool = False, **options: Any
    ) -> None:
        self.terms = terms
        self.watch = Watch()
        options.setdefault("log_config", _logging())
        options.setdefault("interface", "asgi3")
        options.setdefault("workers", 1)  # else uvicorn reads a variable that may say `auto`
        super().__init__(app, http=_http(http2), ws=_websocket(), **options)
