"""The application with its policy, which can be changed while it runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable
from typing import Final

from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.adapters.asgi.types import App, Receive, Send, ServerScope
from holdfast.domain.errors import Cancelled
from holdfast.domain.instant import Duration
from holdfast.domain.policy import Policy, ServicePolicy
from holdfast.domain.policy.route import Limits, overridden
from holdfast.runtime.ambient import scope
from holdfast.runtime.policyfile import PolicyFile

__all__ = ["Hosted", "drain_limit", "longest_request", "own_limits"]

_LONGEST_DRAIN: Final = 30.0
_UNWINDING: Final = 1.0
_LONGEST_NAME: Final = 128


def own_limits(policy: Policy) -> Limits:
    """The limits of the service where no route says otherwise."""
    own = policy.services.get(policy.service, ServicePolicy())
    return overridden(policy.defaults, own.overrides)


def longest_request(policy: Policy) -> Duration:
    """The longest limit that a request to this service can have; infinite for none."""
    if policy.mode != "enforce":
        return math.inf
    limits = own_limits(policy)
    own = policy.services.get(policy.service, ServicePolicy())
    routes = (*own.routes, *policy.routes)
    return max([limits.request, *(overridden(limits, r.overrides).request for r in routes)])


def drain_limit(policy: Policy) -> int:
    """Whole seconds that requests under way get after the service was told to stop.

    Law 1: no shorter than the longest limit that a request can have, so that it is its own limit
    that ends it. Streams have none; for them 30 s is the end.
    """
    longest = longest_request(policy)
    return math.ceil((_LONGEST_DRAIN if math.isinf(longest) else longest) + _UNWINDING)


class Hosted:
    """An ASGI application under a policy.

    With the mode `off` the application is served bare: it has a name in the tree, and no limit.
    """

    __slots__ = ("_entry", "bare", "file", "guarded", "header", "observed")

    def __init__(self, app: App, file: PolicyFile) -> None:
        self.bare = app
        self.guarded = HoldfastMiddleware(app, policy=file.policy)
        self.use(file)

    def use(self, file: PolicyFile) -> None:
        """From now on requests get their limits from `file`; those under way keep theirs."""
        policy = file.policy
        self.file = file
        self.guarded.retry_after = file.lifecycle.stop.retry_after
        self.guarded.policy = policy
        self.observed = policy.mode == "observe"
        # Zero is no time at all, and so it cannot be meant: it stands for no limit.
        self.header: Duration = own_limits(policy).header or math.inf
        if policy.mode == "off":
            self.header = math.inf
        self._entry: App = self._serve_bare if policy.mode == "off" else self.guarded

    @property
    def service(self) -> str:
        """Name of this hop in what is answered."""
        return self.file.policy.service

    @property
    def counts(self) -> Counter[str]:
        """Requests by what became of them."""
        return self.guarded.counts

    def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._entry(scope, receive, send)

    async def _serve_bare(self, asgi: ServerScope, receive: Receive, send: Send) -> None:
        if asgi["type"] == "lifespan":
            await self.bare(asgi, receive, send)
            return
        # A name in the tree, and nothing else: so that hooks at its end and detached work know what
        # they belong to, and a stop can cut it.
        name = f"{asgi.get('method', 'WS')} {asgi['path']}"[:_LONGEST_NAME]
        try:
            async with scope(name if name.isprintable() else "request"):
                await self.bare(asgi, receive, send)
        except Cancelled:
            self.counts["turned_away"] += 1  # the server answers for it
            raise
