"""Tasks read the official layout of their dataset, in the order of the published split, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data import IMAGE_SUFFIXES, MissingData, Sample, corpus_files, samples
from bench.registry import load, scan
from bench.spec import TaskSpec

REGISTRY = scan()
FUNDUS = REGISTRY.groups("task")["fundus_all"]
SPLITS = ("train", "test")


def chase(root: Path) -> list[Path]:
    names = [f"Image_{number:02}{side}" for number in range(1, 15) for side in "LR"]
    return [root / f"{name}{end}" for name in names for end in (".jpg", "_1stHO.png", "_2ndHO.png")]


def hrf(root: Path) -> list[Path]:
    names = [(f"{number:02}_{kind}", kind) for number in range(1, 16) for kind in ("h", "dr", "g")]
    images = [root / "images" / f"{name}{'.JPG' if kind == 'dr' else '.jpg'}" for name, kind in names]
    return images + [
        root / folder / f"{name}{end}.tif" for name, _ in names for folder, end in (("manual1", ""), ("mask", "_mask"))
    ]


def rite(root: Path) -> list[Path]:
    names = [("training", f"{number}_training") for number in range(21, 41)]
    names += [("test", f"{number:02}_test") for number in range(1, 21)]
    ends = (("images", ".tif"), ("vessel", ".png"), ("av", ".png"))
    return [root / "AV_groundTruth" / part / folder / f"{name}{end}" for part, name in names for folder, end in ends]


STARE = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)


def stare(root: Path) -> list[Path]:
    images = [root / "stare-images" / f"im{number:04}.ppm.gz" for number in STARE]
    return images + [root / f"labels-{who}" / f"im{number:04}.{who}.ppm.gz" for number in STARE for who in ("ah", "vk")]


def drishti(root: Path) -> list[Path]:
    base = root / "Drishti-GS1_files" / "Drishti-GS1_files"
    train = DRISHTI_TRAIN
    files = []
    for number in range(1, 102):
        part, truth = ("Training", "GT") if number in train else ("Test", "Test_GT")
        name = f"drishtiGS_{number:03}"
        files.append(base / part / "Images" / f"{name}.png")
        files += [base / part / truth / name / "SoftMap" / f"{name}_{target}segSoftmap.png" for target in ("cup", "OD")]
    return files


DRISHTI_TRAIN = {
    *(2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 36, 37, 38, 40, 41, 42, 44, 45, 46, 47, 49, 51),
    *(57, 58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101),
}


def idrid(root: Path) -> list[Path]:
    base = root / "A. Segmentation"
    files = []
    for number in range(1, 82):
        part, name = ("a. Training Set" if number < 55 else "b. Testing Set"), f"IDRiD_{number:02}"
        files.append(base / "1. Original Images" / part / f"{name}.jpg")
        for folder, code in (("2. Haemorrhages", "HE"), ("3. Hard Exudates", "EX"), ("5. Optic Disc", "OD")):
            files.append(base / "2. All Segmentation Groundtruths" / part / folder / f"{name}_{code}.tif")
    return files


OFFICIAL: dict[str, Callable[[Path], list[Path]]] = {
    "chase": chase,
    "hrf": hrf,
    "rite": rite,
    "stare": stare,
    "drishti_cup": drishti,
    "drishti_od": drishti,
    "idrid_od": idrid,
    "idrid_he": idrid,
}


def unpack(root: Path, files: list[Path]) -> None:
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(spec: TaskSpec, root: Path) -> dict[str, list[Sample]]:
    loader = load(spec)
    return {split: loader(root, split) for split in SPLITS}


def test_nothing_is_broken_and_the_group_is_whole() -> None:
    assert not REGISTRY.broken
    assert set(FUNDUS) == set(OFFICIAL)


@pytest.mark.parametrize("name", FUNDUS)
def test_declaration(name: str) -> None:
    spec = REGISTRY.tasks[name]
    assert spec.corpus in REGISTRY.corpora
    assert spec.phantom["modality"] == "fundus"
    for text in (spec.licence, spec.citation, spec.source, spec.revision, spec.section, spec.title):
        assert text.strip()
    assert spec.folders[0] in (name, spec.phantom.get("dataset"))


@pytest.mark.parametrize("name", FUNDUS)
def test_official_layout_is_read_as_declared(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    unpack(tmp_path, OFFICIAL[name](tmp_path))
    parts = read(spec, tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {"train": spec.train, "test": spec.test}
    listed = [*parts["train"], *parts["test"]]
    assert len({sample.name for sample in listed}) == len({sample.image for sample in listed}) == len(listed)
    for sample in listed:
        assert len(sample.masks) == 1
        assert sample.image.is_file()
        assert sample.masks[0].is_file()
        assert sample.image != sample.masks[0]
        assert sample.masks[0].name.startswith(sample.name)
        assert sample.image.name.removesuffix(".gz").lower().endswith(IMAGE_SUFFIXES)
    assert not {sample.patient for sample in parts["train"]} & {sample.patient for sample in parts["test"]}


@pytest.mark.parametrize(
    ("name", "first", "last_train", "first_test"),
    [
        ("chase", ["Image_01L", "Image_01R", "Image_02L"], "Image_10R", "Image_11L"),
        ("hrf", ["07_g", "01_dr", "01_g", "01_h", "02_dr"], "09_dr", "09_g"),
        ("rite", ["21_training", "22_training"], "40_training", "01_test"),
        ("stare", ["im0001", "im0002", "im0003"], "im0139", "im0162"),
        ("drishti_cup", ["drishtiGS_036", "drishtiGS_002", "drishtiGS_004"], "drishtiGS_101", "drishtiGS_029"),
        ("drishti_od", ["drishtiGS_036", "drishtiGS_002", "drishtiGS_004"], "drishtiGS_101", "drishtiGS_029"),
        ("idrid_od", ["IDRiD_18", "IDRiD_36", "IDRiD_01", "IDRiD_02"], "IDRiD_54", "IDRiD_55"),
        ("idrid_he", ["IDRiD_18", "IDRiD_36", "IDRiD_01", "IDRiD_02"], "IDRiD_54", "IDRiD_55"),
    ],
)
def test_order_of_the_published_split(
    name: str, first: list[str], last_train: str, first_test: str, tmp_path: Path
) -> None:
    """The validation part is the head of the train list, so its order is part of the split."""
    unpack(tmp_path, OFFICIAL[name](tmp_path))
    parts = read(REGISTRY.tasks[name], tmp_path)
    train = [sample.name for sample in parts["train"]]
    assert train[: len(first)] == first
    assert train[-1] == last_train
    assert parts["test"][0].name == first_test


@pytest.mark.parametrize(
    ("name", "code"), [("idrid_he", "_EX.tif"), ("idrid_od", "_OD.tif"), ("drishti_cup", "cupsegSoftmap.png")]
)
def test_the_right_target_of_a_family(name: str, code: str, tmp_path: Path) -> None:
    unpack(tmp_path, OFFICIAL[name](tmp_path))
    for part in read(REGISTRY.tasks[name], tmp_path).values():
        assert all(sample.masks[0].name.endswith(code) for sample in part)


@pytest.mark.parametrize("name", ["stare", "drishti_od", "rite"])
def test_other_spellings_of_a_layout(name: str, tmp_path: Path) -> None:
    """Unpacked STARE files, Drishti images sorted by diagnosis, RITE without its outer folder."""
    rename = {
        "stare": lambda path: path.with_suffix(""),
        "drishti_od": lambda path: path.parent / "NORMAL" / path.name if path.parent.name == "Images" else path,
        "rite": lambda path: tmp_path / path.relative_to(tmp_path / "AV_groundTruth"),
    }[name]
    unpack(tmp_path, [rename(path) for path in OFFICIAL[name](tmp_path)])
    spec = REGISTRY.tasks[name]
    assert [len(part) for part in read(spec, tmp_path).values()] == [spec.train, spec.test]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", FUNDUS)
def test_a_missing_file_is_named(name: str, split: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    root = tmp_path / spec.folders[-1]
    unpack(root, OFFICIAL[name](root))
    lost = load(spec)(root, split)[3].masks[0]
    lost.unlink()
    with pytest.raises(MissingData) as caught:
        samples(spec, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: 1 of {2 * (spec.train + spec.test)} files")
    for part in (lost.name.removesuffix(".gz"), spec.source, spec.licence, spec.layout, str(root)):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", FUNDUS)
def test_an_empty_folder_is_counted_not_listed(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    (tmp_path / spec.folders[0]).mkdir()
    count = 2 * (spec.train + spec.test)
    with pytest.raises(MissingData, match=rf"{count} of {count} files .* and {count - 3} more"):
        samples(spec, tmp_path)


def test_families_share_their_phantom_images() -> None:
    for one, other in (("drishti_cup", "drishti_od"), ("idrid_od", "idrid_he")):
        first, second = REGISTRY.tasks[one].phantom, REGISTRY.tasks[other].phantom
        assert first["dataset"] == second["dataset"]
        assert first["camera"] == second["camera"]
        assert first["target"] != second["target"]


def test_corpus_lists_photographs_and_says_where_they_come_from(tmp_path: Path) -> None:
    spec = REGISTRY.corpora["kaggle_dr"]
    (tmp_path / spec.folders[0]).mkdir()
    with pytest.raises(MissingData) as caught:
        corpus_files(spec.name, spec, tmp_path)
    assert spec.source in str(caught.value)
    assert spec.licence in str(caught.value)
    names = ["10_left.jpeg", "10_right.jpeg", "13_left.jpeg"]
    unpack(tmp_path, [tmp_path / "train" / name for name in (*names, "trainLabels.csv")])
    assert [path.name for path in load(spec)(tmp_path)] == names
