"""The one seam to requests and urllib3: their errors with ours, their pools with our sockets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from urllib3.connectionpool import HTTPConnectionPool

from holdfast.adapters.requests.pools import bounded_pool
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import DIALLING, Phase, Trail
from holdfast.runtime.net.resolver import Resolver
from holdfast.runtime.outbound import ErrorClasses, Outbound, both

__all__ = ["SESSION", "ClientClasses", "Known", "classes_for"]

SESSION: Final = "requests"
_POOLS: Final = "urllib3"
_HOME: Final = "holdfast.adapters.requests"


@dataclass(frozen=True, slots=True)
class Known:
    """A library that is known here.

    Attributes:
        name: `requests` or `urllib3`.
        errors: ours, as it expects them.
        late: its errors that say that a time-out has passed.
        any: its errors.
    """

    name: str
    errors: ErrorClasses
    late: tuple[type[Exception], ...]
    any: tuple[type[Exception], ...]


class ClientClasses:
    """What one instrumented client is made of.

    Attributes:
        outbound: its options.
        resolver: who looks names up for it.
        known: its library.
    """

    def __init__(self, outbound: Outbound, resolver: Resolver, known: Known) -> None:
        self.outbound = outbound
        self.resolver = resolver
        self.known = known
        self._pools: dict[type, Any] = {}

    def pool(self, kind: type) -> Any:
        """A class of pools, with its places, attempts and connections bounded."""
        if kind not in self._pools:
            shares = self.outbound.options.shares
            self._pools[kind] = bounded_pool(kind, self.resolver, shares)
        return self._pools[kind]


def classes_for(client: object) -> Known:
    """The library of a client.

    Raises:
        TypeError: it is none that is known here.
    """
    requests: Any = sys.modules.get("requests")  # who has a session has imported it
    if requests is not None and isinstance(client, requests.Session):
        return _of_requests(requests)
    if isinstance(client, urllib3.PoolManager | HTTPConnectionPool):
        return _of_urllib3()
    raise TypeError(f"{client!r} is not a requests.Session, a urllib3.PoolManager or a pool of one")


_KNOWN: Final[dict[str, Known]] = {}


def _of_requests(requests: Any) -> Known:
    if SESSION not in _KNOWN:
        errors = requests.exceptions
        _KNOWN[SESSION] = Known(
            SESSION,
            _errors(SESSION, errors.Timeout, errors.ConnectTimeout, errors.ReadTimeout),
            (errors.Timeout, urllib3.exceptions.EmptyPoolError),
            (errors.RequestException, urllib3.exceptions.HTTPError, OSError),
        )
    return _KNOWN[SESSION]


def _of_urllib3() -> Known:
    if _POOLS not in _KNOWN:
        errors = urllib3.exceptions
        # Those of the phases want a pool and a URL, which an error of ours does not have.
        _KNOWN[_POOLS] = Known(
            _POOLS,
            _errors(_POOLS, errors.TimeoutError, errors.TimeoutError, errors.TimeoutError),
            (errors.TimeoutError, errors.EmptyPoolError),
            (errors.HTTPError, OSError),
        )
    return _KNOWN[_POOLS]


def _errors(library: str, general: type, connect: type, read: type) -> ErrorClasses:
    # Programs catch `requests.Timeout` today and shall go on to work, so our errors are both.
    blank = ("request", "response") if library == SESSION else ()
    exceeded = both(DeadlineExceeded, general, _HOME, *blank)
    insufficient = both(InsufficientBudget, general, _HOME, *blank)
    unsent = both(PhaseTimeout, connect, _HOME, *blank)
    sent = both(PhaseTimeout, read, _HOME, *blank)
    dialling = (Phase.POOL, *DIALLING)

    def phase(trail: Trail) -> PhaseTimeout:
        made: PhaseTimeout = (unsent if trail.phase in dialling else sent)(trail)
        return made

    return ErrorClasses(library, exceeded, insufficient, phase)
