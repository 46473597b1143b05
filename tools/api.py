"""The public API of Holdfast as one text, docs/reference/api.txt, to be reviewed like code.

    python tools/api.py           write it
    python tools/api.py --check   fail with a diff where it is out of date

The text is read from the sources and nothing is imported, so it is the same on every Python and
in every working directory. What is in it:

Rule 1. The face with its lifecycle, and the modules of the domain, the adapters and the test kit.
        A package with an `__all__` is a face of its own: it is listed, what is inside it is not.
Rule 2. Of a module, what `__all__` says. A name that another listed module defines is shown there
        in full and here by reference.
Rule 3. Of a class, its public members. Where it has a `__dir__`, the names that stand there, also
        those that it inherits: who is shown them may use them, and the rest is machinery.
Rule 4. Below the names of the face, the classes beside them that one meets from there: what its
        functions return, and the attributes of that.
Rule 5. A type is what the body of the class says, not what an assignment in `__init__` looks like.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import griffe

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = Path("docs/reference/api.txt")
LISTED: Final = (
    "holdfast.adapters",
    "holdfast.domain",
    "holdfast.lifecycle",
    "holdfast.net",
    "holdfast.testing",
)
# Inside a face, and yet named by whoever uses them: one loads pytest, the other is a plugin.
NAMED: Final = frozenset({"holdfast.testing.laws", "holdfast.testing.plugin"})
HEADER: Final = "The public API of Holdfast. Written by `make api`; do not edit.\n"
INDENT: Final = "    "

STARS: Final = {
    griffe.ParameterKind.var_positional: "*",
    griffe.ParameterKind.var_keyword: "**",
}

Entity = griffe.Object | griffe.Alias

# Special members that say nothing about how an object may be used.
UNTOLD: Final = frozenset({"__dir__", "__match_args__", "__repr__", "__slots__"})


def is_public_module(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def listed_modules(package: griffe.Module) -> Iterator[griffe.Module]:
    """The face, then every module of rule 1, by name."""
    yield package
    pending = [package]
    found: list[griffe.Module] = []
    while pending:
        module = pending.pop()
        inner = [m for m in module.modules.values() if not m.is_alias]
        if module is not package and module.exports is not None:
            inner = [m for m in inner if m.path in NAMED]
        pending += inner
        found += inner
    for module in sorted(found, key=lambda each: each.path):
        listed = any(f"{module.path}.".startswith(f"{prefix}.") for prefix in LISTED)
        if listed and is_public_module(module.path):
            yield module


# -- what griffe does not say ----------------------------------------------------------------------


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def body_of(cls: griffe.Class) -> list[ast.stmt]:
    """The statements of a class that is at the top of its module; none for others."""
    if isinstance(cls.filepath, Path):
        for node in syntax(cls.filepath).body:
            if isinstance(node, ast.ClassDef) and node.name == cls.name:
                return node.body
    return []


def family(cls: griffe.Class) -> list[griffe.Class]:
    """The class and its bases, nearest first, as far as they are ours."""
    return [cls, *cls.mro()]


def declared_type(cls: griffe.Class, name: str) -> str | None:
    """The annotation that a class body, here or in a base, has for an attribute."""
    for each in family(cls):
        for node in body_of(each):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return ast.unparse(node.annotation)
    return None


def offered(cls: griffe.Class) -> frozenset[str] | None:
    """The names that stand in the `__dir__` of a class, or in a constant that it refers to."""
    assert isinstance(cls.filepath, Path)
    inside = body_of(cls)
    constants = {
        ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]): node.value
        for node in (*syntax(cls.filepath).body, *inside)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
    }
    for node in inside:
        if isinstance(node, ast.FunctionDef) and node.name == "__dir__":
            said = [part for statement in node.body for part in ast.walk(statement)]
            for part in tuple(said):
                match part:
                    case ast.Name(id=name) | ast.Attribute(attr=name) if name in constants:
                        said += ast.walk(constants[name])
                    case _:
                        pass
            texts = {str(p.value) for p in said if isinstance(p, ast.Constant)}
            return frozenset(t for t in texts if t.isidentifier() and not t.startswith("_"))
    return None


# -- rendering -------------------------------------------------------------------------------------


def public_names(module: griffe.Module) -> list[str]:
    """What `__all__` says, or else whatever the module itself defines without underscore."""
    if module.exports is not None:
        return sorted({str(export) for export in module.exports})
    return sorted(
        name
        for name, member in module.members.items()
        if not name.startswith("_") and not member.is_alias and not member.is_module
    )


def shown_member(name: str) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return name not in UNTOLD
    return not name.startswith("_")


def parameters(function: griffe.Function, *, bound: bool) -> str:
    parts: list[str] = []
    seen_star = False
    seen_slash = True
    for index, parameter in enumerate(function.parameters):
        kind = parameter.kind
        if kind is griffe.ParameterKind.positional_only:
            seen_slash = False
        elif not seen_slash:
            parts.append("/")
            seen_slash = True
        if kind is griffe.ParameterKind.keyword_only and not seen_star:
            parts.append("*")
            seen_star = True
        stars = STARS.get(kind, "") if kind is not None else ""
        seen_star = seen_star or stars == "*"
        if bound and index == 0:
            continue
        text = stars + parameter.name
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and not stars:
            equals = " = " if parameter.annotation is not None else "="
            text += f"{equals}{parameter.default}"
        parts.append(text)
    if not seen_slash:
        parts.append("/")
    if bound and parts[:1] == ["/"]:
        del parts[0]
    return ", ".join(parts)


def signature(function: griffe.Function, *, bound: bool) -> str:
    keyword = "async def" if "async" in function.labels else "def"
    returns = f" -> {function.returns}" if function.returns is not None else ""
    return f"{keyword} {function.name}({parameters(function, bound=bound)}){returns}"


def describe_function(function: griffe.Function, depth: int) -> Iterator[str]:
    in_class = function.parent is not None and function.parent.is_class
    bound = in_class and "staticmethod" not in function.labels
    # A decorator such as asynccontextmanager changes what a call returns.
    decorators = [str(decorator.value) for decorator in function.decorators]
    marks = [f"@{decorator} " for decorator in decorators if not decorator.endswith("overload")]
    prefix = INDENT * depth + "".join(marks)
    overloads = function.overloads or []
    for each in overloads or [function]:
        mark = "@overload " if overloads else ""
        yield f"{prefix}{mark}{signature(each, bound=bound)}"


def describe_attribute(attribute: griffe.Attribute, depth: int) -> Iterator[str]:
    text = attribute.name
    owner = attribute.parent
    declared = declared_type(owner, text) if isinstance(owner, griffe.Class) else None
    if declared is not None or attribute.annotation is not None:
        text += f": {declared or attribute.annotation}"
    if "property" in attribute.labels:
        text = f"property {text}"
    elif attribute.labels & {"class-attribute", "module-attribute"}:
        # The value of a constant, a default or an enum member is a promise; a long one is not.
        value = str(attribute.value) if attribute.value is not None else ""
        if value and len(value) <= 60 and "\n" not in value:
            text += f" = {value}"
    yield INDENT * depth + text


def members_of(cls: griffe.Class) -> Iterator[Entity]:
    """What rule 3 says, in the order of the source: for a dataclass that is its signature."""
    names = offered(cls)
    told: set[str] = set()
    for each in family(cls) if names is not None else [cls]:
        for name, member in each.members.items():
            if name in told or member.is_alias or not shown_member(name):
                continue
            if name == "__init__" and "dataclass" in each.labels:
                continue  # its fields say it
            special = each is cls and name.startswith("__")
            if names is None or special or name in names:
                told.add(name)
                yield member
    for name in sorted((names or frozenset()) - told):
        raise SystemExit(f"{cls.path}: __dir__ names {name!r}, which it does not have")


def describe_class(cls: griffe.Class, homes: set[str], depth: int) -> Iterator[str]:
    # A base that is not listed is a matter of the inside.
    inside = {base.name for base in family(cls)[1:] if base.module.path not in homes}
    bases = [str(base) for base in cls.bases if str(base) not in inside]
    for decorator in cls.decorators:
        yield f"{INDENT * depth}@{decorator.value}"
    heirs = f"({', '.join(bases)})" if bases else ""
    yield f"{INDENT * depth}class {cls.name}{heirs}"
    for member in members_of(cls):
        yield from describe(member, homes, depth + 1)


def describe(entity: Entity, homes: set[str], depth: int) -> Iterator[str]:
    match entity:
        case griffe.Class():
            yield from describe_class(entity, homes, depth)
        case griffe.Function():
            yield from describe_function(entity, depth)
        case griffe.Attribute():
            yield from describe_attribute(entity, depth)
        case _:
            yield f"{INDENT * depth}{entity.kind.value} {entity.name}"


def resolve(member: Entity) -> Entity:
    """What a name stands for, through every re-export; the alias itself where that is foreign."""
    while isinstance(member, griffe.Alias):
        try:
            member = member.target
        except (griffe.AliasResolutionError, griffe.CyclicAliasError):
            break
    return member


def describe_module(module: griffe.Module, homes: set[str]) -> Iterator[str]:
    for name in public_names(module):
        member = module.members.get(name)
        if member is None:
            yield f"{INDENT}{name}: promised by __all__, defined nowhere"
            continue
        target = resolve(member)
        if isinstance(target, griffe.Alias):
            yield f"{INDENT}{name} is {target.target_path}"
        elif target.module.path != module.path and target.module.path in homes:
            yield f"{INDENT}{name} is {target.path}"
        else:
            yield from describe(target, homes, 1)


def met_in(entity: Entity, classes: dict[str, griffe.Class], met: set[str]) -> None:
    """Add the names of `classes` that are met in what `entity` returns or has."""
    said: list[object] = []
    if isinstance(entity, griffe.Function):
        said = [entity.returns]
    elif isinstance(entity, griffe.Attribute):
        said = [entity.annotation]
    elif isinstance(entity, griffe.Class):
        for member in members_of(entity):
            met_in(member, classes, met)
    for expression in said:
        if isinstance(expression, griffe.Expr):
            names = {
                p.name for p in expression.iterate(flat=True) if isinstance(p, griffe.ExprName)
            }
            for name in (names & classes.keys()) - met:
                met.add(name)
                met_in(classes[name], classes, met)


def describe_met(face: griffe.Module, homes: set[str]) -> Iterator[str]:
    """The classes of rule 4."""
    names = public_names(face)
    seen = [resolve(face.members[name]) for name in names]
    homely = [
        one for one in seen if isinstance(one, griffe.Object) and one.module.path not in homes
    ]
    classes = {
        name: one
        for each in homely
        for name, one in each.module.classes.items()
        if not one.is_alias and name not in names and not name.startswith("_")
    }
    met: set[str] = set()
    for each in homely:
        met_in(each, classes, met)
    for name in sorted(met):
        yield from describe(classes[name], homes, 1)


def render() -> str:
    package = griffe.load(
        "holdfast",
        search_paths=[ROOT / "src"],
        try_relative_path=False,
        allow_inspection=False,
        resolve_aliases=True,
        resolve_external=False,
    )
    assert isinstance(package, griffe.Module)
    modules = list(listed_modules(package))
    homes = {module.path for module in modules[1:]}
    described = [(module.path, list(describe_module(module, homes))) for module in modules]
    described[0][1].extend(describe_met(package, homes))
    blocks = ["\n".join([path, *lines, ""]) for path, lines in described if lines]
    return "\n".join([HEADER, *blocks])


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the public API down, or check it.")
    parser.add_argument("--check", action="store_true", help="only compare; print the difference")
    check: bool = parser.parse_args().check
    text = render()
    target = ROOT / TARGET
    old = target.read_text(encoding="utf-8") if target.exists() else ""
    if not check:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return 0
    difference = list(
        difflib.unified_diff(
            old.splitlines(), text.splitlines(), "as reviewed", "as written", lineterm="", n=2
        )
    )
    if difference:
        print("\n".join(difference))
        print(
            f"\nThe public API has changed. If it is meant to, run `make api` and commit {TARGET}."
        )
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
