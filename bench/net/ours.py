"""The same clients, instrumented, in a scope of one second; nothing else is set."""

from __future__ import annotations

import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import holdfast
from bench.net.bad import Ask
from bench.net.clients import LIMIT, Client, fetch
from bench.net.plain import body_of, httpx_client, method_of, requests_session, urllib3_manager

__all__ = ["OURS"]


def _streams(messages: bool = False) -> Any:
    async def prepare(ask: Ask) -> Any:
        from holdfast import net

        resolver = None
        if messages:
            from holdfast.adapters.dnspython import DnsLookup

            resolver = net.Resolver(DnsLookup())
        dialer = net.Dialer(resolver=resolver)
        context = ssl.create_default_context()
        proxy = None
        if ask.proxy:
            parts = urlsplit(ask.proxy)
            proxy = net.ProxyAddress(parts.hostname or "", parts.port or 0)

        async def open_one(host: str, port: int, tls: ssl.SSLContext | None) -> tuple[Any, Any]:
            stream = await dialer.connect(host, port, tls=tls, proxy=proxy)
            return stream, _Writer(stream)

        async def call() -> int:
            async with holdfast.timeout(LIMIT):
                return await fetch(ask, open_one, context)

        async def close() -> None:
            if resolver is not None:
                await resolver.aclose()

        return call, close

    return prepare


class _Writer:
    """A stream, with the methods of a writer of asyncio."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._data: list[bytes] = []
        self.abort = stream.abort

    def write(self, data: bytes) -> None:
        self._data.append(data)

    async def drain(self) -> None:
        for data in self._data:
            await self._stream.write(data)
        self._data.clear()


def _httpx(library: str) -> Any:
    async def prepare(ask: Ask) -> Any:
        from holdfast.adapters.httpx import instrument

        client = instrument(httpx_client(__import__(library), "AsyncClient", ask))
        body = body_of(ask)

        async def call() -> int:
            async with holdfast.timeout(LIMIT):
                answer = await client.request(method_of(ask), ask.url, content=body)
            return int(answer.status_code)

        return call, client.aclose

    return prepare


def _httpx_sync(library: str) -> Any:
    def prepare(ask: Ask) -> Any:
        from holdfast.adapters.httpx import instrument

        client = instrument(httpx_client(__import__(library), "Client", ask))
        body = body_of(ask)

        def call() -> int:
            with holdfast.timeout(LIMIT):
                return int(client.request(method_of(ask), ask.url, content=body).status_code)

        return call, client.close

    return prepare


async def _aiohttp(ask: Ask) -> Any:
    import aiohttp

    from holdfast.adapters.aiohttp import instrument

    session = instrument(aiohttp.ClientSession())
    body = body_of(ask)

    async def call() -> int:
        async with (
            holdfast.timeout(LIMIT),
            session.request(method_of(ask), ask.url, data=body, proxy=ask.proxy or None) as answer,
        ):
            await answer.read()
            return int(answer.status)

    return call, session.close


def _requests(ask: Ask) -> Any:
    from holdfast.adapters.requests import instrument

    session = instrument(requests_session(ask))
    body = body_of(ask)

    def call() -> int:
        with holdfast.timeout(LIMIT):
            return int(session.request(method_of(ask), ask.url, data=body).status_code)

    return call, session.close


def _urllib3(ask: Ask) -> Any:
    from holdfast.adapters.requests import instrument

    manager = instrument(urllib3_manager(ask))
    body = body_of(ask)

    def call() -> int:
        with holdfast.timeout(LIMIT):
            return int(manager.request(method_of(ask), ask.url, body=body).status)

    return call, manager.clear


_SCOPE: Final = f"holdfast.timeout({LIMIT:g})"
_ANYIO: Final = ("anyio", "anyio._backends._asyncio", "h11")
_HTTPX: Final = "holdfast.adapters.httpx"
_REQUESTS: Final = "holdfast.adapters.requests"


def _made(name: str, prepare: Any, *modules: str, loop: str = "", trailed: bool = True) -> Client:
    wanted = ("holdfast.net", "holdfast.runtime.scope", *modules)
    return Client(f"holdfast {name}", _SCOPE, prepare, wanted, loop, ours=True, trailed=trailed)


_DNS: Final = "holdfast.adapters.dnspython"
_AIOHTTP: Final = ("aiohttp", "holdfast.adapters.aiohttp")
OURS: Final = [
    _made("streams", _streams(), loop="asyncio", trailed=False),
    _made("streams, uvloop", _streams(), "uvloop", loop="uvloop", trailed=False),
    _made(
        "streams, dnspython", _streams(messages=True), "dns", _DNS, loop="asyncio", trailed=False
    ),
    _made("httpx", _httpx("httpx"), "httpx", *_ANYIO, _HTTPX, loop="asyncio"),
    _made("httpx2", _httpx("httpx2"), "httpx2", *_ANYIO, _HTTPX, loop="asyncio"),
    _made("httpx2, uvloop", _httpx("httpx2"), "httpx2", "uvloop", *_ANYIO, _HTTPX, loop="uvloop"),
    _made("httpx, sync", _httpx_sync("httpx"), "httpx", _HTTPX),
    _made("httpx2, sync", _httpx_sync("httpx2"), "httpx2", _HTTPX),
    _made("aiohttp", _aiohttp, *_AIOHTTP, loop="asyncio"),
    _made("aiohttp, uvloop", _aiohttp, "uvloop", *_AIOHTTP, loop="uvloop"),
    _made("requests", _requests, "requests", _REQUESTS),
    _made("urllib3", _urllib3, "urllib3", _REQUESTS),
]
