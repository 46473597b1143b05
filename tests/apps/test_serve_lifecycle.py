"""The tables `[stop]` and `[health]` on their way from the file to whoever serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.apps.serve.plan import Plan
from holdfast.domain.lifecycle.settings import LifecycleSettings
from holdfast.runtime.policyfile import (
    GRACE,
    PolicyFileError,
    find_policy,
    platform_grace,
    read_policy,
)

FILE = """\
service = "shop"

[stop]
grace = "60s"
cleanup = "6s"

[health]
live = "/up"
"""


@pytest.fixture(autouse=True)
def silent_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GRACE, raising=False)


def test_a_file_has_both_meanings(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE)
    file = find_policy(None, "", tmp_path)
    assert file.policy.service == "shop"
    assert (file.lifecycle.stop.grace, file.lifecycle.stop.cleanup) == (60.0, 6.0)
    assert file.lifecycle.health.live == "/up"


def test_no_file_has_the_defaults(tmp_path: Path) -> None:
    assert find_policy(None, "", tmp_path).lifecycle == LifecycleSettings()


def test_workers_are_given_what_the_parent_has_read(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE)
    file = read_policy(path, "")
    path.write_text("no longer TOML")
    handed = Plan("shop:app", source=file.source, data=file.data, home=tmp_path).policy()
    assert handed.lifecycle == file.lifecycle


def test_what_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE.replace('"6s"', '"60s"'))
    with pytest.raises(PolicyFileError) as caught:
        read_policy(path, "")
    assert str(caught.value) == (
        f"{path}:5: stop.cleanup: 60 s is not shorter than the grace of 60 s; "
        "the clean-up is carved out of the grace"
    )


@pytest.mark.parametrize(
    ("said", "seconds"), [("", None), (" ", None), ("15", 15.0), ("15s", 15.0), ("1m", 60.0)]
)
def test_what_the_platform_says(
    monkeypatch: pytest.MonkeyPatch, said: str, seconds: float | None
) -> None:
    monkeypatch.setenv(GRACE, said)
    assert platform_grace() == seconds


def test_the_platform_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE)
    monkeypatch.setenv(GRACE, "15")
    assert read_policy(path, "").lifecycle.stop.grace == 15.0
    monkeypatch.setenv(GRACE, "5")  # less than the clean-up of the file
    with pytest.raises(
        PolicyFileError, match=r":5: stop\.cleanup: 6 s is not shorter than the grace"
    ):
        read_policy(path, "")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("soon", "HOLDFAST_GRACE: 'soon' is not a duration; write for example '30s' or '250ms'"),
        ("0", "HOLDFAST_GRACE: must be longer than 0, got '0'"),
        ("0s", "HOLDFAST_GRACE: must be longer than 0, got '0s'"),
    ],
)
def test_a_wrong_word_of_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, problem: str
) -> None:
    monkeypatch.setenv(GRACE, said)
    with pytest.raises(PolicyFileError) as caught:
        find_policy(None, "", tmp_path)
    assert str(caught.value) == problem
