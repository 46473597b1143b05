"""What one policy compiles to: the terms under which requests are opened."""

from __future__ import annotations

from collections import Counter

from holdfast.domain.instant import Duration
from holdfast.domain.policy import Policy
from holdfast.domain.wire.answer import retry_after
from holdfast.domain.wire.inbound import InboundCodec
from holdfast.domain.wire.timing import timing_prefix

__all__ = ["Terms"]


class Terms:
    """Requests keep the terms they began under when the policy is replaced.

    Attributes:
        policy: what they were compiled from.
        counts: requests by what became of them; shared by all terms of one middleware.
        details: whether responses tell which hops and scopes spent how much time.
        timing: what `Server-Timing` begins with; empty where it is not sent.
        retry: value of `Retry-After` for who was turned away.
        observing: whether the policy counts what it would cut and cuts nothing.
    """

    __slots__ = (
        "codec", "counts", "details", "hop", "observing", "policy", "retry", "sample", "timing",
    )  # fmt: skip

    def __init__(self, policy: Policy, counts: Counter[str], retry: Duration = 1.0) -> None:
        self.policy = policy
        self.counts = counts
        self.retry = retry_after(retry)
        self.codec = InboundCodec.of(policy.wire)
        self.observing = policy.mode == "observe"
        self.sample = policy.wire.sample
        self.hop = policy.service
        self.details = policy.wire.details
        self.timing = timing_prefix(policy.service) if self.details else b""
