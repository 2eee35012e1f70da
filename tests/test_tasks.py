"""Tasks read the official layout of their dataset, in the order of the published split, and say what is missing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data import IMAGE_SUFFIXES, MissingData, RunLength, corpus_files, corpus_images, inventory, samples
from bench.data.opened import phantom_maker
from bench.data.phantoms import render
from bench.registry import load, scan
from tests.trees import OFFICIAL, SPLITS, corpus_tree, every_sample, listed, task_files, touch

REGISTRY = scan()
TASKS = list(REGISTRY.tasks)
CORPORA = list(REGISTRY.corpora)

# First 16 digits of the SHA-256 of the file lists released with the local discrimination paper: names of the train part
# one per line, an empty line, names of the test part.
PUBLISHED = {
    "chase": "b98975dabc9ad92b",
    "hrf": "4a7f7a261ba26764",
    "rite": "a49312044543af07",
    "stare": "8b1c4de797354d82",
    "drishti_cup": "85867c124f70ffd6",
    "drishti_od": "85867c124f70ffd6",
    "idrid_od": "bdbe3a8d9e0ccae1",
    "idrid_he": "bdbe3a8d9e0ccae1",
    "scr_heart": "f2fa6686e0a8b55a",
    "scr_lung": "f2fa6686e0a8b55a",
    "scr_clavicle": "f2fa6686e0a8b55a",
    "siim_pneumothorax": "1ee51c02c906b74c",
}
PUBLISHED_GOOD = "6168c5957958f608"  # of the sorted names of kaggle_dr_good


def published_name(task: str, name: str) -> str:
    """How the released lists spell a sample's name: RITE without the part, SIIM here by its number alone."""
    if task == "rite":
        return name.split("_")[0]
    return name.split(".")[-3] if task == "siim_pneumothorax" else name


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a task -> a data root with the whole dataset, empty files; made once, to be left as it was."""
    made: dict[object, Path] = {}

    def root_of(name: str) -> Path:
        tree = OFFICIAL.get(name, name)
        if tree not in made:
            made[tree] = tmp_path_factory.mktemp("data")
            spec = REGISTRY.tasks[name]
            touch(task_files(spec, made[tree] / spec.folders[-1]))
        return made[tree]

    return root_of


def folder(name: str, root: Path) -> Path:
    """The folder of a task's dataset under an unpacked data root."""
    return root / REGISTRY.tasks[name].folders[-1]


# -------------------------------------------------------------------------------------------------------- declarations


def test_nothing_is_broken_and_the_papers_groups_are_whole() -> None:
    assert not REGISTRY.broken
    groups = REGISTRY.groups("task")
    assert set(groups["fundus_all"]) | set(groups["cxr_all"]) == set(PUBLISHED)
    assert not set(groups["fundus_all"]) & set(groups["cxr_all"])
    assert set(OFFICIAL) <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_declaration(name: str) -> None:
    spec = REGISTRY.tasks[name]
    assert REGISTRY.corpora[spec.corpus].channels == spec.channels
    for text in (spec.licence, spec.citation, spec.source, spec.revision, spec.section, spec.title, spec.layout):
        assert text.strip()
    assert set(spec.known_leaks) <= set(CORPORA)


@pytest.mark.parametrize("name", CORPORA)
def test_corpus_declaration(name: str) -> None:
    spec = REGISTRY.corpora[name]
    for text in (spec.licence, spec.citation, spec.source, spec.title, spec.layout):
        assert text.strip()
    assert set(spec.known_leaks) <= set(TASKS)
    assert spec.classes or not spec.phantom.get("grades")


@pytest.mark.parametrize("name", TASKS)
def test_phantom_of_a_task_can_be_drawn(name: str) -> None:
    spec = REGISTRY.tasks[name]
    make = phantom_maker(spec, 64)
    drawn = [make(index) for index in range(3)]
    assert all(item["images"].shape == (64, 64, spec.channels) for item in drawn)
    assert all(item["masks"].shape == (64, 64) for item in drawn)
    assert any(item["masks"].any() for item in drawn)


@pytest.mark.parametrize("name", CORPORA)
def test_phantom_of_a_corpus_can_be_drawn(name: str) -> None:
    spec = REGISTRY.corpora[name]
    for camera in spec.phantom["cameras"]:
        phantom = render(spec.phantom["modality"], 1, 64, camera)
        assert phantom.image.shape == (64, 64, spec.channels)


def test_families_share_their_phantom_images() -> None:
    for one, other in (("drishti_cup", "drishti_od"), ("idrid_od", "idrid_he"), ("scr_heart", "scr_clavicle")):
        first, second = REGISTRY.tasks[one].phantom, REGISTRY.tasks[other].phantom
        assert first["dataset"] == second["dataset"]
        assert first["camera"] == second["camera"]
        assert first["target"] != second["target"]


def test_drive_and_rite_are_the_same_phantom_eyes_as_they_are_the_same_photographs() -> None:
    rite, drive = (phantom_maker(REGISTRY.tasks[name], 64)(0)["images"] for name in ("rite", "drive"))
    assert (rite == drive).all()


# -------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("name", TASKS)
def test_official_layout_is_read_as_declared(name: str, unpacked: Callable[[str], Path]) -> None:
    spec = REGISTRY.tasks[name]
    found = inventory(spec, unpacked(name))
    assert (found.state, found.missing, found.rule) == ("found", (), "")
    assert {split: len(part) for split, part in found.parts.items()} == {"train": spec.train, "test": spec.test}
    everything = [*found.parts["train"], *found.parts["test"]]
    assert len({sample.name for sample in everything}) == len({sample.image for sample in everything})
    assert len(everything) == len({sample.image for sample in everything})
    for sample in everything:
        assert sample.masks
        assert sample.image not in sample.masks
        assert sample.image.name.removesuffix(".gz").lower().endswith((*IMAGE_SUFFIXES, ".img"))
    patients = {split: {sample.patient for sample in part if sample.patient} for split, part in found.parts.items()}
    assert not patients["train"] & patients["test"]


@pytest.mark.parametrize("name", TASKS)
def test_a_mask_belongs_to_its_image(name: str, unpacked: Callable[[str], Path]) -> None:
    for sample in every_sample(REGISTRY.tasks[name], folder(name, unpacked(name))):
        for mask in sample.masks:
            if isinstance(mask, RunLength):
                assert mask.rows
                assert "-1" not in mask.rows
            else:
                assert mask.name.startswith(sample.name.removesuffix("_training").removesuffix("_test"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_order_of_the_published_split(name: str, unpacked: Callable[[str], Path]) -> None:
    """The validation part is the head of the train list, so its order is part of the split."""
    parts = listed(REGISTRY.tasks[name], folder(name, unpacked(name)))
    train, test = ([published_name(name, sample.name) for sample in parts[split]] for split in SPLITS)
    assert digest("\n".join([*train, "", *test])) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("idrid_he", {"_EX.tif"}),
        ("idrid_od", {"_OD.tif"}),
        ("drishti_cup", {"cupsegSoftmap.png"}),
        ("stare", {".ah.ppm.gz"}),
        ("chase", {"_1stHO.png"}),
        ("scr_heart", {"heart"}),
        ("scr_lung", {"left lung", "right lung"}),
        ("scr_clavicle", {"left clavicle", "right clavicle"}),
    ],
)
def test_the_right_target_of_a_family(name: str, ends: set[str], unpacked: Callable[[str], Path]) -> None:
    """By the end of the mask's name or by the folder it lies in."""
    for sample in every_sample(REGISTRY.tasks[name], folder(name, unpacked(name))):
        masks = [mask for mask in sample.masks if isinstance(mask, Path)]
        assert len(masks) == len(ends)
        assert {end for mask in masks for end in ends if mask.name.endswith(end) or mask.parent.name == end} == ends


def _sorted_by_diagnosis(path: Path) -> Path:
    return path.parent / "NORMAL" / path.name if path.parent.name == "Images" else path


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        pytest.param("stare", lambda path, root: path.with_suffix(""), id="stare unpacked"),
        pytest.param("drishti_od", lambda path, root: _sorted_by_diagnosis(path), id="drishti sorted by diagnosis"),
        pytest.param(
            "rite", lambda path, root: root / path.relative_to(root / "AV_groundTruth"), id="rite inner folder"
        ),
        pytest.param("chase", lambda path, root: root / "CHASEDB1" / path.name, id="chase nested"),
        pytest.param("drive", lambda path, root: root / "DRIVE" / path.relative_to(root), id="drive nested"),
        pytest.param(
            "idrid_he", lambda path, root: root / "A. Segmentation" / path.relative_to(root), id="idrid nested"
        ),
        pytest.param(
            "scr_lung", lambda path, root: path.with_suffix(".png") if path.suffix == ".IMG" else path, id="jsrt as png"
        ),
        pytest.param(
            "scr_lung",
            lambda path, root: root.parent / "JSRT" / path.relative_to(root) if path.suffix == ".IMG" else path,
            id="jsrt beside scr",
        ),
        pytest.param(
            "scr_heart",
            lambda path, root: root / path.relative_to(root / "scratch") if path.suffix == ".gif" else path,
            id="folds without scratch",
        ),
        pytest.param(
            "siim_pneumothorax", lambda path, root: root / "dicom-images-train" / path.name, id="siim in one folder"
        ),
    ],
)
def test_other_spellings_of_a_layout(name: str, rename: object, tmp_path: Path) -> None:
    assert callable(rename)
    spec, root = REGISTRY.tasks[name], tmp_path / REGISTRY.tasks[name].folders[0]
    touch([rename(path, root) for path in task_files(spec, root)])
    assert inventory(spec, tmp_path).present == spec.train + spec.test


@pytest.mark.parametrize("name", TASKS)
def test_every_usual_name_of_the_folder_is_found(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    for folder in spec.folders:
        (tmp_path / folder / folder).mkdir(parents=True)
        assert inventory(spec, tmp_path / folder).root == tmp_path / folder / folder


# ------------------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_a_missing_file_is_named(name: str, split: str, unpacked: Callable[[str], Path]) -> None:
    spec, data_root = REGISTRY.tasks[name], unpacked(name)
    lost = listed(spec, folder(name, data_root))[split][3].files[-1]
    lost.unlink()
    try:
        with pytest.raises(MissingData) as caught:
            samples(spec, data_root)
        rest = samples(spec, data_root, allow_partial=True)
    finally:
        lost.touch()
    message, where = str(caught.value), str(folder(name, data_root))
    assert message.startswith(f"{name}: 1 of ")
    for part in (lost.name.removesuffix(".gz"), spec.source, spec.licence, spec.layout, where, "--allow-partial"):
        assert part in message
    assert "\n" not in message
    assert {part: len(found) for part, found in rest.items()} == {
        part: getattr(spec, part) - (part == split) for part in SPLITS
    }


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_folder_is_counted_not_listed(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    (tmp_path / spec.folders[0]).mkdir()
    try:
        files = {path for sample in every_sample(spec, tmp_path / spec.folders[0]) for path in sample.files}
        wanted = rf"{len(files)} of {len(files)} files .* and {len(files) - 3} more"
    except MissingData as error:  # a task that lists what it finds, or what its table names
        wanted = re.escape(str(error))
    with pytest.raises(MissingData, match=wanted) as caught:
        samples(spec, tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- corpora


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_lists_its_official_layout(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.corpora[name]
    root = tmp_path / spec.folders[0]
    files = corpus_tree(spec, root)
    touch(files)
    touch([path.with_name(f"._{path.name}") for path in files[:3]])  # as archives made on a Mac leave them behind
    found = corpus_images(name, spec, tmp_path)
    extra = {path for path in files if path.stem == "1_left"}  # not of good quality
    assert {item.path for item in found} == set(files) - extra
    assert len(found) == len(files) - len(extra)
    assert all(item.label is None or 0 <= item.label < len(spec.classes) for item in found)
    if name == "kaggle_dr_good":
        assert digest("\n".join(sorted(item.path.stem for item in found))) == PUBLISHED_GOOD


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_that_is_not_there_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.corpora[name]
    for root in (tmp_path, tmp_path / "with"):
        with pytest.raises(MissingData) as caught:
            corpus_files(name, spec, root)
        if root == tmp_path:
            for part in (spec.source, spec.licence, "--corpus folder:PATH"):
                assert part in str(caught.value)
    (tmp_path / spec.folders[0]).mkdir()
    with pytest.raises(MissingData, match=rf"^{name}: ") as caught:
        corpus_files(name, spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_listed_photograph_that_is_not_there_is_named(tmp_path: Path) -> None:
    touch([tmp_path / "train" / "10_left.jpeg"])
    with pytest.raises(MissingData, match=r"11359 of its 11360 photographs are not in .*\(13_left"):
        load(REGISTRY.corpora["kaggle_dr_good"])(tmp_path)


@pytest.mark.parametrize("name", ["chestxray8", "idrid_grading", "kaggle_dr"])
def test_a_corpus_in_one_flat_folder(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.corpora[name]
    images = [tmp_path / "flat" / path.name for path in corpus_tree(spec, tmp_path / "official")]
    touch(images)
    found = load(spec)(tmp_path / "flat")
    assert {item.path for item in found} == set(images)
    assert all(item.label is None for item in found)
