"""Time-out policy: layers, routes, and the form in a file."""

from __future__ import annotations

import contextlib
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.errors import ConfigError
from holdfast.domain.instant import NEVER
from holdfast.domain.policy import (
    DEFAULT_POLICY,
    EXAMPLE_ROUTES,
    Limits,
    Policy,
    Resolved,
    Route,
    ServicePolicy,
    describe,
    policy_from_mapping,
)

EXAMPLE = """
service = "orders"
mode = "observe"
[timeouts]
header = "5s"
request = "10s"
idle = "60s"
grace = "100ms"
reserve = "50ms"
refuse_below = "10ms"
[[routes]]
path = "/api/v2/payment*"
request = "3s"
methods = ["post"]
[[routes]]
path = "/events"
stream = true
idle = "30s"
name = "events"
[services.payments.timeouts]
request = "2s"
[[services.payments.routes]]
path = "/charge"
request = "1s"
[headers]
inbound = ["x-envoy-expected-rq-timeout-ms", "grpc-timeout", "x-left: seconds"]
outbound = ["grpc-timeout"]
details = false
[identity]
sample = 0.5
trust_stage = true
stage_header = "x-lane"
"""


def policy(text: str, service: str = "") -> Policy:
    return policy_from_mapping(tomllib.loads(text), service)


def test_the_default() -> None:
    found = DEFAULT_POLICY.limits("/anything", "GET")
    assert found == Resolved(Limits(5.0, 10.0, 300.0, 0.0, 0.01, 0.0))
    assert DEFAULT_POLICY.mode == "enforce"
    assert policy("") == DEFAULT_POLICY


def test_the_example_routes() -> None:
    found = Policy(routes=EXAMPLE_ROUTES)
    assert found.limits("/api/v2/payments/7").limits.request == 3.0
    assert found.limits("/reports").limits.request == 30.0
    assert found.limits("/report").limits.request == 10.0


def test_a_whole_file() -> None:
    found = policy(EXAMPLE)
    assert (found.service, found.mode) == ("orders", "observe")
    assert found.defaults == Limits(5.0, 10.0, 60.0, 0.1, 0.05, 0.01)
    payment = found.limits("/api/v2/payment/7", "POST")
    assert payment.route == "/api/v2/payment*"
    # The header limit is only inherited, and cannot be longer than the request.
    assert payment.limits == Limits(3.0, 3.0, 60.0, 0.1, 0.05, 0.01)
    assert found.limits("/api/v2/payment/7", "GET").limits.request == 10.0
    events = found.limits("/events")
    assert (events.stream, events.route, events.limits.idle) == (True, "events", 30.0)
    assert found.wire.headers.inbound[2] == (b"x-left", "seconds")
    assert found.wire.headers.outbound == ((b"grpc-timeout", "grpc"),)
    assert not found.wire.details
    assert (found.wire.sample, found.wire.trust_stage, found.wire.stage_header) == (
        0.5,
        True,
        "x-lane",
    )


def test_layers() -> None:
    found = policy(EXAMPLE, "payments")
    assert found.service == "payments"
    assert found.limits("/other").limits.request == 2.0
    assert found.limits("/charge").limits.request == 1.0
    assert found.limits("/events").limits.request == 2.0
    assert found.limits("/events").limits.idle == 30.0
    assert policy(EXAMPLE).for_service("payments") == found
    assert found.for_service("unknown").limits("/other").limits.request == 10.0


ROUTES = (
    Route("/api*", {"request": 1.0}),
    Route("/api/v2/*", {"request": 2.0}),
    Route("/api/v2/orders", {"request": 3.0}),
    Route("/api/v2/orders", {"request": 4.0}, methods=frozenset({"POST"})),
    Route("/api/v2/orders/{id}", {"request": 5.0}),
    Route("/api/v2/orders/{id}/items/{item}", {"request": 6.0}),
    Route("/api/v2/orders/{id}/items*", {"request": 7.0}),
    Route("/a.c", {"request": 8.0}),
    Route("/{any}", {"request": 9.0}),
)


@pytest.mark.parametrize("routes", [ROUTES, ROUTES[::-1]])
@pytest.mark.parametrize(
    ("path", "method", "request_limit"),
    [
        ("/api", "GET", 1.0),
        ("/apiary", "GET", 1.0),
        ("/api/v2/", "GET", 2.0),
        ("/api/v2/x", "GET", 2.0),
        ("/api/v2/orders", "GET", 3.0),
        ("/api/v2/orders", "POST", 4.0),
        ("/api/v2/orders", "", 3.0),
        ("/api/v2/orders/7", "GET", 5.0),
        ("/api/v2/orders/7/items/8", "GET", 6.0),
        ("/api/v2/orders/7/items", "GET", 7.0),
        ("/api/v2/orders/7/items/8/9", "GET", 7.0),
        ("/api/v2/orders/", "GET", 2.0),
        ("/a.c", "GET", 8.0),
        ("/abc", "GET", 9.0),
        ("/a/b", "GET", 10.0),
        ("/abc\n", "GET", 9.0),
        ("", "GET", 10.0),
    ],
)
def test_the_most_specific_route_wins(
    routes: tuple[Route, ...], path: str, method: str, request_limit: float
) -> None:
    found = Policy(routes=routes)
    for _ in range(2):
        assert found.limits(path, method).limits.request == request_limit


def test_a_route_of_the_service_wins_over_an_equal_global_one() -> None:
    own = Route("/x*", {"request": 1.0})
    common = (Route("/x*", {"request": 2.0}), Route("/x/y*", {"request": 3.0}))
    found = Policy("a", routes=common, services={"a": ServicePolicy(routes=(own,))})
    assert found.limits("/x").limits.request == 1.0
    assert found.limits("/x/y").limits.request == 3.0
    assert found.for_service("b").limits("/x").limits.request == 2.0


def test_results_are_made_once_and_the_memo_is_bounded() -> None:
    found = Policy(routes=ROUTES)
    first = found.limits("/api/v2/orders/1", "GET")
    for n in range(5000):
        assert found.limits(f"/api/v2/orders/{n}", "GET") is first
        found.limits("/" + "x" * 300 + str(n), "GET")
    memo = found._table._memo
    assert 0 < len(memo) <= 1024
    assert max(map(len, memo)) < 300


def test_budget_is_the_smaller_of_policy_and_caller() -> None:
    found = Resolved(Limits(request=10.0, refuse_below=0.5))
    assert found.budget() == 10.0
    assert found.budget(3.0) == 3.0
    assert found.budget(30.0) == 10.0
    assert found.budget(0.0) == 0.0
    assert found.budget(math.inf) == 10.0
    assert found.budget(math.nan) == 10.0
    assert found.deadline(100.0, 3.0) == 103.0
    assert found.deadline(100.0) == 110.0
    assert found.refuses(0.0)
    assert found.refuses(0.4)
    assert not found.refuses(0.5)
    assert not Resolved(Limits()).refuses(1e-9)


def test_a_stream_has_only_the_deadline_of_its_caller() -> None:
    found = Resolved(Limits(), stream=True)
    assert found.budget() == NEVER
    assert found.budget(3.0) == 3.0
    assert found.deadline(5.0) == NEVER


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ('servise = "a"', "servise", "did you mean 'service'"),
        ("zzz = 1", "zzz", "known here"),
        ("service = 5", "service", "must be a text, not a number"),
        ('mode = "on"', "mode", "enforce, observe, off"),
        ("timeouts = 5", "timeouts", "must be a table"),
        ('[timeouts]\nreqest = "5s"', "timeouts.reqest", "did you mean 'request'"),
        ('[timeouts]\nrequest = "5"', "timeouts.request", "not a duration"),
        ("[timeouts]\nrequest = true", "timeouts.request", "not a duration"),
        ("[timeouts]\nrequest = -1", "timeouts.request", "not a duration"),
        ("[timeouts]\nrequest = nan", "timeouts.request", "not a duration"),
        ("[timeouts]\nrequest = []", "timeouts.request", "not a list"),
        ("[timeouts]\nrequest = 0", "timeouts.request", "longer than 0"),
        ('[timeouts]\nheader = "11s"', "timeouts.header", "not be longer than request"),
        ('[timeouts]\ngrace = "10s"', "timeouts.grace", "must be shorter than request (10 s)"),
        ('[timeouts]\nreserve = "1m"', "timeouts.reserve", "must be shorter"),
        ('[timeouts]\nrefuse_below = "1m"', "timeouts.refuse_below", "must be shorter"),
        ('[timeouts]\ngrace = "6s"\nreserve = "4s"', "timeouts.grace", "together"),
        ("routes = 5", "routes", "must be a list, not a number"),
        ("routes = [5]", "routes[0]", "must be a table"),
        ("[[routes]]", "routes[0].path", "is missing"),
        ("[[routes]]\npath = 5", "routes[0].path", "must be a text"),
        ('[[routes]]\npath = "a"', "routes[0].path", "must begin with '/'"),
        ('[[routes]]\npath = "/a*b"', "routes[0].path", "only at the end"),
        ('[[routes]]\npath = "/a{b}"', "routes[0].path", "whole segment"),
        ('[[routes]]\npath = "/{b"', "routes[0].path", "whole segment"),
        ('[[routes]]\npath = "/"\nstream = 1', "routes[0].stream", "true or false"),
        ('[[routes]]\npath = "/"\nmethods = "GET"', "routes[0].methods", "must be a list"),
        ('[[routes]]\npath = "/"\nmethods = ["G T"]', "routes[0].methods[0]", "HTTP method"),
        ('[[routes]]\npath = "/"\nname = 1', "routes[0].name", "must be a text"),
        ('[[routes]]\npath = "/"\ntimeout = 1', "routes[0].timeout", "unknown key"),
        (
            '[[routes]]\npath = "/"\n[[routes]]\npath = "/a"\nrequest = "x"',
            "routes[1].request",
            "not a duration",
        ),
        (
            '[timeouts]\ngrace = "4s"\n[[routes]]\npath = "/"\nrequest = "3s"',
            "routes[0].grace",
            "must be shorter than request (3 s)",
        ),
        ("services = 1", "services", "must be a table"),
        ("[services]\npay = 1", "services.pay", "must be a table"),
        ("[services.pay]\ntimeout = 1", "services.pay.timeout", "did you mean 'timeouts'"),
        ("[services.pay.timeouts]\nidle = []", "services.pay.timeouts.idle", "not a list"),
        ('[services.pay.timeouts]\nheader = "1m"', "services.pay.timeouts.header", "longer"),
        ("[[services.pay.routes]]", "services.pay.routes[0].path", "is missing"),
        ("[headers]\ninbound = 1", "headers.inbound", "must be a list"),
        ("[headers]\ninbound = [1]", "headers.inbound[0]", "must be a text"),
        ('[headers]\noutbound = ["x-b"]', "headers.outbound[0]", "grammar"),
        ("[headers]\nin = 1", "headers.in", "unknown key"),
        ("[headers]\ndetails = 1", "headers.details", "true or false"),
        ("[identity]\nsample = 2", "identity.sample", "from 0 to 1"),
        ("[identity]\nsample = nan", "identity.sample", "from 0 to 1"),
        ("[identity]\nsample = true", "identity.sample", "from 0 to 1"),
        ('[identity]\ntrust_stage = "yes"', "identity.trust_stage", "true or false"),
        ('[identity]\nstage_header = "a b"', "identity.stage_header", "header name"),
    ],
)
def test_what_is_wrong_says_where(text: str, path: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(text)
    assert caught.value.path == path
    assert says in caught.value.problem


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(["/a*", "/{x}", "5s", "inf", "off", "grpc-timeout", ""]),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["path", "request", "grace", "stream", "methods", "timeouts", "routes", "inbound"]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["service", "mode", "timeouts", "routes", "services", "headers"]), JSON
    )
)
def test_any_mapping_is_a_policy_or_a_config_error(data: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        assert policy_from_mapping(data).limits("/").budget() > 0


def test_keys_must_be_texts() -> None:
    with pytest.raises(ConfigError, match="keys must be texts"):
        policy_from_mapping({"services": {5: {}}})


def test_by_hand() -> None:
    with pytest.raises(ConfigError):
        Route("no slash")
    with pytest.raises(ConfigError, match="no such limit"):
        Route("/", {"requests": 1.0})
    with pytest.raises(ConfigError) as caught:
        Policy(defaults=Limits(request=-1.0))
    assert caught.value.path == "timeouts.request"
    with pytest.raises(ConfigError) as caught:
        Policy(defaults=Limits(request=math.nan))
    assert caught.value.path == "timeouts.request"
    assert Policy(defaults=Limits(request=NEVER)).limits("/").budget() == NEVER


def test_describe() -> None:
    text = describe(policy(EXAMPLE, "payments"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["time-out", "policy", "of", "payments:", "observe"]
    assert lines[2][:4] == ["/charge", "any", "1", "s"]
    assert lines[3][:4] == ["/api/v2/payment*", "POST", "3", "s"]
    assert lines[4][:3] == ["/events", "any", "stream"]
    assert lines[5][:4] == ["(other)", "any", "2", "s"]
    assert "(no name)" in describe(DEFAULT_POLICY)
