"""A message with the ambient context, and a confirm that is waited for as long as there is time.

The broker confirms that it has a message. Where the deadline passes before, the message may be
there or not: that is an outcome of its own, and no failure that may be tried again.

What is left is also given to the broker, as the expiration of the message, so that it drops by
itself what nobody waits for any more. It looks at the head of a queue only, and its clock starts
when the message arrives, so consumers look again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aio_pika.exceptions import PublishError
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from holdfast.domain.cause import Cause
from holdfast.domain.errors import OutcomeUnknown
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.shares import Phase
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.runtime.bounded import Bounded, cut_by_scope
from holdfast.runtime.carry import inject

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractMessage, PublishResultType

__all__ = ["ConfirmMissing", "publish"]


class ConfirmMissing(OutcomeUnknown, TimeoutError):
    """The confirm of a message did not come in time. The broker may have it.

    A `TimeoutError`, as aio-pika raises for a confirm that is late.
    """

    def __init__(self, cause: Cause) -> None:
        OutcomeUnknown.__init__(self, cause)

    # OSError, a base of TimeoutError, has a __str__ of its own that comes first in C.
    def __str__(self) -> str:
        return OutcomeUnknown.__str__(self)


class _Publishing(Bounded):
    """One publish and its bounds. The phase that is told is the wait for a channel."""

    __slots__ = ()
    client = "aio-pika"
    phase = Phase.POOL


class _Sent:
    """What `exchange.publish` reads of a message. A copy would cost a third of a publish."""

    __slots__ = ("body", "properties")

    def __init__(self, body: bytes, properties: Basic.Properties) -> None:
        self.body = body
        self.properties = properties


async def publish(
    exchange: AbstractExchange,
    message: AbstractMessage,
    routing_key: str,
    *,
    mandatory: bool = True,
    expire: bool = True,
    detached: bool = False,
    refuse_below: Duration = 0.0,
    wire: WireSettings = DEFAULT_WIRE,
) -> PublishResultType | None:
    """Publish `message` with deadline, identity, stage and baggage; wait for the confirm.

    Args:
        exchange: of a channel with publisher confirms, which is the default of aio-pika.
        message: is not changed; its own headers and a shorter expiration are sent too.
        routing_key: as for `exchange.publish`.
        mandatory: whether a message that no queue gets is an error. Unlike `exchange.publish`,
            which by default returns such a message to a caller that seldom looks, this raises.
        expire: let the broker drop the message when its deadline has passed.
        detached: for work that must be done whoever waits: the message gets no deadline, and the
            ambient one still bounds the wait for the confirm.
        refuse_below: seconds that the work needs at least.
        wire: names and grammars of the headers.

    Raises:
        InsufficientBudget: nothing is left, or less than `refuse_below`; nothing was sent.
        DeadlineExceeded: the deadline passed while aio-pika had no connection; nothing was sent.
        ConfirmMissing: the deadline passed, or the scope was cancelled, before the confirm came: an
            `OutcomeUnknown`.
        Exception: whatever `exchange.publish` raises: `PublishError` of aio-pika where no queue
            gets the message, `DeliveryError` where the broker refuses it.
    """
    work = _Publishing(f"PUBLISH {routing_key or exchange.name}"[:96])
    work.admit(refuse_below)
    await _channel_of(exchange, work)
    work.admit(refuse_below)
    properties = message.properties
    headers = dict(message.headers or {})
    inject(cast("MutableMapping[str, str]", headers), detached=detached, wire=wire)
    properties.headers = headers
    if expire and not detached and work.limit != NEVER:
        _expire(properties, work.left)
    sent = cast("AbstractMessage", _Sent(message.body, properties))
    try:
        told = await exchange.publish(sent, routing_key, mandatory=mandatory)
    except asyncio.CancelledError as cut:
        cause = cut_by_scope(cut)
        if cause is None:  # by somebody else, too, whose cancellation it stays
            cut.add_note(f"{work.name}: its confirm did not come, so the broker may have it")
            raise
        detail = "the broker did not confirm it in time"
        raise ConfirmMissing(work.cause(detail, kind=cause.kind)) from cut
    except (ConnectionError, OSError) as lost:
        lost.add_note(f"{work.name}: its confirm did not come, so the broker may have it")
        raise
    if isinstance(told, DeliveredMessage) and isinstance(told.delivery, Basic.Return):
        raise PublishError(told, told.delivery)
    return told


async def _channel_of(exchange: AbstractExchange, work: _Publishing) -> None:
    """Wait until there is a channel, which takes a while when a connection is made anew.

    It is waited for here, where it is known that nothing was sent: in `exchange.publish` nobody
    could tell that wait from the one for the confirm.
    """
    channel: AbstractChannel | None = getattr(exchange, "channel", None)
    if channel is None or channel.is_closed:
        return  # `exchange.publish` says so
    try:
        await channel.get_underlay_channel()
    except asyncio.CancelledError:
        work.interrupted("waiting for a channel, nothing was sent")
        raise


def _expire(properties: Basic.Properties, left: Duration) -> None:
    """Have the broker drop it after `left` seconds, or sooner where it says so itself."""
    most = int(max(0.0, left) * 1000)
    own = properties.expiration
    properties.expiration = str(most if own is None else min(most, int(own)))
