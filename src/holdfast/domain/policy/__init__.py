"""Time-out policy: which limits a request gets, by layer, service and route.

`route` has limits and the paths that they are for, `model` the layers, `form` the way from a
configuration file, `values` the plain values in one. Whoever uses a policy imports from here.
"""

from holdfast.domain.policy.form import policy_from_mapping
from holdfast.domain.policy.model import (
    DEFAULT_POLICY,
    EXAMPLE_ROUTES,
    Mode,
    Policy,
    ServicePolicy,
    describe,
)
from holdfast.domain.policy.route import Limits, Resolved, Route

__all__ = [
    "DEFAULT_POLICY",
    "EXAMPLE_ROUTES",
    "Limits",
    "Mode",
    "Policy",
    "Resolved",
    "Route",
    "ServicePolicy",
    "describe",
    "policy_from_mapping",
]
