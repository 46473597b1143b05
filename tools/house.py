"""The rules of the house that neither ruff nor import-linter can see.

    size     a file has at most 400 lines, a function at most 60
    name     no module is called utils, helpers, common, core or manager
    spawner  only `holdfast.runtime` creates tasks, whatever object the method hangs on
    stdlib   the domain imports the standard library and itself, nothing else
    port     a Protocol in `holdfast.ports` has at most four methods
    export   what a module imports from another of ours is in the `__all__` of that one
    heading  a page of the documentation has no heading twice: half of it would be a copy

Run it without arguments: it prints `file:line: rule: what to do` and exits with 1 if there
is anything to print.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path("src/holdfast")

MAX_FILE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 60
MAX_PORT_METHODS: Final = 4
VAGUE_NAMES: Final = frozenset({"common", "core", "helpers", "manager", "utils"})
SPAWNERS: Final = frozenset(
    {
        "create_task",
        "create_task_group",
        "ensure_future",
        "run_coroutine_threadsafe",
        "run_in_executor",
        "start_soon",
    }
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Breach(NamedTuple):
    line: int
    rule: str
    text: str


def check_size(tree: ast.Module, lines: int) -> Iterator[Breach]:
    if lines > MAX_FILE_LINES:
        yield Breach(lines, "size", f"{lines} lines; split it, {MAX_FILE_LINES} is the wall")
    for node in ast.walk(tree):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield Breach(
                    node.lineno,
                    "size",
                    f"{node.name} has {length} lines; split it, {MAX_FUNCTION_LINES} is the wall",
                )


def check_name(path: Path) -> Iterator[Breach]:
    name = path.parent.name if path.stem == "__init__" else path.stem
    if name.strip("_") in VAGUE_NAMES:
        yield Breach(1, "name", f"{name} says nothing; name the concept that lives here")


def check_spawner(tree: ast.Module) -> Iterator[Breach]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in SPAWNERS:
                yield Breach(node.lineno, "spawner", f"{name}() belongs to holdfast.runtime")
            case _:
                pass


def check_stdlib(tree: ast.Module) -> Iterator[Breach]:
    allowed = sys.stdlib_module_names | {"holdfast"}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                imported = [module]
            case _:
                continue
        for module in imported:
            if module.partition(".")[0] not in allowed:
                yield Breach(node.lineno, "stdlib", f"{module} is foreign; an adapter is its home")


def check_port(tree: ast.Module) -> Iterator[Breach]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
            methods = sum(isinstance(member, Function) for member in node.body)
            if methods > MAX_PORT_METHODS:
                yield Breach(
                    node.lineno,
                    "port",
                    f"{node.name} has {methods} methods; split it, {MAX_PORT_METHODS} are enough",
                )


@cache
def exports_of(module: str) -> frozenset[str] | None:
    """What a module of ours promises in `__all__`; None where it has none."""
    path = SOURCE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return frozenset(ast.literal_eval(value))
            case _:
                pass
    return None


def check_export(tree: ast.Module) -> Iterator[Breach]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.partition(".")[0] != SOURCE.name:
            continue
        exports = exports_of(node.module)
        inside = SOURCE.parent.joinpath(*node.module.split("."))
        for name in [alias.name for alias in node.names]:
            is_module = (inside / name).is_dir() or (inside / f"{name}.py").exists()
            missing = name.startswith("_") if exports is None else name not in exports
            if missing and not is_module and not name.startswith("__"):
                yield Breach(
                    node.lineno, "export", f"{name} is not in the __all__ of {node.module}"
                )


def check_page(text: str) -> Iterator[Breach]:
    seen: set[str] = set()
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            if line in seen:
                yield Breach(number, "heading", f"{line!r} is on this page already")
            seen.add(line)


def check_file(path: Path) -> list[Breach]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    floor = path.relative_to(SOURCE).parts[0]
    breaches = [
        *check_size(tree, len(text.splitlines())),
        *check_name(path),
        *check_export(tree),
    ]
    if floor != "runtime":
        breaches += check_spawner(tree)
    if floor == "domain":
        breaches += check_stdlib(tree)
    if floor == "ports":
        breaches += check_port(tree)
    return sorted(breaches)


def main() -> int:
    found = 0
    for path in sorted(SOURCE.rglob("*.py")):
        for breach in check_file(path):
            found += 1
            print(f"{path}:{breach.line}: {breach.rule}: {breach.text}")
    for page in sorted(Path("docs").rglob("*.md")):
        for breach in check_page(page.read_text(encoding="utf-8")):
            found += 1
            print(f"{page}:{breach.line}: {breach.rule}: {breach.text}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
