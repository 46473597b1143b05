"""The settings of the wire, in one frozen object, as configuration gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.domain.errors import ConfigError
from holdfast.domain.wire.budget import DEFAULT_HEADERS, BudgetHeaders, valid_name
from holdfast.domain.wire.stage import STAGE_HEADER

__all__ = ["DEFAULT_WIRE", "WireSettings"]


@dataclass(frozen=True, slots=True)
class WireSettings:
    """Which headers are read and sent, and how far what they say is believed.

    Attributes:
        headers: headers of the time left.
        stage_header: header of the release stage, lower-case.
        trust_stage: whether an inbound stage is believed; only behind a proxy that sets it.
        details: whether responses tell which hops and scopes spent how much time; a service at the
            edge may want to keep that to itself.
        sample: ratio of new traces to sample, 0 to 1.

    Raises:
        ConfigError: the stage header is not a header name, or the ratio not within 0 to 1.
    """

    headers: BudgetHeaders = DEFAULT_HEADERS
    stage_header: str = STAGE_HEADER
    trust_stage: bool = False
    details: bool = True
    sample: float = 1.0

    def __post_init__(self) -> None:
        if not valid_name(self.stage_header.lower()):
            raise ConfigError("identity.stage_header", f"{self.stage_header!r} is no header name")
        if not 0.0 <= self.sample <= 1.0:
            raise ConfigError("identity.sample", f"must be from 0 to 1, not {self.sample!r}")


DEFAULT_WIRE: Final = WireSettings()
