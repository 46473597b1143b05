"""What a wrong policy says, to the word, and which of two routes wins."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from holdfast.domain.errors import ConfigError
from holdfast.domain.policy import (
    Limits,
    Policy,
    Resolved,
    Route,
    ServicePolicy,
    describe,
    policy_from_mapping,
)
from holdfast.domain.policy.route import RouteTable, check_limits, check_path, overridden

TOP = "service, mode, timeouts, routes, services, headers, identity, debug, stop, health"
TIMES = "header, request, idle, grace, reserve, refuse_below"


def refused(data: Any) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        policy_from_mapping(data)
    return caught.value.path, caught.value.problem


@pytest.mark.parametrize(
    ("data", "path", "problem"),
    [
        ([], "", "must be a table, not a list"),
        ({"qqq": 1}, "qqq", f"unknown key; known here: {TOP}"),
        ({"timeouts": {"reqest": 1}}, "timeouts.reqest", "unknown key; did you mean 'request'?"),
        ({"timeouts": {"zzz": 1}}, "timeouts.zzz", f"unknown key; known here: {TIMES}"),
        ({"timeouts": {1: 2}}, "timeouts", "keys must be texts, not 1"),
        ({"timeouts": True}, "timeouts", "must be a table, not a boolean"),
        ({"timeouts": "5s"}, "timeouts", "must be a table, not a text"),
        ({"timeouts": 5.0}, "timeouts", "must be a table, not a number"),
        ({"timeouts": None}, "timeouts", "must be a table, not NoneType"),
        ({"timeouts": object()}, "timeouts", "must be a table, not object"),
        ({"routes": {}}, "routes", "must be a list, not a table"),
        ({"routes": [{}]}, "routes[0].path", "is missing; write for example path = '/api/*'"),
        ({"mode": 5}, "mode", "must be a text, not a number"),
        ({"headers": {"outbound": 5}}, "headers.outbound", "must be a list, not a number"),
        ({"identity": 5}, "identity", "must be a table, not a number"),
        (
            {"identity": {"sampel": 1}},
            "identity.sampel",
            "unknown key; did you mean 'sample'?",
        ),
        (
            {"identity": {"stage_header": 5}},
            "identity.stage_header",
            "must be a text, not a number",
        ),
        (
            {"identity": {"sample": 1.5}},
            "identity.sample",
            "must be a number from 0 to 1, not 1.5",
        ),
        ({"debug": 5}, "debug", "must be a table, not a number"),
        ({"debug": {"trees": 5}}, "debug.trees", "unknown key; did you mean 'tree'?"),
        ({"debug": {"tree": "yes"}}, "debug.tree", "must be true or false, not a text"),
        (
            {"routes": [{"path": "/", "methods": [5]}]},
            "routes[0].methods[0]",
            "must be a text, not a number",
        ),
    ],
)
def test_what_is_wrong_and_where(data: object, path: str, problem: str) -> None:
    assert refused(data) == (path, problem)


@pytest.mark.parametrize("sample", [0, 1, 0.25])
def test_the_whole_range_of_ratios(sample: float) -> None:
    assert policy_from_mapping({"identity": {"sample": sample}}).wire.sample == sample


def test_an_empty_file_says_nothing() -> None:
    policy = policy_from_mapping({"services": {"a": {}}, "routes": [{"path": "/"}]})
    assert policy.service == ""
    assert policy.services["a"] == ServicePolicy({}, ())
    assert policy.routes == (Route("/"),)
    assert not policy.debug_tree
    assert policy_from_mapping({"debug": {"tree": True}}).debug_tree


def test_a_method_may_have_a_dash() -> None:
    policy = policy_from_mapping({"routes": [{"path": "/", "methods": ["m-search"]}]})
    assert policy.routes[0].methods == {"M-SEARCH"}


@pytest.mark.parametrize(
    ("limits", "name", "problem"),
    [
        (Limits(idle=-1), "idle", "must be a duration of at least 0"),
        (Limits(request=0), "request", "must be longer than 0; to have no limit write 'inf'"),
        (
            Limits(grace=10),
            "grace",
            "10 s must be shorter than request (10 s): the grace is carved out of the request",
        ),
        (
            Limits(reserve=11),
            "reserve",
            "11 s must be shorter than request (10 s): "
            "a hop cannot keep all of the budget for itself",
        ),
        (
            Limits(refuse_below=10),
            "refuse_below",
            "10 s must be shorter than request (10 s): otherwise every request is refused",
        ),
        (
            Limits(header=11),
            "header",
            "must not be longer than request (10 s), of which it is a part",
        ),
        (
            Limits(grace=5, reserve=5),
            "grace",
            "grace and reserve together must be shorter than request (10 s)",
        ),
    ],
)
def test_the_laws_of_limits(limits: Limits, name: str, problem: str) -> None:
    assert check_limits(limits) == (name, problem)


def test_a_wrong_route_of_a_service_is_told_by_its_path() -> None:
    services = {"a": ServicePolicy(routes=(Route("/"), Route("/x", {"grace": 99})))}
    with pytest.raises(ConfigError) as caught:
        Policy(services=services)
    assert caught.value.path == "services.a.routes[1].grace"


@pytest.mark.parametrize("path", ["*", "/", "/a/{id}/b", "/{a}/{b}", "/a/{id}*", "/a b*"])
def test_good_paths(path: str) -> None:
    assert check_path(path) == ""


@pytest.mark.parametrize(
    "path", ["", "a", "/a}", "/{a", "/a{b}", "/{a}X", "/{a}/{b*}", "/{a b}", "/*/a"]
)
def test_wrong_paths(path: str) -> None:
    assert check_path(path)


def test_a_wrong_route_by_hand() -> None:
    with pytest.raises(ConfigError) as caught:
        Route("a")
    assert (caught.value.path, caught.value.problem) == ("path", "'a' must begin with '/'")
    with pytest.raises(ConfigError) as caught:
        Route("/a", {"reqest": 1.0})
    assert caught.value.path == "reqest"
    assert caught.value.problem == f"no such limit; use one of: {TIMES}"


def test_nothing_left_is_refused() -> None:
    assert Resolved(Limits()).refuses(0.0)
    assert not Resolved(Limits()).refuses(0.001)


@pytest.mark.parametrize(("request_limit", "reserve"), [(0.05, 0.005), (0.105, 0.01), (5.0, 0.01)])
def test_an_inherited_reserve_is_at_most_a_tenth(request_limit: float, reserve: float) -> None:
    assert overridden(Limits(), {"request": request_limit}).reserve == pytest.approx(reserve)


ANY, GET = Route("/a/{x}", name="any"), Route("/a/{x}", methods=frozenset({"GET"}), name="get")
EXACT, EXACT_GET = Route("/e", name="any"), Route("/e", methods=frozenset({"GET"}), name="get")


def winner(own: list[Route], common: list[Route], path: str, method: str = "GET") -> str:
    return RouteTable(Limits(), own, common).find(path, method).route


@pytest.mark.parametrize(
    ("routes", "path", "name"),
    [
        ([ANY, GET], "/a/1", "get"),
        ([GET, ANY], "/a/1", "get"),
        ([EXACT, EXACT_GET], "/e", "get"),
        ([Route("/a/{x}*", name="open"), Route("/a/{x}", name="shut")], "/a/1", "shut"),
        ([Route("/a/{x}/{y}"), Route("/a/{x}/b")], "/a/1/b", "/a/{x}/b"),
        ([Route("/a/{x}*"), Route("/a/{x}/b*")], "/a/1/b", "/a/{x}/b*"),
        ([Route("/a/{x}", name="1"), Route("/a/{x}", name="2")], "/a/1", "1"),
        ([Route("/e", name="1"), Route("/e", name="2")], "/e", "1"),
    ],
)
def test_which_of_two_routes_wins(routes: list[Route], path: str, name: str) -> None:
    assert winner([], routes, path) == name


@pytest.mark.parametrize(
    ("own", "common", "path"),
    [
        (ANY, GET, "/a/1"),
        (EXACT, EXACT_GET, "/e"),
        (Route("/a/{x}", name="any"), Route("/a/{longer}", name="get"), "/a/1"),
    ],
)
def test_what_the_service_says_comes_before_what_holds_for_all(
    own: Route, common: Route, path: str
) -> None:
    assert winner([own], [common], path) == "any"


def test_the_memo_is_what_spares_a_second_search() -> None:
    table = RouteTable(Limits(), [Route("/a*")], [])
    found = table.find("/a1", "GET")
    assert table._memo == {"/a1": found}
    other = Resolved(Limits())
    table._memo["/a1"] = other
    assert table.find("/a1", "POST") is other
    table.find("/" + "x" * 255, "GET")
    assert len(table._memo) == 2
    table.find("/" + "x" * 256, "GET")
    assert len(table._memo) == 2


def test_the_memo_is_emptied_when_it_is_full() -> None:
    table = RouteTable(Limits(), [], [])
    for number in range(1024):
        table.find(f"/{number}", "GET")
    assert len(table._memo) == 1024
    table.find("/one more", "GET")
    assert len(table._memo) == 1


DESCRIBED = """\
time-out policy of (no name): enforce
  path      method    request  header  idle       grace   reserve
  /a        GET,POST  3 s      3 s     5 min 0 s  100 ms  10 ms
  /streams  any       stream   -       5 min 0 s  -       10 ms
  (other)   any       10 s     5 s     5 min 0 s  -       10 ms"""


def test_a_policy_as_a_table() -> None:
    text = """
    [[routes]]
    path = "/a"
    methods = ["POST", "GET"]
    request = 3
    grace = "100ms"
    [[routes]]
    path = "/streams"
    stream = true
    header = 0
    """
    assert describe(policy_from_mapping(tomllib.loads(text))) == DESCRIBED


def test_tables_of_other_forms_mean_nothing_here() -> None:
    data = {"stop": {"grace": "no duration"}, "health": 5, "service": "shop"}
    assert policy_from_mapping(data) == policy_from_mapping({"service": "shop"})
