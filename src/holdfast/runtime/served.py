"""One request that a server serves: what its caller gave and said, and how it is answered for.

What the carriers of all servers have in common, whatever their protocol and whether their handlers
are coroutines or run in threads. ASGI has the same in an order of its own, in which nothing is read
before somebody asks (`adapters.asgi.exchange`): there it is the price of every request.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.wire.answer import Answer, answer_to
from holdfast.domain.wire.ending import is_late, request_name
from holdfast.domain.wire.timing import hop_timing
from holdfast.domain.wire.trace import identify
from holdfast.runtime.ambient import use
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import Scope
from holdfast.runtime.terms import Terms

__all__ = ["Served"]


class Served:
    """See the module.

    Args:
        terms: under which it is served.
        headers: names in lower case, with their values.
        method: of the request.
        path: of the request, decoded.
        arrival: monotonic instant at which it came.
        streams: whether it is a stream by its kind, so that only its caller limits the whole.

    Attributes:
        terms: as given.
        arrival: as given.
        left: seconds that the caller gave; infinite when it set no deadline.
        carried: identity, stage and baggage.
        resolved: the limits of its route.
        streams: whether it is a stream, by its kind or by its route.
        ledger: what hops below say about themselves.
        scope: for its handler, not entered.
    """

    def __init__(
        self,
        terms: Terms,
        headers: Iterable[tuple[bytes, bytes]],
        method: str,
        path: str,
        arrival: Instant,
        *,
        streams: bool = False,
    ) -> None:
        self.terms = terms
        self.arrival = arrival
        self.left: Duration
        self.left, malformed, ours = terms.codec.glance(headers)
        if malformed:
            terms.counts["malformed_header"] += malformed
        inbound = terms.codec.read(ours)
        identity = identify(
            inbound.trace,
            span_id=fresh_span_id(),
            new_trace=fresh_trace_id,
            sample=terms.sample,
        )
        self.carried = Carried(identity, inbound.stage, inbound.baggage)
        self.resolved = terms.policy.limits(path, method)
        self.streams = streams or bool(self.resolved.stream)
        self.ledger = Ledger()
        self.scope = self._made(request_name(method, path))

    def _made(self, name: str) -> Scope:
        limits = self.resolved.limits
        budget = self.left if self.streams else min(limits.request, self.left)
        if self.terms.observing:
            budget = NEVER
        scope = use(self.carried, name=name)
        scope.special = True
        scope.at = self.arrival + budget
        scope.hop = self.terms.hop
        scope.ledger = self.ledger
        scope.reserve = limits.reserve
        # Of a caller that gave little, half at most is kept for clean-up.
        scope.grace = min(limits.grace, max(0.0, budget) / 2) if limits.grace else 0.0
        return scope

    def refusal(self, now: Instant) -> Cause | None:
        """Why it must not begin, if so; it is counted."""
        scope = self.scope
        needed = self.resolved.limits.refuse_below
        if scope.at > now and scope.at - now >= needed:
            return None
        reason = "expired" if scope.at <= now else "too_little"
        self.terms.counts[f"refused.{reason}"] += 1
        what = f"not begun: {format_duration(max(0.0, scope.at - now))} left"
        budget = scope.at - self.arrival
        return Cause(CauseKind.DEADLINE, scope.name, self.terms.hop, now, budget, 0.0, what)

    def observe(self, now: Instant) -> None:
        """Its handler has ended: one that is only watched is counted."""
        if self.terms.observing:
            limit = self.left if self.streams else self.resolved.budget(self.left)
            self.terms.counts["would_exceed"] += now - self.arrival > limit

    def timing(self, now: Instant) -> bytes:
        """Value of `Server-Timing`."""
        spent = now - self.arrival
        return hop_timing(self.terms.hop, self.terms.timing, spent, self.ledger.spent)

    def told(self, cause: Cause) -> Cause:
        """The cause, with what hops below have said, where it has nothing of the kind."""
        if self.ledger.below and not cause.below:
            return cause.with_below(*self.ledger.below)
        return cause

    def callers(self, cause: Cause, now: Instant) -> bool:
        """Whether what the caller gave is spent, so that to try again is in vain."""
        return is_late(cause, self.arrival + self.left, now, self.scope.kept)

    def answer(self, cause: Cause, now: Instant) -> Answer:
        """What the client of HTTP gets when the request has ended early."""
        return answer_to(
            self.told(cause),
            self.carried.identity,
            self.timing(now),
            spent=self.callers(cause, now),
            details=self.terms.details,
            retry=self.terms.retry,
        )
