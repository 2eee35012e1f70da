"""The floors of the house: imports go down only, the light ones stay light, and `bench` names no plug-in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bench.registry import scan

HOME = Path(__file__).resolve().parent.parent
FLOORS = {
    0: "__init__ registry own samples spec store costs meter ranks parallel provenance views nets weights parts losses "
    "metrics data leaks phantoms templates",
    2: "pretrain transfer",
    3: "cell",
    4: "grid executor launch upkeep cluster table checkup",
    5: "cli show sheet scaffold __main__",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
PLUGINS = 1
LIGHT = (
    "registry spec store data leaks metrics cell provenance grid executor launch cluster.driver cluster.watch table "
    "checkup show cli sheet"
)
HEAVY = ("torch", "torchvision", "lightly", "timm", "numpy", "pandas", "cv2", "scipy", "matplotlib")


def modules() -> list[Path]:
    return sorted(path for folder in ("bench", "methods", "tasks") for path in (HOME / folder).rglob("*.py"))


def floor_of(parts: tuple[str, ...]) -> int | None:
    """The floor of a dotted name, None where it is no part of the house."""
    if parts[0] in ("methods", "tasks"):
        return PLUGINS
    return FLOOR[parts[1]] if parts[0] == "bench" and len(parts) > 1 else None


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST) -> list[tuple[str, ...]]:
    """Every module imported anywhere in a file, also inside functions; not what is only for the type checker."""
    found: list[tuple[str, ...]] = []
    queue = list(ast.iter_child_nodes(tree))
    for node in queue:
        if type_checking(node):
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = tuple(node.module.split("."))
            found += [(*base, alias.name) for alias in node.names] if base in (("bench",),) else [base]
    return found


def place(path: Path) -> tuple[str, ...]:
    return path.relative_to(HOME).with_suffix("").parts


def test_every_module_of_the_harness_has_a_floor() -> None:
    names = {place(path)[1] for path in modules() if place(path)[0] == "bench"}
    assert names <= set(FLOOR), f"put {sorted(names - set(FLOOR))} on a floor"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOME)))
def test_imports_go_down_only(path: Path) -> None:
    own = place(path)
    floor = floor_of(own)
    assert floor is not None
    for parts in imports(ast.parse(path.read_text())):
        target = floor_of(parts[:2]) if parts[0] != "bench" or parts[1] in FLOOR else None
        if target is None or parts[:2] == own[:2]:
            continue
        if own[0] in ("methods", "tasks"):
            siblings = parts[0] in ("methods", "tasks") and len(parts) > 1
            assert not siblings, f"{path} imports its sibling {'.'.join(parts)}"
            target = 0 if parts[0] == own[0] else target  # the package's own __init__
        assert target <= floor, f"{path} (floor {floor}) imports {'.'.join(parts)} (floor {target})"


def test_the_harness_names_no_plug_in_package() -> None:
    for path in modules():
        if place(path)[0] == "bench":
            outside = [parts for parts in imports(ast.parse(path.read_text())) if parts[0] in ("methods", "tasks")]
            assert not outside, f"{path} imports {outside}"


def test_the_harness_names_no_method_and_no_task() -> None:
    shelves = scan()
    names = {*shelves.methods, *shelves.tasks, *shelves.corpora}
    assert len(names) > 10
    for path in modules():
        if place(path)[0] == "bench":
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not names & constants, f"{path} names {sorted(names & constants)}"


def test_the_light_modules_import_nothing_heavy() -> None:
    modules = ", ".join(f"bench.{name}" for name in LIGHT.split())
    code = f"import sys, {modules}; print(*set(sys.modules) & set({HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=HOME, capture_output=True, text=True)
    assert done.stdout.split() == []
