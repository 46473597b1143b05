"""What a request that ended early is answered with."""

from __future__ import annotations

import json

import pytest

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS
from holdfast.domain.wire.answer import answer_to, status_of, title_of


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("kind", list(CauseKind))
def test_there_is_an_answer_to_every_cause(kind: CauseKind, details: bool) -> None:
    cause = Cause(kind, "scope", "hop", 10.0, 3.0, 1.0, "")
    made = answer_to(
        cause, ANONYMOUS.identity, b"hop;dur=1", spent=False, details=details, retry=b"1"
    )
    told = json.loads(made.body)
    assert made.status == told["status"] == status_of(cause)
    assert told["title"] == title_of(cause)
