"""Every Python example in README.md and docs/ is a test.

The examples of one document share their names and one event loop, from top to bottom; `await`
is allowed at the top level. An example that cannot run is marked by a comment right above it
that readers do not see and that says why:

    <!-- not run: needs a database -->
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Coroutine, Iterator
from types import CodeType, FunctionType
from typing import Any, Final, cast

from sybil import Document, Example, Region, Sybil

RUNNER: Final = "__runner__"

FENCE: Final = re.compile(
    r"(?:^[ ]*<!--[ ]*not[ ]run:(?P<reason>.*?)-->[ ]*\n\s*?)?"
    r"^(?P<indent>[ ]*)```(?:python|py)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


def evaluate(example: Example) -> None:
    source = "\n" * example.parsed[0] + example.parsed[1]
    code: CodeType = compile(
        source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    if code.co_flags & inspect.CO_COROUTINE:
        run = cast("Coroutine[Any, Any, None]", FunctionType(code, example.namespace)())
        example.namespace[RUNNER].run(run)
    else:
        exec(code, example.namespace)


def examples(document: Document) -> Iterator[Region]:
    for fence in FENCE.finditer(document.text):
        line = document.text.count("\n", 0, fence.start("code"))
        if fence["reason"] is None:
            yield Region(
                fence.start(), fence.end(), (line, textwrap.dedent(fence["code"])), evaluate
            )
        elif not fence["reason"].strip():
            raise ValueError(f"{document.path}:{line}: say why this example is not run")


def open_document(namespace: dict[str, Any]) -> None:
    # Dataclasses and Protocols look their module up by this name.
    namespace["__name__"] = "__main__"
    namespace[RUNNER] = asyncio.Runner()


def close_document(namespace: dict[str, Any]) -> None:
    namespace[RUNNER].close()


pytest_collect_file = Sybil(
    parsers=[examples],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=open_document,
    teardown=close_document,
).pytest()
