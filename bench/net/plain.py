"""The clients as they are, each with its own time-out of one second."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from bench.net.bad import Ask
from bench.net.clients import LIMIT, Client, fetch, tunnel

__all__ = ["PLAIN", "body_of"]


def body_of(ask: Ask) -> bytes | None:
    return bytes(ask.upload) if ask.upload else None


def method_of(ask: Ask) -> str:
    return "POST" if ask.upload else "GET"


def _urllib(ask: Ask) -> Any:
    from urllib import request

    parts: list[request.BaseHandler] = [
        request.ProxyHandler({"https": ask.proxy} if ask.proxy else {})
    ]
    opener = request.build_opener(*parts)
    body = body_of(ask)

    def call() -> int:
        with opener.open(ask.url, body, timeout=LIMIT) as answer:
            answer.read()
            return int(answer.status)

    return call, opener.close


def urllib3_manager(ask: Ask, **options: Any) -> Any:
    import urllib3

    if ask.proxy:
        return urllib3.ProxyManager(ask.proxy, **options)
    return urllib3.PoolManager(**options)


def _urllib3(ask: Ask, retries: Any = None, timeout: Any = LIMIT) -> Any:
    manager = urllib3_manager(ask, timeout=timeout)
    body = body_of(ask)

    def call() -> int:
        return int(manager.request(method_of(ask), ask.url, body=body, retries=retries).status)

    return call, manager.clear


def _urllib3_total(ask: Ask) -> Any:
    import urllib3

    return _urllib3(ask, retries=False, timeout=urllib3.Timeout(total=LIMIT))


def requests_session(ask: Ask) -> Any:
    import requests

    session = requests.Session()
    session.trust_env = False
    if ask.proxy:
        session.proxies = {"https": ask.proxy}
    return session


def _requests(ask: Ask) -> Any:
    session = requests_session(ask)
    body = body_of(ask)

    def call() -> int:
        return int(session.request(method_of(ask), ask.url, data=body, timeout=LIMIT).status_code)

    return call, session.close


def httpx_client(api: Any, kind: str, ask: Ask, **options: Any) -> Any:
    return getattr(api, kind)(
        trust_env=False, follow_redirects=True, proxy=ask.proxy or None, **options
    )


def _httpx_sync(library: str) -> Any:
    def prepare(ask: Ask) -> Any:
        client = httpx_client(__import__(library), "Client", ask, timeout=LIMIT)
        body = body_of(ask)

        def call() -> int:
            return int(client.request(method_of(ask), ask.url, content=body).status_code)

        return call, client.close

    return prepare


def _httpx(library: str, outer: bool = False) -> Any:
    async def prepare(ask: Ask) -> Any:
        options = {} if outer else {"timeout": LIMIT}
        client = httpx_client(__import__(library), "AsyncClient", ask, **options)
        body = body_of(ask)

        async def call() -> int:
            async with asyncio.timeout(LIMIT if outer else None):
                answer = await client.request(method_of(ask), ask.url, content=body)
            return int(answer.status_code)

        return call, client.aclose

    return prepare


def _aiohttp(**limits: float) -> Any:
    async def prepare(ask: Ask) -> Any:
        import aiohttp

        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(**limits))
        body = body_of(ask)

        async def call() -> int:
            async with session.request(
                method_of(ask), ask.url, data=body, proxy=ask.proxy or None
            ) as answer:
                await answer.read()
                return int(answer.status)

        return call, session.close

    return prepare


async def _streams(ask: Ask) -> Any:
    context = ssl.create_default_context()

    async def open_one(host: str, port: int, tls: ssl.SSLContext | None) -> tuple[Any, Any]:
        if not ask.proxy:
            return await asyncio.open_connection(host, port, ssl=tls)
        proxy = urlsplit(ask.proxy)
        reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port)
        await tunnel(reader, writer, f"{host}:{port}")
        await writer.start_tls(context, server_hostname=host)
        return reader, writer

    async def call() -> int:
        async with asyncio.timeout(LIMIT):
            return await fetch(ask, open_one, context)

    async def close() -> None:
        return

    return call, close


_ONE: Final = f"timeout={LIMIT:g}"
_ANYIO: Final = ("anyio", "anyio._backends._asyncio", "h11")
PLAIN: Final = [
    Client("urllib.request", _ONE, _urllib, ("urllib.request",)),
    Client("urllib3", _ONE, _urllib3, ("urllib3",)),
    Client("urllib3, total", "Timeout(total=1), no retries", _urllib3_total, ("urllib3",)),
    Client("requests", _ONE, _requests, ("requests",)),
    Client("httpx, sync", _ONE, _httpx_sync("httpx"), ("httpx",)),
    Client("httpx2, sync", _ONE, _httpx_sync("httpx2"), ("httpx2",)),
    Client("httpx", _ONE, _httpx("httpx"), ("httpx", *_ANYIO), "asyncio"),
    Client("httpx2", _ONE, _httpx("httpx2"), ("httpx2", *_ANYIO), "asyncio"),
    Client(
        "httpx2, outer",
        "inside asyncio.timeout(1)",
        _httpx("httpx2", outer=True),
        ("httpx2", *_ANYIO),
        "asyncio",
    ),
    Client("aiohttp", "total=1", _aiohttp(total=LIMIT), ("aiohttp",), "asyncio"),
    Client(
        "aiohttp, phases",
        "connect, sock_connect, sock_read = 1",
        _aiohttp(connect=LIMIT, sock_connect=LIMIT, sock_read=LIMIT),
        ("aiohttp",),
        "asyncio",
    ),
    Client("streams", "inside asyncio.timeout(1)", _streams, (), "asyncio"),
]
