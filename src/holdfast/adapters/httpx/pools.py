"""What the pools of httpcore need from us, beyond a careful cancellation.

Both httpcore and httpcore2 leave the socket to the garbage collector when a TLS handshake is
cancelled, so the streams that they dial get a `start_tls` that closes them then.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["guard_dialling", "pools_below", "unguard_dialling"]

_DEPTH: Final = 3


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


class _Dialler:
    """A network backend of httpcore whose streams are closed when their TLS handshake fails."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
        return _guarded(await self.inner.connect_tcp(*args, **kwargs))

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> Any:
        return _guarded(await self.inner.connect_unix_socket(*args, **kwargs))


def _guarded(stream: Any) -> Any:
    start_tls = stream.start_tls

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return await start_tls(*args, **kwargs)
        except BaseException:
            await stream.aclose()
            raise

    stream.start_tls = guarded
    return stream


def guard_dialling(transport: Any) -> None:
    """Have the asynchronous pools of a transport close what they dialled in vain."""
    for pool in pools_below(transport):
        if not isinstance(pool._network_backend, _Dialler):
            pool._network_backend = _Dialler(pool._network_backend)


def unguard_dialling(transport: Any) -> None:
    """Undo `guard_dialling`."""
    for pool in pools_below(transport):
        if isinstance(pool._network_backend, _Dialler):
            pool._network_backend = pool._network_backend.inner
