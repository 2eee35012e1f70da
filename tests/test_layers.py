"""The floors of the house: imports go down only, the light ones stay light, and `bench` names no plug-in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.registry import scan

HOME = Path(__file__).resolve().parent.parent
FLOORS = {  # the longest name that fits a module says its floor
    0: "bench bench.registry bench.spec bench.data bench.views bench.nets bench.parts bench.losses bench.metrics "
    "bench.stats",
    1: "methods tasks",
    2: "bench.protocols",
    3: "bench.run bench.run.pretrain bench.run.transfer bench.run.ranks bench.run.meter bench.run.costs "
    "bench.run.provenance",
    4: "bench.run.cell",
    5: "bench.table",
    6: "bench.run.grid",
    7: "bench.run.executor bench.run.launch bench.run.cluster bench.run.upkeep bench.cli.checkup bench.cli.sheet",
    8: "bench.cli",
    9: "bench.__main__",
}
FLOOR = {tuple(name.split(".")): floor for floor, names in FLOORS.items() for name in names.split()}
ROOMS = 13  # directly under bench/, at most
LIGHT = (
    "registry spec stats data.store data data.leaks metrics run.cell run.provenance run.grid run.executor run.launch "
    "run.cluster.driver run.cluster.watch table cli.checkup cli.show cli cli.sheet"
)
HEAVY = ("torch", "torchvision", "lightly", "timm", "numpy", "pandas", "cv2", "scipy", "matplotlib")


def modules() -> list[Path]:
    return sorted(path for folder in ("bench", "methods", "tasks") for path in (HOME / folder).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The longest name of a floor that a dotted name begins with, None where it is no part of the house."""
    return next((parts[:length] for length in range(len(parts), 0, -1) if parts[:length] in FLOOR), None)


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


def test_every_room_of_the_harness_has_a_floor_and_says_what_it_is() -> None:
    rooms = {path.stem: path for path in (HOME / "bench").glob("*.py") if not path.stem.startswith("__")}
    rooms |= {path.parent.name: path for path in (HOME / "bench").glob("*/__init__.py")}
    assert len(rooms) <= ROOMS, sorted(rooms)
    lost = [name for name in rooms if room_of(("bench", name)) == ("bench",)]
    assert not lost, f"put {lost} on a floor"
    for name, path in rooms.items():
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert said.partition("\n")[0].endswith("."), f"{name} does not say in one sentence what lives there"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOME)))
def test_imports_go_down_only(path: Path) -> None:
    own = place(path)
    room = room_of(own)
    assert room is not None
    for parts in imports(ast.parse(path.read_text())):
        target = room_of(parts)
        if target is None or target == room:
            if target == room and own[0] in ("methods", "tasks") and len(parts) > 1:
                raise AssertionError(f"{path} imports its sibling {'.'.join(parts)}")
            continue
        if FLOOR[target] == FLOOR[room] and FLOOR[room] != 0:
            assert target[:2] == room[:2], f"{path} imports {'.'.join(parts)}, a neighbour in another room"
        assert FLOOR[target] <= FLOOR[room], f"{path} ({FLOOR[room]}) imports {'.'.join(parts)} ({FLOOR[target]})"


def test_the_harness_names_no_plug_in_package() -> None:
    for path in modules():
        if place(path)[0] == "bench":
            outside = [parts for parts in imports(ast.parse(path.read_text())) if parts[0] in ("methods", "tasks")]
            assert not outside, f"{path} imports {outside}"


def test_the_harness_names_no_plug_in() -> None:
    """No method, dataset, task or corpus anywhere in it, and no protocol outside their room."""
    shelves = scan()
    names = {*shelves.methods, *shelves.datasets, *shelves.tasks, *shelves.corpora, *shelves.protocols}
    assert len(names) > 10 and len(shelves.protocols) >= 2
    for path in modules():
        if place(path)[0] == "bench" and place(path)[:2] != ("bench", "protocols"):
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not names & constants, f"{path} names {sorted(names & constants)}"


@pytest.mark.parametrize("chain", [r"\bif .*\btask\.(kind|truth)\b", r"\bprotocol(\.name)? ==", r"\bdims == [23]\b"])
def test_above_the_ground_nothing_asks_what_kind_of_task_it_serves(chain: str) -> None:
    """What differs by truth, protocol or dimension is looked up in a registry, not asked in a chain."""
    above = [path for path in modules() if FLOOR[room_of(place(path)) or ()] > 0 and place(path)[0] == "bench"]
    assert len(above) > 30
    for path in above:
        found = [line.strip() for line in path.read_text().splitlines() if re.search(chain, line)]
        assert not found, f"{path}: {found[0]}"


def test_the_light_modules_import_nothing_heavy() -> None:
    modules = ", ".join(f"bench.{name}" for name in LIGHT.split())
    code = f"import sys, {modules}; print(*set(sys.modules) & set({HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=HOME, capture_output=True, text=True)
    assert done.stdout.split() == []
