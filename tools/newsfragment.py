"""Whoever changes what users run says so: a change under src/ needs a fragment.

    python tools/newsfragment.py --check

Compared is the working tree with the point where this branch left the main one; on the main
branch itself, with the last release. Where there is neither, as in a history that has just
begun, there is nothing to ask for. HOLDFAST_BASE names another revision to compare with.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

FRAGMENTS: Final = "newsfragments"
MAIN_BRANCHES: Final = ("origin/main", "main")
FRAGMENT_NAME: Final = re.compile(r"\+?[\w-]+\.(?P<kind>[a-z]+)(\.\d+)?\.md")


def git(*arguments: str) -> str | None:
    """What git prints, or None where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def base_revision() -> str | None:
    if named := os.environ.get("HOLDFAST_BASE"):
        return named
    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return None
    # A branch without commits of its own is compared with where it began.
    own_branch = git("symbolic-ref", "--quiet", "--short", "HEAD") not in (None, "main")
    for branch in MAIN_BRANCHES:
        base = git("merge-base", "HEAD", branch)
        if base is not None and (own_branch or base != head):
            return base
    return git("describe", "--tags", "--match", "v*", "--abbrev=0")


def changed_since(base: str) -> set[str]:
    changed = git("diff", "--name-only", "--no-renames", base)
    if changed is None:
        sys.exit(f"newsfragment: git knows no revision {base}")
    untracked = git("ls-files", "--others", "--exclude-standard") or ""
    return {*changed.splitlines(), *untracked.splitlines()}


def known_kinds() -> list[str]:
    settings: dict[str, Any] = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    return [kind["directory"] for kind in settings["tool"]["towncrier"]["type"]]


def malformed_fragments() -> list[str]:
    kinds = known_kinds()
    complaints: list[str] = []
    for path in sorted(Path(FRAGMENTS).iterdir()):
        if path.name == "README.md" or path.name.startswith("."):
            continue
        named = FRAGMENT_NAME.fullmatch(path.name)
        if named is None or named["kind"] not in kinds:
            complaints.append(f"{path}: call it +NAME.KIND.md; KIND is one of {', '.join(kinds)}")
        elif not path.read_text(encoding="utf-8").strip():
            complaints.append(f"{path}: is empty; write one sentence for users")
    return complaints


def missing_fragment() -> list[str]:
    base = base_revision()
    if base is None:
        return []
    changed = changed_since(base)
    # A release folds the fragments into the changelog, which is as good as a fragment.
    told = any(
        name == "CHANGELOG.md" or (name.startswith(f"{FRAGMENTS}/") and Path(name).exists())
        for name in changed - {f"{FRAGMENTS}/README.md"}
    )
    if told or not any(name.startswith("src/") for name in changed):
        return []
    return [f"src/ has changed since {base[:12]}: add {FRAGMENTS}/+NAME.KIND.md"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask for a newsfragment where src/ has changed.")
    parser.add_argument("--check", action="store_true", required=True)
    parser.parse_args()
    complaints = malformed_fragments() + missing_fragment()
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
