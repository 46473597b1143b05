"""requests and urllib3: what is left goes out with every request, and no call outlives it.

    from holdfast.adapters.requests import instrument

    session = instrument(requests.Session())       # or a urllib3.PoolManager

    with holdfast.timeout(2.0):
        session.get("http://orders.local/42")      # tells orders what is left of the 2 s

Nothing can be cancelled in a thread, so every single wait is bounded instead: for a place in the
pool, for the name, for each address, for the proxy, for TLS, for each part that is sent or read.
Retries and redirects of the library share the one budget.

What belongs here: carriers for the two libraries. What does not: retries of our own.
"""

from __future__ import annotations

from typing import Any, TypeVar

from holdfast.adapters.requests.classes import SESSION, ClientClasses, classes_for
from holdfast.adapters.requests.wrapping import unwrap, wrap_manager, wrap_pool, wrap_session
from holdfast.domain.instant import Duration
from holdfast.domain.phases import DEFAULT_SHARES, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.outbound import Options, Outbound

__all__ = ["instrument", "uninstrument"]

C = TypeVar("C")


def instrument(
    client: C,
    *,
    service: str = "",
    wire: WireSettings = DEFAULT_WIRE,
    refuse_below: Duration = 0.0,
    reserve: Duration = 0.0,
    raise_for_deadline: bool = True,
    shares: Shares = DEFAULT_SHARES,
    observer: TrailObserver | None = None,
    resolver: Resolver | None = None,
) -> C:
    """Make a client carry what is left; the same client. Connections that it keeps are dropped.

    Each call may raise, beside the errors of the library:

    - `DeadlineExceeded`, which is the library's time-out error too: what was left is spent, and
      `phase` says in which phase; or the hop below answered 504 because its part was spent;
    - `InsufficientBudget`, likewise: refused before anything was sent;
    - `PhaseTimeout`, likewise: a phase has used up its share.

    Args:
        client: a `requests.Session`, a `urllib3.PoolManager` or `ProxyManager`, or one pool.
        service: name of the service that is called; the host when empty.
        wire: which headers are sent.
        refuse_below: seconds; a call with less left is refused before it is sent.
        reserve: seconds that are kept back from what the next hop is told.
        raise_for_deadline: whether a 504 of a hop that ran out of time is raised, or returned.
        shares: how the budget is divided over the phases.
        observer: is told of every call.
        resolver: who looks names up; the one of the process when none is given.

    Raises:
        TypeError: `client` is something else.
        ValueError: a number of seconds is negative.
    """
    known = classes_for(client)
    options = Options(service, wire, refuse_below, reserve, raise_for_deadline, shares, observer)
    made = ClientClasses(Outbound(options, known.errors), resolver or default_resolver(), known)
    subject: Any = client
    if known.name == SESSION:
        wrap_session(subject, made)
    elif hasattr(subject, "pool_classes_by_scheme"):
        wrap_manager(subject, made)
    else:
        wrap_pool(subject, made)
    return client


def uninstrument(client: C) -> C:
    """Undo `instrument`; the same client. One that is not instrumented stays as it is.

    Raises:
        TypeError: `client` is not a client of requests or urllib3.
    """
    classes_for(client)
    unwrap(client)
    return client
