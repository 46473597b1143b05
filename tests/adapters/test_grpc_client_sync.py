"""The client of grpc without asyncio against real servers: what they are told, how calls end."""

from __future__ import annotations

import copy
import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import trustme

import holdfast
from holdfast.adapters.grpc_client import open_sync_channel
from holdfast.adapters.grpc_client.errors import BlockingDeadlineExceeded, BlockingPhaseTimeout
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.phases import DEFAULT_SHARES, Ended, Phase, Shares, Trail
from holdfast.domain.wire.problem import CAUSE_HEADER, encode_cause_header
from holdfast.domain.wire.richstatus import DETAILS_KEY, encode_status
from holdfast.runtime.ambient import carried, use

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio")]

ORDER = Carried(Identity("5" * 32, "6" * 16), "canary", {"tenant": "acme"})
QUICK_DIAL = Shares(
    weights={Phase.CONNECT: 1.0, Phase.GRPC_HEADER: 19.0}, floors={}, bounded=(Phase.CONNECT,)
)
"""A twentieth of the time."""
BELOW = Cause(CauseKind.DEADLINE, "Stock/Get", "stock", 0.0, 0.5, 0.5, "slow disk")
ENDED = 5.0


def _told(request: bytes, context: Any) -> bytes:
    said = {key: str(value) for key, value in context.invocation_metadata()}
    return json.dumps({"left": context.time_remaining(), **said}).encode()


def _sleep(request: bytes, context: Any) -> bytes:
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(float(request))
    return b"slept"


def _fail(request: bytes, context: Any) -> bytes:
    code, _, how = request.decode().partition(" ")
    trailing: dict[str, Any] = {
        "": {},
        "line": {CAUSE_HEADER: encode_cause_header(BELOW)},
        "rich": {DETAILS_KEY: encode_status(4, "late", BELOW), CAUSE_HEADER: "1"},
        "own": {DETAILS_KEY: encode_status(4, "late", BELOW)},
    }[how]
    context.set_trailing_metadata(tuple(trailing.items()))
    context.abort(grpc.StatusCode[code], "late")
    raise AssertionError


def _ticks(request: bytes, context: Any) -> Iterator[bytes]:
    first, count, each = request.decode().split()
    over = threading.Event()
    context.add_callback(over.set)
    if over.wait(float(first)):
        return
    for number in range(int(count)):
        if over.wait(float(each)):
            return
        yield str(number).encode()


def _sum(requests: Iterator[bytes], context: Any) -> bytes:
    return str(sum(float(seconds) for seconds in requests)).encode()


def _chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for seconds in requests:
        time.sleep(float(seconds))
        yield b"after " + seconds


class Kept:
    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))

    def steps(self) -> list[tuple[Phase, Ended]]:
        ((trail, _),) = self.calls
        return [(step.phase, step.ended) for step in trail.steps]


class Methods:
    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.told: Any = channel.unary_unary("/shop.Orders/Told")
        self.sleep: Any = channel.unary_unary("/shop.Orders/Sleep")
        self.fail: Any = channel.unary_unary("/shop.Orders/Fail")
        self.ticks: Any = channel.unary_stream("/shop.Orders/Ticks")
        self.sum: Any = channel.stream_unary("/shop.Orders/Sum")
        self.chat: Any = channel.stream_stream("/shop.Orders/Chat")


@contextmanager
def shop(**options: Any) -> Iterator[Methods]:
    server = grpc.server(ThreadPoolExecutor(16))
    handlers: dict[str, Any] = {
        "Told": grpc.unary_unary_rpc_method_handler(_told),
        "Sleep": grpc.unary_unary_rpc_method_handler(_sleep),
        "Fail": grpc.unary_unary_rpc_method_handler(_fail),
        "Ticks": grpc.unary_stream_rpc_method_handler(_ticks),
        "Sum": grpc.stream_unary_rpc_method_handler(_sum),
        "Chat": grpc.stream_stream_rpc_method_handler(_chat),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("shop.Orders", handlers),)
    )
    target, authority = "127.0.0.1", options.pop("authority", None)
    if authority is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", options.pop("server_credentials"))
        roots = authority.cert_pem.bytes()
        options["credentials"] = grpc.ssl_channel_credentials(roots)
        target = "localhost"
    server.start()
    try:
        with open_sync_channel(f"{target}:{port}", service="orders", **options) as channel:
            grpc.channel_ready_future(channel).result(10)
            yield Methods(channel)
    finally:
        server.stop(None).wait()


@contextmanager
def dead(**options: Any) -> Iterator[Methods]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open_sync_channel(f"127.0.0.1:{listener.getsockname()[1]}", **options) as channel,
    ):
        yield Methods(channel)


def within(began: float) -> bool:
    return time.monotonic() - began < ENDED


# -- what is sent --------------------------------------------------------------------------------


def test_the_server_is_told_what_is_left_and_who_it_is() -> None:
    with shop() as orders, use(ORDER):
        for budget in (0.9996, 1.2341, 9.9951, 12.341, 99.96, 123.4):
            with holdfast.timeout(budget):
                said = json.loads(orders.told(b"", metadata=(("tags", "a"),)))
            assert budget * 0.8 < said["left"] <= budget
            assert said["tags"] == "a"
        assert said["x-request-id"] == "5" * 32
        assert said["traceparent"] == f"00-{'5' * 32}-{'6' * 16}-01"
        assert said["x-release-stage"] == "canary"
        assert said["baggage"] == "tenant=acme"
        said = json.loads(orders.told(b""))
        assert said["left"] is None or said["left"] > 1e6
        with holdfast.timeout(20.0):  # of two time-outs the smaller
            assert json.loads(orders.told(b"", timeout=2.0))["left"] <= 2.01
            assert json.loads(orders.told.future(b"").result())["left"] <= 20.0
            assert json.loads(orders.told.with_call(b"")[0])["left"] <= 20.0


def test_what_cannot_be_done_is_not_begun() -> None:
    observer = Kept()
    with shop(refuse_below=5.0, observer=observer) as orders, holdfast.timeout(4.0):
        for call in (
            lambda: orders.sleep(b"0"),
            lambda: orders.sleep.future(b"0"),
            lambda: orders.ticks(b"0 1 0"),
            lambda: orders.sum(iter([b"0"])),
            lambda: orders.chat(iter([b"0"])),
        ):
            with pytest.raises(holdfast.InsufficientBudget, match="5 s needed") as caught:
                call()
            assert isinstance(caught.value, grpc.RpcError)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(observer.calls) == 5


# -- ends ----------------------------------------------------------------------------------------


def test_all_kinds_go_well() -> None:
    observer = Kept()
    with shop(observer=observer) as orders, holdfast.timeout(20.0):
        assert orders.sleep(b"0") == b"slept"
        assert list(orders.ticks(b"0 3 0")) == [b"0", b"1", b"2"]
        assert orders.sum(iter([b"1", b"2"])) == b"3.0"
        assert orders.sum.future(request_iterator=iter([b"1"])).result(ENDED) == b"1.0"
        assert list(orders.chat(iter([b"0", b"0.01"]))) == [b"after 0", b"after 0.01"]
        answer, call = orders.sleep.with_call(b"0")
        assert (answer, call.code()) == (b"slept", grpc.StatusCode.OK)
    assert [trail.steps[-1].ended for trail, _ in observer.calls] == 6 * [Ended.DONE]
    assert [error for _, error in observer.calls] == 6 * [None]


def test_no_answer_is_the_header() -> None:
    observer, began = Kept(), time.monotonic()
    with shop(observer=observer) as orders:
        with (
            pytest.raises(holdfast.DeadlineExceeded) as caught,
            holdfast.timeout(0.25, name="order"),
        ):
            orders.sleep(b"60")
        assert within(began)
        error = caught.value
        assert isinstance(error, grpc.RpcError)
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == str(error)
        assert error.phase is Phase.GRPC_HEADER
        assert error.cause.scope.startswith("order/")
    assert observer.steps() == [(Phase.GRPC_HEADER, Ended.TIMEOUT)]


@pytest.mark.parametrize(
    ("request_", "phase"),
    [(b"60 1 0", Phase.GRPC_HEADER), (b"0 1000 0.05", Phase.GRPC_MESSAGE)],
    ids=["header", "trickle"],
)
def test_a_stream_ends_at_the_deadline(request_: bytes, phase: Phase) -> None:
    observer, began = Kept(), time.monotonic()
    got: list[bytes] = []
    with shop(observer=observer) as orders:

        def read() -> None:
            with holdfast.timeout(0.5):
                got.extend(orders.ticks(request_))

        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            read()
    assert within(began)
    assert caught.value.phase is phase
    assert observer.calls == [(caught.value.trail, caught.value)]


def test_streams_of_requests_end_at_the_deadline() -> None:
    stop = threading.Event()

    def requests() -> Iterator[bytes]:
        assert holdfast.remaining() < 1.0  # in the context of the caller
        yield b"0.01"
        stop.wait(ENDED)

    with shop() as orders:
        for method in (orders.sum, orders.chat):
            began = time.monotonic()
            with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.3):
                list(method(requests()))
            assert within(began)
        stop.set()


def test_the_dial() -> None:
    observer = Kept()
    with (
        dead(observer=observer) as orders,
        pytest.raises(holdfast.DeadlineExceeded) as caught,
        holdfast.timeout(0.25),
    ):
        orders.sleep(b"0")
    assert caught.value.phase is Phase.CONNECT
    assert observer.calls[0][0].event == "tcp.connect.timeout"
    with dead(shares=QUICK_DIAL) as orders, holdfast.timeout(6.0) as scope:
        for call in (
            lambda: orders.sleep(b"0"),
            lambda: orders.sleep.future(b"0").result(),
            lambda: orders.sum(iter([b"0"])),
            lambda: list(orders.ticks(b"0 1 0")),
        ):
            with pytest.raises(holdfast.net.PhaseTimeout) as late:
                call()
            assert isinstance(late.value, grpc.RpcError)
            assert late.value.code() is grpc.StatusCode.UNAVAILABLE
            assert holdfast.is_retryable(late.value, idempotent=False)  # nothing was sent
        assert scope.remaining() > 0
    with (
        dead(shares=QUICK_DIAL) as orders,
        pytest.raises(holdfast.DeadlineExceeded) as caught,
        holdfast.timeout(0.4),
    ):
        orders.sleep(b"0", wait_for_ready=True)
    assert caught.value.phase is Phase.CONNECT


def test_a_server_that_refuses_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with open_sync_channel(f"127.0.0.1:{port}") as channel, holdfast.timeout(20.0) as scope:
        orders = Methods(channel)
        for call in (
            lambda: orders.sleep(b"0"),
            lambda: orders.sleep.future(b"0").result(),
            lambda: list(orders.ticks(b"0 1 0")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert scope.remaining() > 10


def test_futures() -> None:
    observer = Kept()
    with shop(observer=observer) as orders:
        with holdfast.timeout(0.4):
            late = orders.sleep.future(b"60")
            with pytest.raises(grpc.FutureTimeoutError):
                late.result(timeout=0.01)
            assert not late.done()
        told: list[Any] = []
        late.add_done_callback(told.append)
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            late.result()
        assert late.exception() is caught.value
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with holdfast.timeout(20.0):
            gone = orders.sleep.future(b"60")
            assert gone.cancel()
            assert gone.cancelled()
            with pytest.raises(grpc.FutureCancelledError):
                gone.result()
            good = orders.sleep.future(b"0")
            assert good.exception() is None
            assert good.result() == b"slept"
            many = [orders.sleep.future(b"0.01") for _ in range(20)]
            assert [one.result() for one in many] == 20 * [b"slept"]
        patience = time.monotonic() + ENDED
        while (len(observer.calls) < 23 or told != [late]) and time.monotonic() < patience:
            time.sleep(0.01)
    assert told == [late]
    assert len(observer.calls) == 23
    assert sum(error is None for _, error in observer.calls) == 21


def test_a_time_out_of_grpc_stays_one_of_grpc() -> None:
    with shop() as orders, holdfast.timeout(20.0):
        with pytest.raises(grpc.RpcError) as caught:
            orders.sleep(b"60", timeout=0.2)
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
        assert caught.value.trail.event == "grpc.header.timeout"  # type: ignore[attr-defined]
        stream = orders.ticks(b"0 1000 0.01", timeout=0.2)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)


def test_other_errors_stay_what_they_are() -> None:
    observer = Kept()
    with shop(observer=observer) as orders, holdfast.timeout(20.0):
        with pytest.raises(grpc.RpcError) as caught:
            orders.fail(b"NOT_FOUND")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert any("NOT_FOUND: late" in note for note in caught.value.__notes__)
        assert observer.calls == [(observer.calls[0][0], caught.value)]
        stream = orders.ticks(b"0 1000 0.01")
        assert next(stream) == b"0"
        stream.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert stream.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(ValueError, match="closed channel"):
        orders.sleep(b"0")


@pytest.mark.parametrize("how", ["line", "rich"])
def test_a_deadline_of_the_server_is_ours_when_it_says_so(how: str) -> None:
    told = f"DEADLINE_EXCEEDED {how}".encode()
    with shop() as orders, holdfast.timeout(20.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            orders.fail(told)
        (below,) = caught.value.cause.below
        assert (below.hop, below.scope, below.budget) == ("stock", "Stock/Get", 0.5)
        assert below.detail == ("slow disk" if how == "rich" else "")
        for request in (b"DEADLINE_EXCEEDED", b"DEADLINE_EXCEEDED own"):
            with pytest.raises(grpc.RpcError) as plain:
                orders.fail(request)
            assert not isinstance(plain.value, holdfast.DeadlineExceeded)
    with shop(raise_for_deadline=False) as orders, pytest.raises(grpc.RpcError) as plain:
        orders.fail(told)
    assert not isinstance(plain.value, holdfast.DeadlineExceeded)
    assert any("slow disk" in note or "Stock/Get" in note for note in plain.value.__notes__)


class Counting(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.seen.append(details)
        return continuation(details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        self.seen.append(details)
        return continuation(details, request)


def test_other_interceptors_are_inside() -> None:
    counting = Counting()
    with shop(interceptors=[counting]) as orders, use(ORDER):
        assert orders.sleep(b"0") == b"slept"
        assert orders.sleep.future(b"0").result() == b"slept"
        assert list(orders.ticks(b"0 1 0")) == [b"0"]
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            orders.sleep(b"60")
    assert [dict(d.metadata)["x-request-id"] for d in counting.seen] == 4 * ["5" * 32]


def test_what_is_observed_is_told_in_the_context_of_the_call() -> None:
    class Looking:
        who: str = ""

        def call_ended(self, trail: Trail, error: BaseException | None) -> None:
            self.who = carried().identity.trace_id

    looking = Looking()
    with shop(observer=looking) as orders:
        with use(ORDER):
            future = orders.sleep.future(b"0.1")
        assert future.result() == b"slept"
    assert looking.who == "5" * 32


def test_everything_else_is_the_call_of_grpc() -> None:
    states: list[Any] = []
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    with (
        shop(server_credentials=grpc.ssl_server_credentials([pair]), authority=authority) as orders,
        holdfast.timeout(20.0),
    ):
        orders.channel.subscribe(states.append)
        orders.channel.unsubscribe(states.append)
        call = orders.sleep.future(b"0")
        assert call.result() == b"slept"
        assert call.done()
        assert not call.running()
        assert not call.cancelled()
        assert not call.is_active()
        assert call.traceback() is None
        assert call.code() is grpc.StatusCode.OK
        assert call.details() == ""
        assert tuple(call.initial_metadata()) == ()
        assert tuple(call.trailing_metadata()) == ()
        assert call.debug_error_string() is not None
        stream = orders.ticks(b"0.2 1 0")
        over = threading.Event()
        assert stream.add_callback(over.set)
        assert stream.is_active()
        assert 0 < stream.time_remaining() <= 20
        assert next(stream) == b"0"
        assert list(stream) == []
        assert over.wait(ENDED)


def test_an_interrupted_call_is_cancelled() -> None:
    class Interrupting(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            raise KeyboardInterrupt

        def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            raise ZeroDivisionError

    observer = Kept()
    with shop(observer=observer, interceptors=[Interrupting()]) as orders:
        with pytest.raises(KeyboardInterrupt):
            orders.sleep(b"60")
        with pytest.raises(ZeroDivisionError):
            list(orders.chat(iter([b"0"])))

        def broken() -> Iterator[bytes]:
            raise ZeroDivisionError
            yield b""

        with pytest.raises(grpc.RpcError):
            orders.sum(broken())
    assert [type(error) for _, error in observer.calls[:2]] == [
        KeyboardInterrupt,
        ZeroDivisionError,
    ]


def test_errors_are_copied_whole() -> None:
    cause = Cause(CauseKind.DEADLINE, "order", "", 1.0, 0.5, 0.5)
    trail = Trail("grpc x/y", 0.0, 1.0, DEFAULT_SHARES)
    trail.begin(Phase.CONNECT, 0.0)
    trail.end(0.5, Ended.TIMEOUT)
    exceeded, late = BlockingDeadlineExceeded(cause), BlockingPhaseTimeout(trail)
    for error in (copy.copy(exceeded), pickle.loads(pickle.dumps(exceeded))):
        assert error.cause == cause
        assert str(error) == cause.line() == error.details()
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(error, TimeoutError)
    assert copy.copy(late).trail is trail
    assert holdfast.classify(exceeded) is holdfast.Fault.TIMED_OUT
    assert (late.initial_metadata(), late.trailing_metadata()) == ((), ())
    assert not late.is_active()
    assert late.time_remaining() is None
    assert not late.cancel()
    assert not late.add_callback(print)
