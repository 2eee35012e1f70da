"""`bench new`: what it writes works unedited, and it writes over nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench import registry
from bench.cli import scaffold
from bench.data import MissingData
from bench.spec import BenchError

HOME = Path(__file__).resolve().parent.parent


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A checkout with nothing in it."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "medssl-bench"\n')
    return tmp_path


def test_a_method_goes_into_the_checkout_around(house: Path, shelves: registry.Registry) -> None:
    inside = house / "docs" / "notes"
    inside.mkdir(parents=True)
    path = scaffold.new("method", "mine", inside, shelves)
    assert path == house / "methods" / "mine.py"
    [found] = registry.read_file(path)
    assert (found.kind, found.name, found.values["title"]) == ("method", "mine", "Mine")


@pytest.mark.parametrize("content", [None, '[project]\nname = "another"\n', "[project\n"])
def test_elsewhere_it_goes_into_the_current_folder(
    tmp_path: Path, shelves: registry.Registry, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    assert scaffold.new("task", "my_task", tmp_path, shelves) == tmp_path / "my_task.py"


@pytest.mark.parametrize("name", ["3d", "My", "my-method", "class", "", "a.b", "../x", "naïve"])
def test_a_name_that_cannot_be_a_module_is_refused(tmp_path: Path, shelves: registry.Registry, name: str) -> None:
    with pytest.raises(BenchError, match="cannot name a method"):
        scaffold.new("method", name, tmp_path, shelves)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path: Path, shelves: registry.Registry) -> None:
    with pytest.raises(BenchError, match=r"method 'simclr' is there already, in .*simclr\.py"):
        scaffold.new("method", "simclr", tmp_path, shelves)
    with pytest.raises(BenchError, match="'fundus_all' is a group of tasks"):
        scaffold.new("task", "fundus_all", tmp_path, shelves)
    with pytest.raises(BenchError, match="'all' is a group"):
        scaffold.new("method", "all", tmp_path, shelves)
    with pytest.raises(BenchError, match="a method or a task, not 'corpus'"):
        scaffold.new("corpus", "mine", tmp_path, shelves)


def test_an_existing_file_is_left_alone(house: Path, shelves: registry.Registry) -> None:
    (house / "methods").mkdir()
    (house / "methods" / "mine.py").write_text("precious")
    with pytest.raises(BenchError, match="exists already"):
        scaffold.new("method", "mine", house, shelves)
    assert (house / "methods" / "mine.py").read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_one_sentence(house: Path, shelves: registry.Registry) -> None:
    (house / "methods").write_text("a file where the folder should be")
    with pytest.raises(BenchError, match="cannot be written"):
        scaffold.new("method", "mine", house, shelves)


# ---------------------------------------------------------------------------------------------------------- contracts


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with a new method and a new task, both unedited."""
    home = tmp_path_factory.mktemp("copy")
    for name in ("bench", "methods", "tasks", "tests"):
        shutil.copytree(HOME / name, home / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(HOME / "pyproject.toml", home)
    environment = os.environ | {"PYTHONPATH": str(home)}
    for kind, name in (("method", "freshly_made"), ("task", "freshly_seen")):
        command = [sys.executable, "-m", "bench", "new", kind, name]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"wrote {kind}s/{name}.py" in done.stdout
    return home


def test_scaffolds_pass_their_contracts_unedited(copy: Path) -> None:
    """Both at once, in one process: collecting the tests takes longer than running those that concern them."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-rA", "tests"]
    command += ["-k", "freshly_made or freshly_seen"]
    apart = ("losses", "table", "grid", "stats", "guide", "scaffold")  # that read numbers or pages, or this file
    command += [f"--ignore=tests/test_{name}.py" for name in apart]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    for name, least in (("freshly_made", 8), ("freshly_seen", 5)):
        assert sum(f"[{name}" in line or f"-{name}]" in line for line in passed) >= least, passed


@pytest.mark.parametrize("length", [1, 30])
@pytest.mark.parametrize("kind", ["method", "task"])
def test_a_scaffold_reads_as_the_house_does(tmp_path: Path, shelves: registry.Registry, kind: str, length: int) -> None:
    path = scaffold.new(kind, "x" * length, tmp_path, shelves)
    assert max(map(len, path.read_text().splitlines())) <= 120
    assert "@" not in re.sub(r"^@(method|dataset|task|dataclass)\(", "", path.read_text(), flags=re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------- task


@pytest.fixture
def load(tmp_path: Path, shelves: registry.Registry, request: pytest.FixtureRequest) -> object:
    """The loader of a task scaffold, under a name of the test's own."""
    names = registry.bare()
    names.add_file(scaffold.new("task", request.node.name, tmp_path, shelves))
    return registry.load(names.get("task", request.node.name))


def write_pairs(root: Path, count: int) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(root / folder / f"eye {index}.png"), np.zeros((4, 4), np.uint8))


def test_the_task_scaffold_reads_pairs_and_keeps_the_parts_apart(tmp_path: Path, load: object) -> None:
    assert callable(load)
    write_pairs(tmp_path / "mine", 8)
    train, test = load(tmp_path / "mine", "train"), load(tmp_path / "mine", "test")
    assert [sample.name for sample in train] == [f"eye {index}" for index in range(6)]
    assert [sample.name for sample in test] == ["eye 6", "eye 7"]
    assert test[0].masks == (tmp_path / "mine" / "masks" / "eye 6.png",)


def test_the_task_scaffold_asks_for_enough_images(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(MissingData, match=r"0 images in .*images"):
        load(tmp_path / "nowhere", "train")
