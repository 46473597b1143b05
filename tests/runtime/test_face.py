"""The face: what importing costs, and that every name is there."""

# The block under test is what raises, and it is never a single statement.
from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import holdfast

FOREIGN = [
    "aiohttp",
    "anyio",
    "asgiref",
    "fastapi",
    "grpc",
    "httpcore",
    "httpx",
    "httpx2",
    "hypothesis",
    "msgspec",
    "opentelemetry",
    "pydantic",
    "pytest",
    "requests",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
    "uvloop",
]


def loaded_after(code: str) -> set[str]:
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_no_asyncio_and_nothing_foreign() -> None:
    loaded = loaded_after("import holdfast")
    assert loaded.isdisjoint({"asyncio", "socket", "ssl", "logging", "threading", *FOREIGN})
    ours = {name for name in loaded if name.startswith("holdfast")}
    assert ours == {"holdfast", "holdfast._version"}


def test_using_the_face_loads_nothing_foreign() -> None:
    loaded = loaded_after(
        "import holdfast\nfor name in holdfast.__all__: getattr(holdfast, name)\n"
        "import asyncio\n"
        "async def main():\n"
        "    async with holdfast.timeout(1), holdfast.tasks() as g:\n"
        "        g.start(asyncio.sleep(0))\n"
        "    holdfast.tree()\n"
        "asyncio.run(main())"
    )
    assert loaded.isdisjoint(FOREIGN)


def test_the_domain_loads_no_asyncio() -> None:
    loaded = loaded_after(
        "import pkgutil, importlib, holdfast.domain as d\n"
        "for m in pkgutil.walk_packages(d.__path__, 'holdfast.domain.'):\n"
        "    importlib.import_module(m.name)"
    )
    assert loaded.isdisjoint({"asyncio", "socket", "random", "logging", *FOREIGN})


@pytest.mark.parametrize("name", holdfast.__all__)
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert getattr(holdfast, name) is not None
    assert name in dir(holdfast)


def test_the_face_stays_small() -> None:
    assert len(holdfast.__all__) <= 30
    assert len(set(holdfast.__all__)) == len(holdfast.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = holdfast.no_such_name  # type: ignore[attr-defined]


def test_every_public_name_of_every_module_exists() -> None:
    for package in ("holdfast.domain", "holdfast.runtime", "holdfast.testing", "holdfast.ports"):
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            module = importlib.import_module(found.name)
            for name in getattr(module, "__all__", ()):
                assert hasattr(module, name), f"{found.name}.{name}"


def test_the_lifecycle_is_a_module_of_the_face_that_loads_nothing_foreign() -> None:
    loaded = loaded_after(
        "import holdfast, sys\n"
        "assert 'asyncio' not in sys.modules\n"
        "assert holdfast.lifecycle is sys.modules['holdfast.lifecycle']\n"
        "from holdfast import lifecycle\n"
        "assert lifecycle.Host and lifecycle.at_end and lifecycle.current"
    )
    assert loaded.isdisjoint(FOREIGN)
    lifecycle = importlib.import_module("holdfast.lifecycle")
    assert holdfast.lifecycle is lifecycle
    assert len(lifecycle.__all__) <= 30


@pytest.mark.parametrize(
    "code",
    [
        "from holdfast.lifecycle import Host",
        "import holdfast.lifecycle; Host = holdfast.lifecycle.Host",
        "from holdfast import lifecycle; Host = lifecycle.Host",
        "import holdfast; Host = holdfast.lifecycle.Host",
    ],
)
def test_the_lifecycle_can_be_imported_in_every_way(code: str) -> None:
    loaded = loaded_after(f"{code}\nassert Host('shop').name == 'shop'")
    assert loaded.isdisjoint(FOREIGN)


def test_the_lifecycle_for_users_has_exactly_the_names_of_the_one_inside() -> None:
    inside = importlib.import_module("holdfast.runtime.lifecycle")
    face = importlib.import_module("holdfast.lifecycle")
    assert face.__all__ == inside.__all__
    for name in inside.__all__:
        assert getattr(face, name) is getattr(inside, name)
