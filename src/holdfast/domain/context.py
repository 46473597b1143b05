"""What a unit of work carries: deadline, identity, stage, baggage, scope.

`Carried` is the part that never changes on the way down (law 4); scopes share it by reference.
`Context` is the whole, as a frozen view for people and for carriers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from holdfast.domain.instant import NEVER, Instant

__all__ = ["ANONYMOUS", "NOBODY", "Carried", "Context", "Identity"]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Identity(NamedTuple):
    """Who a request is. One 32-hex number is both its trace id and its request id.

    Attributes:
        trace_id: 32 lower-case hex digits, not all zero; empty when there is no request.
        span_id: 16 lower-case hex digits: this hop's own span.
        parent_id: span of the caller; empty at the edge.
        sampled: the decision that was taken once, at the edge.
        given_id: what the caller named the request, when that has another form than `trace_id`.
        tracestate: W3C tracestate of the caller, untouched.
    """

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    sampled: bool = True
    given_id: str = ""
    tracestate: str = ""

    @property
    def request_id(self) -> str:
        """The same number as `trace_id`; the two never disagree."""
        return self.trace_id

    @property
    def echo_id(self) -> str:
        """What a response shows as `X-Request-ID`: the caller's own name where it gave one."""
        return self.given_id or self.trace_id

    def __bool__(self) -> bool:
        return bool(self.trace_id)


NOBODY: Final = Identity()


class Carried(NamedTuple):
    """What travels unchanged from the root to the leaf: identity, release stage, baggage.

    A tuple, like `Identity`, because one is made for every request.
    """

    identity: Identity = NOBODY
    stage: str = ""
    baggage: Mapping[str, str] = _NOTHING


ANONYMOUS: Final = Carried()


class Context(NamedTuple):
    """A frozen view of the ambient context.

    Attributes:
        deadline: monotonic instant by which the work must be done; infinite without one.
        identity: who the request is.
        stage: release stage of the request, for example `canary`; empty for the stable one.
        baggage: W3C baggage of the request.
        scope: path of the innermost open scope, outermost first, joined by `/`.
    """

    deadline: Instant = NEVER
    identity: Identity = NOBODY
    stage: str = ""
    baggage: Mapping[str, str] = _NOTHING
    scope: str = ""
