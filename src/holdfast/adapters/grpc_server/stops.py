"""What a handler can know of the stop of its server, wherever it runs.

    while not stopping():
        await context.write(await prices.next())

A call with one answer need not care: it is served to its end. A stream may have none, and would be
cut at the end of the drain.
"""

from __future__ import annotations

from holdfast.adapters.grpc_server.rpc import Rpc, present
from holdfast.domain.errors import UsageError

__all__ = ["stop_begun", "stopping"]


def stopping() -> bool:
    """Whether the stop of the server has begun. In coroutines and in threads.

    Raises:
        UsageError: not within a call that a carrier of this package serves.
    """
    return _present().terms.ending.begun


async def stop_begun() -> None:
    """Wait until the stop of the server begins; from then on return at once.

    Raises:
        UsageError: not within a call that a carrier of this package serves.
    """
    await _present().terms.ending.wait()


def _present() -> Rpc:
    rpc = present()
    if rpc is None:
        raise UsageError(
            "there is no call here; use this in handlers of a server that has a GrpcCarrier, or a "
            "GrpcThreadCarrier, among its interceptors"
        )
    return rpc
