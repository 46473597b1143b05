"""The first words of statements: comments, brackets, and texts that were made to take long."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.wire.verbs import commands, first_word

LINEAR = 5.0
"""Seconds, far more than a scan takes; what is tried in all ways takes for ever."""


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("SELECT 1", "SELECT"),
        ("  \t\r\n\f\vselect", "SELECT"),
        ("((Select 1) UNION (SELECT 2))", "SELECT"),
        (";; COMMIT", "COMMIT"),
        ("-- why\n/* what */ -- how\r(SELECT 1)", "SELECT"),
        ("/* one /* two */ still one */ROLLBACK", "ROLLBACK"),
        ("/* one /* two */ COMMIT", ""),
        ("/*/ COMMIT */ BEGIN", "BEGIN"),
        ("/**/BEGIN/**/", "BEGIN"),
        ("BEGIN;", "BEGIN"),
        ("-- nothing", ""),
        ("/* nothing", ""),
        ("- COMMIT", ""),
        ("'COMMIT'", ""),
        ("1", ""),
        ("", ""),
        ("set_config", "SET_CONFIG"),
        ("\u00a0COMMIT", ""),
    ],
)
def test_the_first_word(sql: str, word: str) -> None:
    assert first_word(sql) == word


@pytest.mark.parametrize(
    "part", [" ", "(", "/*a*/", "/*", "/*a*/ ", "--\n", "-- a\n ", "*/", "\n  ", "-", "/", ";"]
)
@pytest.mark.parametrize("count", [40, 200_000])
def test_it_takes_linear_time(part: str, count: int) -> None:
    begun = perf_counter()
    first_word(part * count + "1")
    first_word(part * count + "SELECT")
    assert perf_counter() - begun < LINEAR


@given(st.text(alphabet=" \n(;/*-aB1'\"$", max_size=30))
def test_whatever_comes_is_a_word_of_the_text_or_none(sql: str) -> None:
    word = first_word(sql)
    assert word == "" or re.search(word, sql, re.IGNORECASE)


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT 1", [("SELECT", "1")]),
        ("commit prepared 'it''s'; end", [("COMMIT", "PREPARED", "'it'", "'s'"), ("END",)]),
        ("; /* a; /* b */ c; */ reset ALL;; ", [("RESET", "ALL")]),
        ('SET "statement_timeout" = -1', [("SET", '"statement_timeout"', "=", "-", "1")]),
        ("SELECT 'a;b' -- c; d\n, $1", [("SELECT", "'a;b'", ",", "$1")]),
        (r"SELECT E'a\';b'; END", [("SELECT", r"'a\';b'"), ("END",)]),
        ("DO $x$ RESET ALL; $$;$$ $x$; END", [("DO", "' RESET ALL; $$;$$ '"), ("END",)]),
        ("SELECT $1, $2", [("SELECT", "$1", ",", "$2")]),
        ("SELECT a$1$b", [("SELECT", "A$1$B")]),
        ("SELECT (1), 2, 3, 4, 5, 6", [("SELECT", "1", ",", "2", ",", "3", ",", "4")]),
        ("SELECT $$ END", [("SELECT", "' END'")]),
        ("SELECT 'END", [("SELECT", "'", "END")]),
        (" -- nothing", []),
    ],
)
def test_commands(sql: str, told: list[tuple[str, ...]]) -> None:
    assert list(commands(sql)) == told


@pytest.mark.parametrize(
    "part", [" ", "(", "/*a*/", "/*", "*/", "--\n", "'", "e'", '"', "$a", "a;"]
)
def test_commands_take_linear_time(part: str) -> None:
    begun = perf_counter()
    for _ in commands(part * 30_000 + "1"):
        pass
    assert perf_counter() - begun < LINEAR


@given(st.text(alphabet=" \n(;/*-aB1'\"$e\\", max_size=30))
def test_the_first_command_begins_with_the_first_word(sql: str) -> None:
    found = next(commands(sql), ("",))[0]
    assert first_word(sql) in (found.split("$")[0], "")
