"""One life of an application inside a server that is not ours: its host, its gate, its signals."""

from __future__ import annotations

import asyncio
import signal
import sys

from holdfast.adapters.asgi.gate import Gate
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.runtime.chained import ChainedSignals
from holdfast.runtime.gated import GatedDrain
from holdfast.runtime.lifecycle import Host
from holdfast.runtime.signals.note import describe

__all__ = ["Server", "Session"]


class Server:
    """The server around us, as a component: all that can be done with it is to hold back a signal.

    Args:
        drain: how it is let go of.
        session: what it is a part of.
    """

    def __init__(self, drain: GatedDrain, session: Session) -> None:
        self._drain = drain
        self._session = session

    async def start(self) -> None:
        """It runs already."""

    async def prepare(self, request: ShutdownRequest) -> None:
        """Announce the stop."""
        self._drain.begin(request.deadline)

    async def stop(self, deadline: Instant) -> None:
        """Drain; what is served is cut at the monotonic instant `deadline`."""
        self._drain.begin(deadline)
        await self._drain.finish(self._session.lame_duck_over)

    async def wait(self) -> None:
        """If it dies, so do we."""
        await asyncio.get_running_loop().create_future()

    def hurry(self) -> None:
        """Cut now whatever is open."""
        self._drain.hurry()


class Session:
    """See the module. To be made on the loop that it is to live on.

    Args:
        host: not started.
        gate: what all requests pass.
        stop: the times of a stop.
        lame_duck: the longest one.
    """

    def __init__(self, host: Host, gate: Gate, stop: StopSettings, lame_duck: Duration) -> None:
        self.host = host
        self._stop = stop
        self._lame_duck = lame_duck
        self._gone = False
        self._by_hand = False
        self._keeps_lifespan = True
        self.signals = ChainedSignals(asyncio.get_running_loop(), self._heard)
        self._drain = GatedDrain(gate, self._terms, self._tell, cut=host.cut)
        self.server = Server(self._drain, self)

    def take_signals(self) -> str:
        """Stand before the handlers of the server; why that cannot be, empty when it was done."""
        return self.signals.take()

    def lame_duck_over(self) -> None:
        """The server may hear of the signal, unless it would end before we are done."""
        if self._keeps_lifespan:
            self.signals.release()

    async def server_gone(self) -> None:
        """The server has closed its connections, and ends the lifespan: stop, if that is new."""
        self._gone = True
        self._drain.server_ended()
        self.host.stop("it ends the lifespan", by="the server")
        await self.host.ended()

    async def without_lifespan(self) -> None:
        """There is none that could tell the server to wait for us: so it hears of the signal last.

        To be called when the host has started, or could not start.
        """
        self._keeps_lifespan = False
        try:
            await self.host.ended()
        finally:
            self.signals.release()

    def _heard(self, number: int) -> None:
        self._by_hand = number == signal.SIGINT and _has_terminal()
        self.host.audit.heard(describe(number))

    def _terms(self) -> DrainTerms:
        stop = self._stop
        if self._gone or self._by_hand:
            # Nobody is connected, or somebody sits there and wants it to end.
            return DrainTerms(calm=0.0, most=0.0, quiet=0.0, farewell=min(0.5, stop.websocket))
        return DrainTerms(
            calm=stop.calm,
            least=stop.lame_duck_least,
            most=self._lame_duck,
            quiet=stop.quiet,
            farewell=stop.websocket,
        )

    def _tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        self.host.journal.write(kind, subject, detail, data=data)


def _has_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, OSError, ValueError):
        return False
