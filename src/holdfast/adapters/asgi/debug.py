"""`/debug/holdfast/tree`: the live tree of this process, for clients on this machine only."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Final

from holdfast.adapters.asgi.types import Headers, Send, ServerScope
from holdfast.runtime.live import tree

__all__ = ["debug_page"]

_BY_PROXY: Final = (b"forwarded", b"via", b"x-real-ip")


async def debug_page(scope: ServerScope, send: Send, counts: Mapping[str, int]) -> None:
    """Answer a request below `/debug/holdfast/`: `tree` as text, `tree.json` as JSON."""
    page = scope["path"].rpartition("/debug/holdfast/")[2]
    status, content_type = 200, b"text/plain; charset=utf-8"
    if not _is_local(scope.get("client")) or _came_by_proxy(scope["headers"]):
        status, body = 403, "The live tree is shown to clients on this machine only.\n"
    elif page == "tree":
        body = f"{tree()}\n"
    elif page == "tree.json":
        live = tree().as_dict()
        live["requests"] = dict(counts)
        content_type, body = b"application/json", json.dumps(live)
    else:
        status, body = 404, "There are tree and tree.json here.\n"
    raw = body.encode()
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(raw)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def _came_by_proxy(headers: Headers) -> bool:
    # A proxy on this machine looks like a client on it, whoever stands behind.
    return any(name in _BY_PROXY or name.startswith(b"x-forwarded-") for name, _ in headers)


def _is_local(client: tuple[str, int] | None) -> bool:
    if client is None:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
