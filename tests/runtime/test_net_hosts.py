"""resolv.conf, read as the C library reads it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.runtime.net.hosts import ResolvConf, literal


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", {}),
        ("nameserver 192.0.2.1", {"servers": ("192.0.2.1",)}),
        (" nameserver\t192.0.2.1 # here\n", {"servers": ("192.0.2.1",)}),
        ("#nameserver 192.0.2.1\n; nameserver 192.0.2.1\nnameserver\nname server x", {}),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)),
            {"servers": ("192.0.2.1", "192.0.2.2", "192.0.2.3")},
        ),
        ("domain A.test", {"search": ("a.test",)}),
        ("domain a.test\nsearch b.test. c.test", {"search": ("b.test", "c.test")}),
        ("search b.test\nsearch .", {"search": ()}),
        ("options ndots:5 timeout:1 attempts:1", {"ndots": 5, "timeout": 1.0, "attempts": 1}),
        ("options ndots:0\noptions timeout:3", {"ndots": 0, "timeout": 3.0}),
        ("options ndots:99 timeout:99 attempts:99", {"ndots": 15, "timeout": 30.0, "attempts": 5}),
        ("options timeout:0 attempts:0", {"timeout": 1.0, "attempts": 1}),
        ("options ndots timeout: attempts:x ndots:-1 rotate edns0 timeout:\u0663", {}),
    ],
)
def test_resolv_conf(text: str, said: dict[str, Any]) -> None:
    assert ResolvConf.parse(text) == ResolvConf(**said)


@given(st.text(st.sampled_from("nameserver searchoption:nd 0123456789.\n#;\t٣")))
def test_whatever_is_written_there_can_be_read(text: str) -> None:
    conf = ResolvConf.parse(text)
    assert 1 <= len(conf.servers) <= 3
    assert conf.candidates("a.b")


@pytest.mark.parametrize(
    ("conf", "name", "names"),
    [
        ({}, "a", ["a"]),
        ({"search": ("x", "y")}, "a", ["a.x", "a.y", "a"]),
        ({"search": ("x", "y")}, "a.b", ["a.b", "a.b.x", "a.b.y"]),
        ({"search": ("x",), "ndots": 2}, "a.b", ["a.b.x", "a.b"]),
        ({"search": ("x",), "ndots": 0}, "a", ["a", "a.x"]),
        ({"search": ("x",)}, "a.", ["a"]),
    ],
)
def test_candidates(conf: dict[str, Any], name: str, names: list[str]) -> None:
    assert list(ResolvConf(**conf).candidates(name)) == names


@pytest.mark.parametrize(
    "host",
    [
        "orders",
        "orders.test",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "1.2.3.256",
        "a:b",
        "[a]",
        "[1.2",
        "",
    ],
)
def test_what_is_not_an_address(host: str) -> None:
    assert literal(host) is None


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("[::1]", "::1"),
        ("::", "::"),
        ("FD00:0::01", "fd00::1"),
        ("fe80::1%a", "fe80::1%a"),
    ],
)
def test_what_is_an_address(host: str, address: str) -> None:
    assert literal(host) == address
