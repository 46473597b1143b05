"""grpc, the server: deadlines and identity of its calls, its life, and its health.

carrier = GrpcCarrier()
server = grpc.aio.server(interceptors=[carrier])
host.add("grpc", GrpcServer(server, calls=carrier))

carrier   the context of each call, for `grpc.aio`
methods   its handlers, with a scope around each call
rpc       that scope
terms     what holds for a method
answers   what a call that ended early is answered with
threads   plain functions, and `grpc.server`
streamed  plain functions on `grpc.aio` that stream their answers
calls     what is in flight
server    start and stop, as a component
feed      a probe that the health service follows, as a component
stops     what a handler can know of the stop
"""

from __future__ import annotations

from holdfast.adapters.grpc_server.calls import GrpcCalls
from holdfast.adapters.grpc_server.carrier import GrpcCarrier
from holdfast.adapters.grpc_server.feed import GrpcHealthFeed, GrpcHealthStatus
from holdfast.adapters.grpc_server.server import GrpcHealth, GrpcServer
from holdfast.adapters.grpc_server.stops import stop_begun, stopping
from holdfast.adapters.grpc_server.threads import GrpcThreadCarrier
from holdfast.domain.discovery.keepalive import Keepalive

__all__ = [
    "GrpcCalls",
    "GrpcCarrier",
    "GrpcHealth",
    "GrpcHealthFeed",
    "GrpcHealthStatus",
    "GrpcServer",
    "GrpcThreadCarrier",
    "Keepalive",
    "stop_begun",
    "stopping",
]
