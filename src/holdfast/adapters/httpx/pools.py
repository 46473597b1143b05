"""The pools of httpcore under a transport, and the network that they get from us."""

from __future__ import annotations

from typing import Any, Final

from holdfast.adapters.httpx.library import LIBRARIES, library_of
from holdfast.adapters.httpx.network import Guard, Network
from holdfast.adapters.httpx.progress import Way
from holdfast.runtime.net.dial import Dialer

__all__ = ["forget_failed", "join_network", "leave_network", "pools_below", "way_of"]

_DEPTH: Final = 3
_OWN: Final = frozenset({"AutoBackend", "AnyIOBackend"})
_CORES: Final = frozenset(library.core.__name__ for library in LIBRARIES.values())


def pools_below(transport: Any) -> tuple[Any, ...]:
    """The httpcore pools of a transport, also of one that is wrapped in others."""
    found: list[Any] = []
    level: list[Any] = [transport]
    for _ in range(_DEPTH):
        deeper: list[Any] = []
        for one in level:
            attributes: dict[str, Any] = getattr(one, "__dict__", {})
            pool = attributes.get("_pool")
            if hasattr(pool, "_connections") and hasattr(pool, "_network_backend"):
                found.append(pool)
            deeper += [
                value
                for value in attributes.values()
                if hasattr(value, "handle_async_request") or hasattr(value, "handle_request")
            ]
        level = [one for one in deeper if one not in found]
    return tuple(found)


def join_network(transport: Any, dialer: Dialer) -> None:
    """Have the asynchronous pools of a transport dial through us.

    A backend that somebody has written stays in use, and is watched alone.
    """
    for pool in pools_below(transport):
        backend = pool._network_backend
        if not isinstance(backend, (Network, Guard)):
            library = library_of(pool)
            pool._network_backend = (
                Network(backend, library, dialer)
                if _of_the_library(backend)
                else Guard(backend, library)
            )


def leave_network(transport: Any) -> None:
    """Undo `join_network`. Connections that are open go on."""
    for pool in pools_below(transport):
        if isinstance(pool._network_backend, (Network, Guard)):
            pool._network_backend = pool._network_backend.inner


def _of_the_library(backend: object) -> bool:
    kind: type = type(backend)
    return kind.__name__ in _OWN and kind.__module__.partition(".")[0] in _CORES


def forget_failed(pools: tuple[Any, ...]) -> None:
    """Give the places free of connections to a SOCKS proxy that nobody waits for any more.

    httpcore 1.0.9 marks one whose dial failed, but not one whose dial was cancelled.
    """
    for pool in pools:
        wanted = {id(request.connection) for request in pool._requests}
        for connection in pool._connections:
            mine = hasattr(connection, "_connect_lock") and hasattr(connection, "_connect_failed")
            if mine and connection._connection is None and id(connection) not in wanted:
                connection._connect_failed = True


def way_of(transport: Any) -> Way:
    """How a transport gets to the servers."""
    for pool in pools_below(transport):
        proxy = getattr(pool, "_proxy", None)
        url = getattr(proxy, "url", None) or getattr(pool, "_proxy_url", None)
        if url is not None:
            origin = url.origin
            host = origin.host.decode("ascii", "replace")
            return Way(f"{host}:{origin.port}", url.scheme.startswith(b"socks"))
    return Way()
