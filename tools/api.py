"""The public API of Holdfast as one text, docs/reference/api.txt, to be reviewed like code.

    python tools/api.py           write it
    python tools/api.py --check   fail with a diff where it is out of date

The text is read from the sources and nothing is imported. Listed are the face, the domain, the
adapters and the test kit: every public name with its signature, bases and members. A name that
another listed module defines is shown there in full and here by reference.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe

TARGET: Final = Path("docs/reference/api.txt")
LISTED: Final = ("holdfast.adapters", "holdfast.domain", "holdfast.testing")
HEADER: Final = "The public API of Holdfast. Written by `make api`; do not edit.\n"
INDENT: Final = "    "

STARS: Final = {
    griffe.ParameterKind.var_positional: "*",
    griffe.ParameterKind.var_keyword: "**",
}

Entity = griffe.Object | griffe.Alias

# Special members that say nothing about how an object may be used.
UNTOLD: Final = frozenset({"__match_args__", "__repr__", "__slots__"})


def is_public_module(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def listed_modules(package: griffe.Module) -> Iterator[griffe.Module]:
    """The face, then every public module below the listed packages, by name."""
    yield package
    pending: list[griffe.Module] = [package]
    found: list[griffe.Module] = []
    while pending:
        module = pending.pop()
        found.append(module)
        pending += [m for m in module.modules.values() if not m.is_alias]
    for module in sorted(found, key=lambda each: each.path):
        listed = any(f"{module.path}.".startswith(f"{prefix}.") for prefix in LISTED)
        if listed and is_public_module(module.path):
            yield module


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
    if attribute.annotation is not None:
        text += f": {attribute.annotation}"
    if "property" in attribute.labels:
        text = f"property {text}"
    elif attribute.labels & {"class-attribute", "module-attribute"}:
        # The value of a constant, a default or an enum member is a promise; a long one is not.
        value = str(attribute.value) if attribute.value is not None else ""
        if value and len(value) <= 60 and "\n" not in value:
            text += f" = {value}"
    yield INDENT * depth + text


def describe_class(cls: griffe.Class, depth: int) -> Iterator[str]:
    bases = f"({', '.join(str(base) for base in cls.bases)})" if cls.bases else ""
    for decorator in cls.decorators:
        yield f"{INDENT * depth}@{decorator.value}"
    yield f"{INDENT * depth}class {cls.name}{bases}"
    # Fields keep the order of the source: for a dataclass it is part of the signature.
    for name, member in cls.members.items():
        if name == "__init__" and "dataclass" in cls.labels:
            continue  # its fields say it
        if shown_member(name) and not member.is_alias:
            yield from describe(member, depth + 1)


def describe(entity: Entity, depth: int) -> Iterator[str]:
    match entity:
        case griffe.Class():
            yield from describe_class(entity, depth)
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
            yield from describe(target, 1)


def render() -> str:
    package = griffe.load("holdfast", search_paths=["src"], resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    modules = list(listed_modules(package))
    homes = {module.path for module in modules[1:]}
    described = [(module.path, list(describe_module(module, homes))) for module in modules]
    blocks = ["\n".join([path, *lines, ""]) for path, lines in described if lines]
    return "\n".join([HEADER, *blocks])


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the public API down, or check it.")
    parser.add_argument("--check", action="store_true", help="only compare; print the difference")
    check: bool = parser.parse_args().check
    text = render()
    old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if not check:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
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
