"""httpx and httpx2: what is left goes out with every request, and no call outlives it.

    from holdfast.adapters.httpx import instrument

    client = instrument(httpx.AsyncClient())

    async with holdfast.timeout(2.0):
        await client.get("http://orders.local/42")     # tells orders what is left of the 2 s

What belongs here: carriers for the clients of the two libraries (one API, two names).
What does not: retries, breakers, name lookup.
"""

from __future__ import annotations

from typing import Any, TypeVar

from holdfast.adapters.httpx.aio import AsyncHoldfastTransport
from holdfast.adapters.httpx.blocking import leave_blocking
from holdfast.adapters.httpx.idle import pool_of
from holdfast.adapters.httpx.library import LIBRARIES
from holdfast.adapters.httpx.pools import leave_network
from holdfast.adapters.httpx.sync import HoldfastTransport

__all__ = [
    "AsyncHoldfastTransport",
    "HoldfastTransport",
    "instrument",
    "pool_of",
    "uninstrument",
]

C = TypeVar("C")


def instrument(client: C, **options: Any) -> C:
    """Make the transports of a client carry what is left; the same client.

    Proxies and mounts are covered. A client that is instrumented already stays as it is.

    Args:
        client: a `Client` or `AsyncClient` of httpx or httpx2.
        options: see `AsyncHoldfastTransport`.

    Raises:
        TypeError: `client` is something else.
    """
    wrapper = _wrapper_for(client)
    made: dict[int, Any] = {}

    def wrapped(transport: Any) -> Any:
        if transport is None or isinstance(transport, wrapper):
            return transport
        if id(transport) not in made:
            made[id(transport)] = wrapper(transport, **options)
        return made[id(transport)]

    _replace(client, wrapped)
    return client


def uninstrument(client: C) -> C:
    """Undo `instrument`; the same client. One that is not instrumented stays as it is.

    Raises:
        TypeError: `client` is not a client of httpx or httpx2.
    """
    wrapper = _wrapper_for(client)

    def unwrapped(transport: Any) -> Any:
        if not isinstance(transport, wrapper):
            return transport
        inner = transport.inner
        leave_network(inner)
        leave_blocking(inner)
        return inner

    _replace(client, unwrapped)
    return client


def _wrapper_for(client: object) -> Any:
    for library in LIBRARIES.values():
        if isinstance(client, library.api.AsyncClient):
            return AsyncHoldfastTransport
        if isinstance(client, library.api.Client):
            return HoldfastTransport
    raise TypeError(f"{client!r} is not a client of {' or '.join(LIBRARIES)}")


def _replace(client: Any, change: Any) -> None:
    client._transport = change(client._transport)
    mounts = client._mounts
    for pattern, transport in mounts.items():
        mounts[pattern] = change(transport)
