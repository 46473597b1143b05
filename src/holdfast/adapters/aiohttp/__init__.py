"""aiohttp, client and server.

    from holdfast.adapters.aiohttp import instrument

    session = instrument(aiohttp.ClientSession())

    async with holdfast.timeout(2.0):
        async with session.get("http://orders.local/42") as response:   # tells orders what is left
            order = await response.json()                               # and ends when it is spent

    client, connecting   the carrier of a `ClientSession`
    connector            the part of it that fits into any session
    carrier, exchange    the carrier of an `aiohttp.web` application
    server               its server as a component of a host

What belongs here: what crosses between aiohttp and Holdfast. What does not: retries, routing.
"""

from __future__ import annotations

from holdfast.adapters.aiohttp.client import instrument, uninstrument
from holdfast.adapters.aiohttp.connector import HoldfastConnector

__all__ = ["HoldfastConnector", "instrument", "uninstrument"]
