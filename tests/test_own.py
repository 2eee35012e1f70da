"""A user's own images as a task, from a TOML file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench import data, registry
from bench.registry import own
from bench.spec import BenchError, Site
from tests.conftest import pretrain_cell, textured_images, transfer_cell

PLAIN = 'images = "images/*.png"\nmasks = "masks/*_mask.png"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of five patients, named with blanks and letters beyond ASCII, with masks, and no declaration."""
    home = tmp_path / "my data ä"
    for name in ("images", "masks", "left", "unlabelled"):
        (home / name).mkdir(parents=True)
    for index, image in enumerate(textured_images(10, 40, 3)):
        name = f"fall {index // 2} é_{index}"
        cv2.imwrite(str(home / "images" / f"{name}.png"), image)
        cv2.imwrite(str(home / "unlabelled" / f"{index}.png"), image[::-1])
        mask = np.zeros((40, 40), np.uint8)
        mask[: 10 + index] = 255
        cv2.imwrite(str(home / "masks" / f"{name}_mask.png"), mask)
        cv2.imwrite(str(home / "left" / f"{name}.png"), mask[::-1])
    return home


def declared(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_patterns_pair_images_with_masks(folder: Path) -> None:
    path = declared(folder, f"{PLAIN}test_fraction = 0.3\n")
    spec = own.read_task(path)
    assert (spec.name, spec.title, spec.train, spec.test, spec.corpus) == ("mine", "mine", 7, 3, "")
    parts = data.samples(spec, None)
    assert [sample.name for sample in parts["test"]] == [f"fall {n // 2} é_{n}" for n in (7, 8, 9)]
    for part in parts.values():
        for sample in part:
            assert sample.masks == (folder / "masks" / f"{sample.name}_mask.png",)


def test_everything_may_be_said(folder: Path) -> None:
    text = """
    root = "."
    name = "lesions"
    title = "My lesions"
    images = "images/*_*.png"
    masks = ["masks/*_*_mask.png", "left/*_*.png"]
    test = ["fall 1*", "fall 3 é_6", "fall 3 é_7"]
    patients = "^(fall .)"
    threshold = 0.5
    channels = 1
    crop = "fov"
    corpus = "folder:unlabelled"
    augment = "none"
    batch_size = 4
    licence = "hospital"
    citation = "us"
    """
    spec = own.read_task(declared(folder, text))
    assert (spec.name, spec.title, spec.channels, spec.crop, spec.label_threshold) == (
        "lesions",
        "My lesions",
        1,
        "fov",
        0.5,
    )
    assert spec.corpus == f"folder:{folder / 'unlabelled'}"
    parts = data.samples(spec, None)
    assert [sample.name for sample in parts["test"]] == ["fall 1 é_2", "fall 1 é_3", "fall 3 é_6", "fall 3 é_7"]
    assert {sample.patient for sample in parts["test"]} == {"fall 1", "fall 3"}
    assert all(len(sample.masks) == 2 for sample in parts["train"])


def test_a_fraction_keeps_patients_whole(folder: Path) -> None:
    spec = own.read_task(declared(folder, f'{PLAIN}test_fraction = 0.3\npatients = "^(fall .)"\n'))
    parts = data.samples(spec, None)
    assert [sample.patient for sample in parts["test"]] == ["fall 3"] * 2 + ["fall 4"] * 2


def test_it_is_chosen_by_its_path_and_prepared_like_any_task(folder: Path, site: Site) -> None:
    path = declared(folder, f"{PLAIN}test_fraction = 0.3\n")
    shelves = registry.scan()
    assert shelves.select("task", str(path)) == ["mine"]
    assert shelves.plugins == [str(path)]
    again = registry.scan(shelves.plugins)  # as a worker does
    spec = again.get("task", "mine")
    ref = data.dataset_ref(spec, None, site.cache)
    assert (ref.phantom, ref.present, ref.expected, ref.rule) == (False, 10, 10, "")
    any_task = next(iter(registry.scan().tasks))
    cell = dataclasses.replace(
        transfer_cell(pretrain_cell(image_size=40), any_task),
        task="mine",
        dataset_fingerprint=ref.fingerprint,
        phantom=False,
    )
    dataset = data.open_dataset(cell, again, site)
    assert dataset.names[0] == "fall 0 é_0"
    assert dataset.arrays["masks"][0].mean() == 0.25
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (6, 1, 3)


def test_a_registered_name_is_not_taken_twice(folder: Path) -> None:
    taken = next(iter(registry.scan().tasks))
    path = declared(folder, f'{PLAIN}name = "{taken}"\ntest_fraction = 0.3\n')
    with pytest.raises(BenchError, match=rf"task '{taken}' is registered twice.*mine\.toml"):
        registry.scan([str(path)])


def test_it_is_no_method(folder: Path) -> None:
    path = declared(folder, f"{PLAIN}test_fraction = 0.3\n")
    with pytest.raises(BenchError, match="leaves nothing"):
        registry.scan().select("method", str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imges = 1\n" + PLAIN, r"unknown key 'imges'; did you mean 'images'\?"),
        ("images = ", r"mine\.toml is no TOML"),
        ('images = "images/*.png"\ntest_fraction = 0.3', "lacks masks"),
        ('masks = "masks/*.png"\ntest_fraction = 0.3', "lacks images"),
        (PLAIN, "takes either test, a list of names, or test_fraction"),
        (PLAIN + 'test_fraction = 0.3\ntest = ["x"]', "takes either test"),
        (PLAIN + "test_fraction = 1.5", "sets test_fraction to 1.5, but it takes a number above 0 and below 1"),
        (PLAIN + "test_fraction = 0.01", "leaves 10 training and 0 test images"),
        (PLAIN + 'test = ["*"]', "leaves 0 training and 10 test images"),
        (PLAIN + "test = []", "sets test to .*, but it takes a list of texts"),
        (PLAIN + 'test = ["case_*"]', r"test names 'case_\*', which no image fits; names are like 'fall 0 é_0'"),
        (PLAIN + 'test_fraction = 0.3\nchannels = "3"', "sets channels to '3', but it takes 1 or 3"),
        (PLAIN + "test_fraction = 0.3\nthreshold = true", "sets threshold to True"),
        (PLAIN + "test_fraction = 0.3\nbatch_size = 0", "sets batch_size to 0"),
        (PLAIN + 'test_fraction = 0.3\ncrop = "roi"', "sets crop to 'roi', but it takes one of none, fov"),
        (PLAIN + 'test_fraction = 0.3\nname = "my task"', "sets name to 'my task', but it takes letters"),
        (PLAIN + "test_fraction = 0.3\ntitle = 3", "sets title to 3, but it takes a text"),
        (PLAIN + 'test_fraction = 0.3\npatients = "fall"', "takes a pattern with one group"),
        (PLAIN + 'test_fraction = 0.3\npatients = "(fall"', "takes a pattern with one group"),
        (PLAIN + 'test_fraction = 0.3\npatients = "(case)"', r"finds no patient in the name 'fall 0 é_0'"),
        (PLAIN + 'test = ["*_1"]\npatients = "^(fall .)"', "patient 'fall 0' is in the training and the test part"),
        (PLAIN + 'test_fraction = 0.3\nroot = "nowhere"', r"no image fits images/\*\.png under .*nowhere"),
        ('images = "images/*.jpg"\nmasks = "masks/*.png"\ntest_fraction = 0.3', "no image fits"),
        ('images = "**/*.png"\nmasks = "masks/*.png"\ntest_fraction = 0.3', "single stars only"),
        ('images = "images/*.png"\nmasks = "masks/*/*.png"\ntest_fraction = 0.3', "must hold as many stars"),
        ('images = "images/*.png"\nmasks = "images/*.png"\ntest_fraction = 0.3', "would be its own mask"),
        ('images = "images/*.png"\nmasks = "masks/*.png"\ntest_fraction = 0.3', r"has no mask .*masks/fall 0 é_0\.png"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, message: str, folder: Path) -> None:
    path = declared(folder, text)
    with pytest.raises(BenchError, match=message) as caught:
        registry.scan([str(path)])
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_without_images_and_the_reverse_are_named(folder: Path) -> None:
    path = declared(folder, f"{PLAIN}test_fraction = 0.3\n")
    (folder / "images" / "fall 0 é_1.png").unlink()
    with pytest.raises(BenchError, match=r"the mask .*fall 0 é_1_mask\.png has no image"):
        own.read_task(path)
    (folder / "masks" / "fall 0 é_1_mask.png").unlink()
    (folder / "masks" / "fall 1 é_2_mask.png").unlink()
    with pytest.raises(BenchError, match=r"the image .*fall 1 é_2\.png has no mask"):
        own.read_task(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"there is no file .*mine\.toml"):
        registry.scan([str(tmp_path / "mine.toml")])


@pytest.mark.parametrize("line", ["threshold = 0.5", 'crop = "fov"', "patients = '^fall ([0-9])'", 'augment = "none"'])
def test_another_choice_makes_another_task(folder: Path, line: str) -> None:
    """Else a number of before would stand for the new definition, or a cache of before be used for it."""
    path = declared(folder, f"{PLAIN}test_fraction = 0.4\n")
    plain = own.read_task(path)
    path.write_text(f"{path.read_text()}{line}\n")
    changed = own.read_task(path)
    assert changed.version != plain.version and changed.origin.does != plain.origin.does
    path.write_text(f'{PLAIN}test_fraction = 0.4\ntitle = "Mine"\n')
    assert own.read_task(path).version == plain.version


def test_a_cache_of_another_version_is_not_used(folder: Path, tmp_path: Path) -> None:
    path = declared(folder, f"{PLAIN}test_fraction = 0.4\n")
    spec, site = own.read_task(path), Site(tmp_path / "runs", tmp_path / "results", None)
    cell, shelves = transfer_cell(pretrain_cell(), "chase"), registry.bare()
    shelves.tasks["chase"] = spec
    before = data.dataset_folder(cell, shelves, site)
    shelves.tasks["chase"] = dataclasses.replace(spec, version=spec.version + 1)
    assert data.dataset_folder(cell, shelves, site) != before
