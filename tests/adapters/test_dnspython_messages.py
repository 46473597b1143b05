"""What comes from the network is read without a mistake, whatever it is."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.adapters.dnspython import _Judge
from holdfast.domain.discovery.names import Answer
from holdfast.runtime.net.queries import Verdict

QUERY = dns.message.make_query("orders.test", "A", use_edns=False, id=4711)
SOA = "ns.test. hostmaster.test. 1 3600 600 86400 7"


def answered(*records: tuple[str, int, str, str], rcode: int = 0, about: str = "") -> bytes:
    """A message with these records (name, seconds, type, data), and a SOA record of `about`."""
    response = dns.message.make_response(QUERY)
    response.set_rcode(rcode)
    for name, ttl, kind, data in records:
        response.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, data))
    if about:
        response.authority.append(dns.rrset.from_text(f"{about}.", 300, "IN", "SOA", SOA))
    return response.to_wire()


CHAIN = answered(
    ("orders.test", 9, "CNAME", "middle.test."),
    ("middle.test", 4, "CNAME", "end.test."),
    ("end.test", 20, "A", "192.0.2.1"),
)
NOTHING = answered(rcode=3, about="test")


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (CHAIN, Answer(("192.0.2.1",), 4.0)),
        (NOTHING, Answer((), 7.0, exists=False)),
        (answered(about="test"), Answer((), 7.0, exists=True)),
        (answered(), Answer((), 0.0)),
        (answered(rcode=3), Answer((), 0.0, exists=False)),
        # An SOA record of others says nothing of this name.
        (answered(about="other"), None),
        (answered(("orders.test", 5, "CNAME", "end.test.")), Answer((), 0.0)),
        (answered(("orders.test", 5, "CNAME", "end.test."), about="test"), Answer((), 5.0)),
        (answered(("other.test", 5, "A", "192.0.2.66")), Answer((), 0.0)),
        (answered(("orders.test", 0, "A", "192.0.2.1")), Answer(("192.0.2.1",), 0.0)),
        (answered(("orders.test", 2**31, "A", "192.0.2.1")), Answer(("192.0.2.1",), 0.0)),
        (answered(("orders.test", 5, "A", "192.0.2.1")) + b"more", Answer(("192.0.2.1",), 5.0)),
    ],
)
def test_answers(message: bytes, answer: Answer | None) -> None:
    judge = _Judge(QUERY)
    assert judge(message) is Verdict.ANSWER
    if answer is None:
        assert judge.answer is not None
        assert judge.answer.addresses == ()
    else:
        assert judge.answer == answer


def test_a_chain_without_an_end_is_no_answer() -> None:
    judge = _Judge(QUERY)
    looped = answered(
        ("orders.test", 9, "CNAME", "other.test."), ("other.test", 9, "CNAME", "orders.test.")
    )
    assert judge(looped) is Verdict.FOREIGN


def test_only_an_answer_to_this_very_question_is_one() -> None:
    other = dns.message.make_query("orders.test", "A", use_edns=False, id=QUERY.id ^ 1)
    other_name = dns.message.make_query("other.test", "A", use_edns=False, id=QUERY.id)
    other_type = dns.message.make_query("orders.test", "AAAA", use_edns=False, id=QUERY.id)
    for question in (other, other_name, other_type):
        assert _Judge(question)(CHAIN) is Verdict.FOREIGN
    assert _Judge(QUERY)(QUERY.to_wire()) is Verdict.FOREIGN


def test_what_is_cut_is_not_read() -> None:
    cut = dns.message.make_response(QUERY)
    cut.flags |= dns.flags.TC
    judge = _Judge(QUERY)
    assert judge(cut.to_wire()) is Verdict.CUT
    assert judge.answer is None


@given(
    st.sampled_from([CHAIN, NOTHING]),
    st.lists(st.tuples(st.integers(2, len(NOTHING) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(CHAIN)),
)
def test_a_message_that_is_broken_is_no_mistake_of_ours(
    message: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    broken = bytearray(message)
    for at, byte in changes:
        broken[at] = byte
    judge = _Judge(QUERY)
    for received in (bytes(broken), bytes(broken[:length])):
        assert (judge(received) is Verdict.ANSWER) <= (judge.answer is not None)


@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    assert _Judge(QUERY)(noise) is Verdict.FOREIGN
    assert _Judge(QUERY)(QUERY.to_wire()[:2] + noise) is not Verdict.ANSWER
