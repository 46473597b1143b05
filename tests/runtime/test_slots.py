"""What every scope has is in slots that are written at birth, by hand: here none is forgotten."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi.request import Request
from holdfast.adapters.asgi.socket import Socket
from holdfast.domain.policy import Limits, Policy
from holdfast.domain.tree import Node
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.terms import Terms

Exchange = Request | Socket


def missing(node: Node) -> set[str]:
    """Slots of the class and of its bases that were never written."""
    slots = {name for base in type(node).__mro__ for name in base.__dict__.get("__slots__", ())}
    return {name for name in slots - {"__dict__", "__weakref__"} if not hasattr(node, name)}


class Forgetful(Node):
    __slots__ = ("forgotten",)


def test_a_slot_that_is_forgotten_is_found() -> None:
    assert missing(Forgetful("x")) == {"forgotten"}


async def test_every_slot_of_a_scope_is_written() -> None:
    nodes: list[Node] = [
        Node("x"),
        HostedNode("x"),
        holdfast.Scope("x"),
        holdfast.timeout(1, grace=0.5),
        holdfast.shield(1),
        holdfast.tasks().scope,
    ]
    for node in nodes:
        assert not missing(node), node


async def no_call(*_: Any) -> Any:
    pytest.fail("nobody reads or writes here")


def made(kind: type[Exchange], *headers: tuple[bytes, bytes]) -> Exchange:
    asgi = {"type": "http", "path": "/", "method": "GET", "headers": list(headers)}
    terms = Terms(Policy(defaults=Limits(header=1.0, request=5.0, refuse_below=0.1)), Counter())
    return kind(asgi, no_call, no_call, terms)


# Known only when the policy was asked; nobody sees an exchange that has not begun.
WRITTEN_BY_BEGIN = {"at", "grace", "hop", "ours", "reserve", "trace"}


@pytest.mark.parametrize("kind", [Request, Socket])
async def test_every_slot_of_an_exchange_is_written(kind: type[Exchange]) -> None:
    exchange = made(kind)
    assert missing(exchange) <= WRITTEN_BY_BEGIN
    assert exchange.begin(False) is None
    assert not missing(exchange)
    assert exchange.conclude(None) is None
    assert not missing(exchange)


@pytest.mark.parametrize("left", [b"0", b"50"])
@pytest.mark.parametrize("kind", [Request, Socket])
async def test_every_slot_of_an_exchange_that_was_refused_is_written(
    kind: type[Exchange], left: bytes
) -> None:
    exchange = made(kind, (b"x-envoy-expected-rq-timeout-ms", left))
    assert exchange.begin(False) is not None
    assert not missing(exchange)
