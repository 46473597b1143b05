"""How the table of faults is made, and the corners of looking an error up."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from holdfast.domain import faults
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import Cancelled, DeadlineExceeded
from holdfast.domain.faults import Fault, Finding, Retry, Row, classify, examine, is_retryable

CAUSE = Cause(CauseKind.DEADLINE, "a")
JOINED = "Multiple exceptions: "


def stand_in(name: str) -> type[Exception]:
    module, _, cls = name.rpartition(".")
    return type(cls, (Exception,), {"__module__": module, "__qualname__": cls})


def test_rows_are_made_of_names() -> None:
    assert faults._rows(Fault.DNS, Retry.NEVER, "a.B c.D") == (
        Row("a.B", Fault.DNS, Retry.NEVER),
        Row("c.D", Fault.DNS, Retry.NEVER),
    )
    assert faults._rows(Fault.TLS, Retry.ALWAYS, "B C", "a", wrapped=True) == (
        Row("a.B", Fault.TLS, Retry.ALWAYS, wrapped=True),
        Row("a.C", Fault.TLS, Retry.ALWAYS, wrapped=True),
    )


def test_numbers_that_this_system_lacks_are_left_out() -> None:
    row = faults._numbered("builtins.OSError", Fault.RESET, Retry.IDEMPOTENT, "EPIPE ENEVERHEARD")
    numbers: frozenset[int | str] = frozenset({errno.EPIPE})
    assert row == Row("builtins.OSError", Fault.RESET, Retry.IDEMPOTENT, numbers)


def test_names_of_grpc_are_taken_as_they_are() -> None:
    row = faults._numbered("grpc.RpcError", Fault.OVERLOAD, Retry.ALWAYS, "A EPIPE")
    numbers: frozenset[int | str] = frozenset({"A", "EPIPE"})
    assert row == Row("grpc.RpcError", Fault.OVERLOAD, Retry.ALWAYS, numbers)


def test_what_the_http_libraries_have_in_common() -> None:
    assert faults._http_rows("x") == (
        Row("x.ConnectTimeout", Fault.TIMED_OUT, Retry.ALWAYS),
        Row("x.PoolTimeout", Fault.TIMED_OUT, Retry.ALWAYS),
        Row("x.TimeoutException", Fault.TIMED_OUT, Retry.IDEMPOTENT),
        Row("x.ConnectError", Fault.REFUSED, Retry.ALWAYS, wrapped=True),
        Row("x.NetworkError", Fault.RESET, Retry.IDEMPOTENT, wrapped=True),
        Row("x.RemoteProtocolError", Fault.RESET, Retry.IDEMPOTENT, wrapped=True),
        Row("x.ProxyError", Fault.REFUSED, Retry.ALWAYS, wrapped=True),
        Row("x.ProtocolError", Fault.PROTOCOL, Retry.NEVER),
        Row("x.UnsupportedProtocol", Fault.PROTOCOL, Retry.NEVER),
    )


def test_a_number_that_is_an_attribute_and_no_argument() -> None:
    error = OSError("refused")
    error.errno = errno.ECONNREFUSED
    assert classify(error) is Fault.REFUSED


def test_a_code_is_asked_of_grpc_only() -> None:
    error: Any = stand_in("pycares.AresError")(11)
    error.code = lambda: pytest.fail("foreign code was run")
    assert examine(error).retry is Retry.ALWAYS


@pytest.mark.parametrize("name", [[], 14, None])
def test_a_status_whose_name_is_no_text(name: object) -> None:
    error: Any = stand_in("grpc.RpcError")()
    error.code = lambda: type("Status", (), {"name": name})
    assert classify(error) is Fault.UNKNOWN


def test_joined_errors_are_read_as_far_as_the_cap() -> None:
    number = f"[Errno {errno.ECONNREFUSED}]"
    padding = 4096 - len(JOINED) - len(number)
    assert classify(OSError(JOINED + "x" * padding + number)) is Fault.REFUSED
    assert classify(OSError(JOINED + "x" * (padding + 1) + number)) is Fault.SYSTEM


@pytest.mark.parametrize(("wrappers", "fault"), [(15, Fault.REFUSED), (16, Fault.RESET)])
def test_sixteen_errors_of_a_chain_are_looked_at(wrappers: int, fault: Fault) -> None:
    error: BaseException = ConnectionRefusedError()
    for _ in range(wrappers):
        outer = stand_in("httpx.NetworkError")()
        outer.__cause__ = error
        error = outer
    assert classify(error) is fault


def test_a_group_that_holds_the_error_it_was_raised_for() -> None:
    error = stand_in("httpx.NetworkError")()
    error.__cause__ = ExceptionGroup("several", [error, ConnectionRefusedError()])
    assert classify(error) is Fault.REFUSED


def test_an_end_of_ours_is_told_by_its_class() -> None:
    module = "holdfast.domain.errors"
    assert examine(DeadlineExceeded(CAUSE)) == Finding(
        Fault.TIMED_OUT, Retry.NEVER, f"{module}.DeadlineExceeded", "scope"
    )
    assert examine(Cancelled(CAUSE)) == Finding(
        Fault.CANCELLED, Retry.NEVER, f"{module}.Cancelled", "scope"
    )


def test_a_number_without_a_row_is_still_from_the_kernel() -> None:
    assert examine(OSError(errno.EIO, "broken")) == Finding(
        Fault.SYSTEM, Retry.NEVER, "builtins.OSError", "kernel"
    )


def test_work_counts_as_idempotent_unless_told_otherwise() -> None:
    assert is_retryable(ConnectionResetError())
    assert not is_retryable(ConnectionResetError(), idempotent=False)
