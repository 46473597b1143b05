"""Sockets that obey: dialled, read and closed by their deadlines; names; what a call went through.

    from holdfast import net

    stream = await net.dial("orders.local", 443, tls=ssl.create_default_context())
    stream.set_deadline(holdfast.current().deadline)
    body = net.Limit(stream, 10 * 2**20)

    client = net.Dialer(resolver=net.Resolver(), shares=net.Shares())

A part of the face: it is for users, it only names what is in the domain and in
`holdfast.runtime.net`, and nothing inside imports it.
"""

from __future__ import annotations

from holdfast.domain.discovery.names import Answer, CacheTerms, NameStats
from holdfast.domain.errors import LimitExceeded, PhaseTimeout, StreamTimeout
from holdfast.domain.phases import Attempt, Ended, Phase, Shares, Step, Trail
from holdfast.ports.lookup import Lookup
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.attempt import SocketOptions
from holdfast.runtime.net.blockdial import dial_blocking
from holdfast.runtime.net.blocking import BoundSocket, within_limit
from holdfast.runtime.net.dial import Dialer, dial
from holdfast.runtime.net.kernel import bound_by_kernel
from holdfast.runtime.net.observers import Observers
from holdfast.runtime.net.proxying import ProxyAddress
from holdfast.runtime.net.readers import Bounded, ByteReader, Chain, Limit, PushBack
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.net.stream import Stream
from holdfast.runtime.net.streams import Reader, Writer, open_connection, start_server

__all__ = [
    "Answer",
    "Attempt",
    "BoundSocket",
    "Bounded",
    "ByteReader",
    "CacheTerms",
    "Chain",
    "Dialer",
    "Ended",
    "Limit",
    "LimitExceeded",
    "Lookup",
    "NameStats",
    "Observers",
    "Phase",
    "PhaseTimeout",
    "ProxyAddress",
    "PushBack",
    "Reader",
    "Resolver",
    "Shares",
    "SocketOptions",
    "Step",
    "Stream",
    "StreamTimeout",
    "Trail",
    "TrailObserver",
    "Writer",
    "bound_by_kernel",
    "default_resolver",
    "dial",
    "dial_blocking",
    "open_connection",
    "start_server",
    "within_limit",
]
