"""A dataset is declared once: what belongs to its images; tasks and corpora stand on it and are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench.data import CorpusImage, Mask, list_samples, read_lines, read_words
from bench.registry import load, scan
from bench.spec import Origin
from tests.trees import SPLITS, corpus_tree, task_files, touch

REGISTRY = scan()
LONGEST = 20  # lines of a task: its decorator and what it decorates


def declared_lines(origin: Origin, name: str) -> int:
    """Lines of the task `name`: of its decorator, and of the function below it."""
    for node in ast.parse(origin.source).body:
        if not isinstance(node, ast.FunctionDef) or node.name != origin.symbol:
            continue
        for call in node.decorator_list:
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            if call.func.id == "task" and ast.literal_eval(call.args[0]) == name:
                return sum((part.end_lineno or 0) - part.lineno + 1 for part in (call, node))
    raise AssertionError(f"{origin.file} does not declare {name}")


# -------------------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize("name", REGISTRY.datasets)
def test_a_dataset_says_what_its_images_are(name: str) -> None:
    spec = REGISTRY.datasets[name]
    for text in (spec.title, spec.licence, spec.citation, spec.source, spec.layout, *spec.folders):
        assert text.strip()
    assert spec.folders
    shelves = (REGISTRY.tasks, REGISTRY.corpora)
    assert any(item.dataset == name for shelf in shelves for item in shelf.values()), "nothing stands on it"


@pytest.mark.parametrize("name", [*REGISTRY.tasks, *REGISTRY.corpora])
def test_tasks_and_corpora_stand_on_a_dataset(name: str) -> None:
    for shelf in (REGISTRY.tasks, REGISTRY.corpora):
        if name in shelf:
            spec = shelf[name]
            images = REGISTRY.datasets[spec.dataset]
            assert (spec.channels, spec.dims, spec.crop) == (images.channels, images.dims, images.crop)
            assert spec.phantom["modality"] == images.phantom["modality"]


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_a_task_is_short(name: str) -> None:
    assert declared_lines(REGISTRY.tasks[name].origin, name) <= LONGEST


def test_lines_of_a_task_are_counted_without_its_dataset() -> None:
    source = b"""
@dataset(
    "eyes",
)
@task(
    "x",
    dataset="eyes",
)
def load(root, split):
    return [
    ]
"""
    assert declared_lines(Origin("x.py", 9, "load", source), "x") == 4 + 3


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_a_dataset_lists_the_images_of_its_tasks(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    images = REGISTRY.datasets[spec.dataset]
    if spec.folders != images.folders:
        pytest.skip("it is another archive, with the same images")
    touch(task_files(spec, tmp_path / "root"))
    for split in SPLITS:
        listed = [(item.name, item.image, item.patient) for item in load(images)(tmp_path / "root", split)]
        assert listed == [(item.name, item.image, item.patient) for item in load(spec)(tmp_path / "root", split)]


@pytest.mark.parametrize("name", sorted({spec.dataset for spec in REGISTRY.corpora.values()} & set(REGISTRY.corpora)))
def test_a_dataset_that_is_a_corpus_lists_its_images(name: str, tmp_path: Path) -> None:
    files = corpus_tree(REGISTRY.corpora[name], tmp_path / "root")
    touch(files)
    found = load(REGISTRY.datasets[name])(tmp_path / "root")
    assert {item.path if isinstance(item, CorpusImage) else item for item in found} == set(files)


def test_samples_are_listed_by_name_in_their_order(tmp_path: Path) -> None:
    touch([tmp_path / "b" / "2.JPG", tmp_path / "b" / "1.jpg"])
    second, first = list_samples(tmp_path, ["2", "1"], ("b/*.jpg", "b/*.JPG"), "*/left_*.gif", ("x/*.gif", "y/*.gif"))
    assert [(item.name, item.patient, item.image) for item in (second, first)] == [
        ("2", "2", tmp_path / "b" / "2.JPG"),
        ("1", "1", tmp_path / "b" / "1.jpg"),
    ]
    assert first.truth == Mask((tmp_path / "1" / "left_1.gif", tmp_path / "x" / "1.gif"))


def test_samples_have_the_name_of_their_image_and_the_patient_they_are_given(tmp_path: Path) -> None:
    root = tmp_path / "a*b"
    touch([root / "eye_1.ppm.gz"])
    [left, right] = list_samples(root, {"1": "p", "2": "p"}, ("eye_*.ppm", "eye_*.ppm.gz"))
    assert [left.image, right.image] == [root / "eye_1.ppm.gz", root / "eye_2.ppm"]
    assert [(item.name, item.patient, item.truth) for item in (left, right)] == [
        ("eye_1", "p", None),
        ("eye_2", "p", None),
    ]


def test_lists_are_read_without_their_comments(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a list\n1 2\n3 # 4\n", encoding="utf-8")
    assert read_lines(tmp_path / "list.txt") == ["1 2", "3 # 4"]
    assert read_words(tmp_path / "list.txt") == ["1", "2", "3", "#", "4"]
