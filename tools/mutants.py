"""Change the domain in small ways, and see whether a test notices.

    python tools/mutants.py                              the whole domain, against the budget
    python tools/mutants.py 'holdfast.domain.tree.*'     only mutants whose names match

mutmut makes the mutants and runs `tests/domain` against each. What it does not do is done here: it
works in a copy, `.cache/mutants`, so that the tree stays clean and may be edited meanwhile; chance
is taken out of Hypothesis, so that two runs agree; and the survivors are held against a budget,
`tests/domain/mutants.toml`, function by function.

    ["policy.form"]
    "_route" = { survivors = 2, why = "the path is checked again where the route is made" }

A mutant that no test reaches is a survivor as well. A timeout counts as noticed: such a mutant runs
in circles. They are named all the same, because on a busy machine it may only have been slow.
Mutants are made inside functions, methods and properties; mutmut leaves decorators and what runs at
module level alone.

Exit codes: 0 within the budget, 1 beyond it, 2 nothing to judge (a wrong budget, a failed run).
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, cast

BUDGET: Final = Path("tests/domain/mutants.toml")
WORK: Final = Path(".cache/mutants")
COPIED: Final = ("src/holdfast", "tests/conftest.py", "tests/domain", "pyproject.toml")
DOMAIN: Final = "holdfast.domain."
TOLD: Final = 40
"""Survivors beyond the budget that are shown with their change."""
MEMORY: Final = 4 << 30
"""Bytes of address space: a mutant that appends for ever shall end before the machine does."""

KILLED: Final = frozenset({"killed", "caught by type check"})
TIMED_OUT: Final = frozenset({"timeout", "segfault"})
SURVIVED: Final = "survived"
UNTESTED: Final = "no tests"

# The settings of a test come before those of a profile, hence the second half.
CONFTEST: Final = '''"""Small and without chance, so that the same mutants live in every run."""

from hypothesis import Phase, settings

# Not made smaller: that a test fails is all that is asked of it.
settings.register_profile(
    "mutants",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=40,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("mutants")


def pytest_collection_modifyitems(items):
    for item in items:
        own = getattr(item.cls, "settings", None)
        if isinstance(own, settings):
            item.cls.settings = settings(own, max_examples=min(own.max_examples, 40))
'''


class Wrong(Exception):
    """There is nothing to judge."""


class Mutant(NamedTuple):
    """One change, and what came of it."""

    key: str
    module: str
    function: str
    status: str

    @property
    def lives(self) -> bool:
        return self.status in (SURVIVED, UNTESTED)


Budget = Mapping[tuple[str, str], int]


def read_budget(path: Path) -> Budget:
    """Survivors allowed, by module and function."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Wrong(f"{path}: {error}") from error
    found: dict[tuple[str, str], int] = {}
    for module, functions in tables.items():
        if not isinstance(functions, dict):
            raise Wrong(f"{path}: {module}: must be a table, a module of the domain")
        for function, entry in cast("dict[str, object]", functions).items():
            match entry:
                case {"survivors": int(count), "why": str(why)} if count > 0 and why.strip():
                    found[module, function] = count
                case _:
                    form = "{ survivors = 1, why = 'a reason' }"
                    raise Wrong(f"{path}: [{module}] {function}: write {form}")
    return found


def parse_mutant(key: str, status: str) -> Mutant:
    """A mutant from its name, `holdfast.domain.tree.xǁNodeǁclose__mutmut_3`."""
    module, _, name = key.partition("__mutmut_")[0].rpartition(".")
    # A function is `x_name`, a method `xǁClassǁname`.
    function = ".".join(name.split("ǁ")[1:]) or name.removeprefix("x_")
    return Mutant(key, module.removeprefix(DOMAIN), function, status)


def undecorated(source: str) -> str:
    """The same module with `name = property(name)` for the decorator, which mutmut walks around."""
    lines = source.splitlines()
    members = [
        member
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for member in node.body
    ]
    for member in sorted(members, key=lambda each: -each.lineno):
        match member:
            case ast.FunctionDef(name=name, decorator_list=[ast.Name(id="property") as decorator]):
                indent = " " * member.col_offset
                lines.insert(
                    member.end_lineno or member.lineno, f"{indent}{name} = property({name})"
                )
                del lines[decorator.lineno - 1]
            case _:
                pass
    return "\n".join(lines) + "\n"


def prepare() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    for name in COPIED:
        source, target = Path(name), WORK / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    for path in (WORK / "src/holdfast/domain").rglob("*.py"):
        path.write_text(undecorated(path.read_text(encoding="utf-8")), encoding="utf-8")
    (WORK / "conftest.py").write_text(CONFTEST, encoding="utf-8")


def mutmut(*arguments: str, log: Path | None = None) -> str:
    """Run mutmut in the copy; its output, unless that goes into a file."""
    # Not the sources of this tree, and no settings of this shell: only what was copied.
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTEST_ADDOPTS", "HYPOTHESIS_PROFILE")
    }
    environ["PYTHONHASHSEED"] = "0"
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    if log is None:
        return subprocess.run(
            command, cwd=WORK, env=environ, check=True, capture_output=True, text=True
        ).stdout
    with log.open("wb") as out:
        done = subprocess.run(command, cwd=WORK, env=environ, stdout=out, stderr=out, check=False)
    if done.returncode:
        # Of a line that was written over and over only the last version is of interest.
        text = re.sub(r"[^\n]*\r", "", log.read_text(encoding="utf-8", errors="replace"))
        raise Wrong(f"{text[-4000:]}\nmutmut failed; all of its output is in {log}")
    return ""


def run(patterns: Iterable[str], children: int) -> list[Mutant]:
    wanted = list(patterns)
    log = WORK / "mutmut.log"
    print(f"This takes some minutes; see how far it is with: tail -f {log}", file=sys.stderr)
    mutmut("run", "--max-children", str(children), *wanted, log=log)
    found: list[Mutant] = []
    for line in mutmut("results", "--all", "True").splitlines():
        key, colon, status = line.strip().rpartition(": ")
        if colon and (not wanted or any(fnmatch.fnmatch(key, each) for each in wanted)):
            found.append(parse_mutant(key, status))
    return found


def table(mutants: Iterable[Mutant], budget: Budget) -> str:
    """One line for each module, the sum last."""
    counts: dict[str, Counter[str]] = {}
    for mutant in mutants:
        count = counts.setdefault(mutant.module, Counter())
        count["mutants"] += 1
        count["killed"] += mutant.status in KILLED
        count["timeouts"] += mutant.status in TIMED_OUT
        count[SURVIVED] += mutant.status == SURVIVED
        count[UNTESTED] += mutant.status == UNTESTED
    for (module, _), allowed in budget.items():
        if module in counts:
            counts[module]["budget"] += allowed
    columns = ("mutants", "killed", "timeouts", SURVIVED, UNTESTED, "budget")
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    lines = [f"{'module':<16}" + "".join(f"{column:>10}" for column in columns)]
    for module, count in (*sorted(counts.items()), ("all", total)):
        lines.append(f"{module:<16}" + "".join(f"{count[column]:>10}" for column in columns))
    return "\n".join(lines)


def judge(mutants: list[Mutant], budget: Budget, *, whole: bool) -> list[str]:
    """What is beyond the budget, as lines to print; what is below it is printed at once."""
    alive: dict[tuple[str, str], list[str]] = {}
    for mutant in mutants:
        if mutant.lives:
            alive.setdefault((mutant.module, mutant.function), []).append(mutant.key)
    beyond: list[str] = []
    shown = 0
    for place, keys in sorted(alive.items()):
        allowed = budget.get(place, 0)
        if len(keys) <= allowed:
            continue
        beyond.append(f"{place[0]}: {place[1]}: {len(keys)} survive, {allowed} may")
        for key in keys:
            shown += 1
            beyond.append(mutmut("show", key).rstrip() if shown <= TOLD else f"# {key}")
    made = {(mutant.module, mutant.function) for mutant in mutants}
    for place, allowed in sorted(budget.items()):
        if whole and place not in made:
            beyond.append(f"{BUDGET}: {place[0]}: {place[1]}: has no mutants; remove the line")
        elif place in made and len(alive.get(place, ())) < allowed:
            count = len(alive.get(place, ()))
            here = f"{BUDGET}: {place[0]}: {place[1]}"
            print(f"{here}: only {count} survive; lower it from {allowed}")
    return beyond


def check(patterns: list[str], children: int) -> int:
    budget = read_budget(BUDGET)
    prepare()
    mutants = run(patterns, children)
    known = KILLED | TIMED_OUT | {SURVIVED, UNTESTED}
    unclear = [f"{mutant.key}: {mutant.status}" for mutant in mutants if mutant.status not in known]
    if unclear or not mutants:
        raise Wrong(
            "\n".join([*unclear[:TOLD], f"{len(unclear)} of {len(mutants)} are not judged"])
        )
    print(table(mutants, budget))
    for mutant in mutants:
        if mutant.status in TIMED_OUT:
            print(f"timed out: {mutant.key}")
    beyond = judge(mutants, budget, whole=not patterns)
    if not beyond:
        return 0
    print("\n".join(["", *beyond]))
    print(f"\nWrite a test that notices, or, where none can, say why in {BUDGET}.")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation testing of the domain, with a budget.")
    parser.add_argument("patterns", nargs="*", help="names of mutants, with * and ?; all if none")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        return check(given.patterns, given.children)
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
