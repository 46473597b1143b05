"""What a host starts and stops: servers, workers, pools, registrations, watches."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest

__all__ = ["ApplicationFailed", "Component", "Hurried"]


class ApplicationFailed(HoldfastError):
    """An application said that it cannot start, or cannot stop in order, whoever serves it."""


class Component(Protocol):
    """One part of a process.

    The host calls `start` once, and the others only when that has returned. Each call is bounded:
    when its time is over it is cancelled, and the host goes on without it.
    """

    async def start(self) -> None:
        """Come up. It is up when this returns; raises when it cannot."""
        ...

    async def prepare(self, request: ShutdownRequest) -> None:
        """The stop has begun, and `stop` will come soon. To return is to acknowledge that."""
        ...

    async def stop(self, deadline: Instant) -> None:
        """Let work end and close, by `deadline` (a monotonic instant, as the loop's clock has it).

        What is still under way at that time is cancelled by the host; a moment to clean up is left.
        """
        ...

    async def wait(self) -> None:
        """Wait for ever; return or raise when the component has ended by itself."""
        ...


@runtime_checkable
class Hurried(Protocol):
    """A component that wants to be told when its stop has to be over now."""

    def hurry(self) -> None:
        """Cut what is still under way. Called once the stop has begun, perhaps more than once."""
        ...
