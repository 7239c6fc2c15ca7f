"""Imports go one way through the rooms of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sb3_trpo_plus"
# Each may import from those before it. Top-level modules that only hand on the public names of a room stand with it.
ROOMS = (
    ("trust_region",),
    ("envs", "states", "wrappers"),
    ("tabular",),
    ("policies",),
    ("critic",),
    ("files",),
    ("rollouts",),
    ("algorithms",),
    ("__init__",),
    ("zoo", "plots"),
    ("command_line", "__main__"),
)
PLACES = {name: place for place, names in enumerate(ROOMS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
# What the mathematics may be made of.
OF_TORCH = {"torch", "sb3_trpo_plus", "math", "collections", "dataclasses", "functools", "itertools", "typing"}


def room(module: str) -> str:
    """Of a dotted name within the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PLACES else "__init__"


def imported(file: Path) -> list[str]:
    """Dotted names, each once for every name that is imported from a package, since that may be a module of it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_from_those_before_it(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(file):
        if name.split(".")[0] == "sb3_trpo_plus":
            assert PLACES[room(name)] <= PLACES[own], f"{own} imports {name}"
        elif own == "trust_region":
            assert name.split(".")[0] in OF_TORCH, f"the mathematics imports {name}"


def test_every_module_has_a_room() -> None:
    assert {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} == set(PLACES)
