"""gRPC, the client: what is left goes along, and an error says where the time went.

    async with open_channel("orders.local:50051", service="orders") as channel:
        stub = OrdersStub(channel)
        async with holdfast.timeout(1.0):
            await stub.Get(request)

gRPC keeps deadlines well and says nothing about them: whether the name, the connection, the server
or a stream took the time, the status and its text are the same. What can be told from outside is
told here, as phases: until the channel is ready (`tcp.connect`, with look-up and TLS, which gRPC
does by itself), until the server answers (`grpc.header`), and until it is done (`grpc.message`).

    errors     ours, which are grpc's as well
    outward    what a call tells its server
    ends       what it is told in the end, and what is raised for it
    channels   a channel, and its methods
    rpc        one call: its bounds, its record, its errors
    answers    what the caller gets
    syncchannels, blocking   the same without asyncio

A call that nobody awaits or reads, and that ends by itself, is not told to an observer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.adapters.grpc_client.channels import BoundChannel, host_of
from holdfast.adapters.grpc_client.errors import BLOCKING_ERRORS, ERRORS
from holdfast.adapters.grpc_client.outward import wire_of
from holdfast.adapters.grpc_client.syncchannels import BoundSyncChannel
from holdfast.domain.discovery.keepalive import Keepalive
from holdfast.domain.instant import Duration
from holdfast.domain.phases import DEFAULT_SHARES, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.outbound import Options, Outbound

__all__ = ["Keepalive", "open_channel", "open_sync_channel"]

# With a table, grpc sends the index of a time-out that it has sent before in place of one that is
# up to 3 % shorter: of 30 s it tells a server that is called a little later 0.9 s too much
# (TimeoutCompressorImpl::EncodeWith in hpack_encoder.cc). Costs 2 % of a short call.
_EXACT: Final = ("grpc.http2.hpack_table_size.encoder", 0)


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    service: str = "",
    wire: WireSettings = DEFAULT_WIRE,
    refuse_below: Duration = 0.0,
    reserve: Duration = 0.0,
    raise_for_deadline: bool = True,
    shares: Shares = DEFAULT_SHARES,
    observer: TrailObserver | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[tuple[str, Any]] = (),
    compression: grpc.Compression | None = None,
    keepalive: Keepalive | None = None,
) -> grpc.aio.Channel:
    """A channel of grpc.aio whose calls obey, and say where their time went.

    Every call gets what is left of the ambient deadline, rounded down to what gRPC can tell a
    server exactly, and never more than the `timeout=` of the call itself. Identity, stage and
    baggage go along as metadata. For stubs it is a channel like any other.

    Args:
        target: what grpc takes: `orders.local:50051`, `dns:///orders.local:50051`, `unix:/run/x`.
        credentials: for TLS; in the clear without them.
        service: name of the service that is called; the host when empty.
        wire: which metadata is sent. The time left has a header of grpc's own; another one goes
            along where `headers` are not the default ones.
        refuse_below: seconds; a call with less left is refused before it is sent.
        reserve: seconds that are kept back from what the server is told. gRPC ends the call with
            them left, as both sides have one deadline there; a call with no more is refused.
        raise_for_deadline: whether `DEADLINE_EXCEEDED` of a server whose deadline was spent, and
            which says so as servers of Holdfast do, is raised as `DeadlineExceeded`, with what it
            said in `cause.below`, or as it came.
        shares: how the budget is divided over the phases. The dial is bounded by its share, unless
            the call has `wait_for_ready`.
        observer: is told of every call.
        interceptors: of your own, inside of ours.
        options: of the channel, see grpc.
        compression: of the channel, see grpc.
        keepalive: how soon a dead peer is seen; without it, by the deadlines of calls alone. For
            peers that allow such pings: other servers close the connection because of them.

    Raises, from its calls:
        DeadlineExceeded: the deadline is spent; also an `AioRpcError` where the call itself raises.
        InsufficientBudget: too little is left, or its own `timeout=` is not above zero; nothing was
            sent. An `AioRpcError`.
        PhaseTimeout: the channel was not ready within its share. An `AioRpcError` too, with the
            status `UNAVAILABLE`.
        ValueError: its own `timeout=` is NaN.
    """
    told = (service, wire_of(wire), refuse_below, reserve, raise_for_deadline, shares, observer)
    outbound = Outbound(Options(*told), ERRORS)
    own = list(interceptors)
    every = _every(options, keepalive)
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, every, compression, own)
    else:
        channel = grpc.aio.secure_channel(target, credentials, every, compression, own)
    return BoundChannel(channel, outbound, host_of(target))


def open_sync_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    service: str = "",
    wire: WireSettings = DEFAULT_WIRE,
    refuse_below: Duration = 0.0,
    reserve: Duration = 0.0,
    raise_for_deadline: bool = True,
    shares: Shares = DEFAULT_SHARES,
    observer: TrailObserver | None = None,
    interceptors: Sequence[Any] = (),
    options: Sequence[tuple[str, Any]] = (),
    compression: grpc.Compression | None = None,
    keepalive: Keepalive | None = None,
) -> grpc.Channel:
    """The same for threads: a channel of grpc without asyncio, for stubs of all four kinds.

    Futures, `stub.Get.future(...)`, are bound too. A thread cannot be cancelled, so a scope that is
    cancelled does not end a call; its deadline does. It may do so up to 1 % of what is left before
    it, by which grpc rounds.

    Args and errors are those of `open_channel`; the errors are `grpc.RpcError` and `grpc.Call`
    here, and `InsufficientBudget` is raised by the call of the stub itself. Close it when it is
    done with, or use it in a `with` block.
    """
    told = (service, wire_of(wire), refuse_below, reserve, raise_for_deadline, shares, observer)
    outbound = Outbound(Options(*told), BLOCKING_ERRORS)
    every = _every(options, keepalive)
    if credentials is None:
        channel = grpc.insecure_channel(target, every, compression)
    else:
        channel = grpc.secure_channel(target, credentials, every, compression)
    return BoundSyncChannel(channel, interceptors, outbound, host_of(target))


def _every(
    options: Sequence[tuple[str, Any]], keepalive: Keepalive | None
) -> tuple[tuple[str, Any], ...]:
    ours = (_EXACT, *(() if keepalive is None else keepalive.client_options()))
    given = {name for name, _ in options}
    return (*(pair for pair in ours if pair[0] not in given), *options)
