"""Datasets and corpora as their owners lay them out: every file by its official name, empty or with small images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.data import MissingData, Sample
from bench.registry import load
from bench.spec import CorpusSpec, TaskSpec

SPLITS = ("train", "test")
SPLIT_FILES = Path(__file__).parent.parent / "tasks" / "splits"

DRISHTI_TRAIN = {
    *(2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 36, 37, 38, 40, 41, 42, 44, 45, 46, 47, 49, 51),
    *(57, 58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101),
}
STARE = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
SCR_TARGETS = ("heart", "left lung", "right lung", "left clavicle", "right clavicle")


def split_words(name: str) -> list[str]:
    """The words of a split file."""
    lines = (SPLIT_FILES / f"{name}.txt").read_text().splitlines()
    return " ".join(line for line in lines if not line.startswith("#")).split()


# --------------------------------------------------------------------------------------------------------------- tasks


def chase(root: Path) -> list[Path]:
    names = [f"Image_{number:02}{side}" for number in range(1, 15) for side in "LR"]
    return [root / f"{name}{end}" for name in names for end in (".jpg", "_1stHO.png", "_2ndHO.png")]


def hrf(root: Path) -> list[Path]:
    names = [(f"{number:02}_{kind}", kind) for number in range(1, 16) for kind in ("h", "dr", "g")]
    images = [root / "images" / f"{name}{'.JPG' if kind == 'dr' else '.jpg'}" for name, kind in names]
    return images + [
        root / folder / f"{name}{end}.tif" for name, _ in names for folder, end in (("manual1", ""), ("mask", "_mask"))
    ]


def _drive_names() -> list[tuple[str, str, str]]:
    """Part, number and name of the 40 photographs."""
    train = [("training", f"{number}", f"{number}_training") for number in range(21, 41)]
    return train + [("test", f"{number:02}", f"{number:02}_test") for number in range(1, 21)]


def rite(root: Path) -> list[Path]:
    ends = (("images", ".tif"), ("vessel", ".png"), ("av", ".png"))
    return [
        root / "AV_groundTruth" / part / folder / f"{name}{end}"
        for part, _, name in _drive_names()
        for folder, end in ends
    ]


def drive(root: Path) -> list[Path]:
    files = []
    for part, number, name in _drive_names():
        files += [root / part / "images" / f"{name}.tif", root / part / "mask" / f"{name}_mask.gif"]
        files.append(root / part / "1st_manual" / f"{number}_manual1.gif")
    return files + [root / "test" / "2nd_manual" / f"{number:02}_manual2.gif" for number in range(1, 21)]


def stare(root: Path) -> list[Path]:
    images = [root / "stare-images" / f"im{number:04}.ppm.gz" for number in STARE]
    return images + [root / f"labels-{who}" / f"im{number:04}.{who}.ppm.gz" for number in STARE for who in ("ah", "vk")]


def drishti(root: Path) -> list[Path]:
    base = root / "Drishti-GS1_files" / "Drishti-GS1_files"
    files = []
    for number in range(1, 102):
        part, truth = ("Training", "GT") if number in DRISHTI_TRAIN else ("Test", "Test_GT")
        name = f"drishtiGS_{number:03}"
        files.append(base / part / "Images" / f"{name}.png")
        files += [base / part / truth / name / "SoftMap" / f"{name}_{target}segSoftmap.png" for target in ("cup", "OD")]
    return files


def idrid(root: Path) -> list[Path]:
    base = root / "A. Segmentation"
    files = []
    for number in range(1, 82):
        part, name = ("a. Training Set" if number < 55 else "b. Testing Set"), f"IDRiD_{number:02}"
        files.append(base / "1. Original Images" / part / f"{name}.jpg")
        for folder, code in (("2. Haemorrhages", "HE"), ("3. Hard Exudates", "EX"), ("5. Optic Disc", "OD")):
            files.append(base / "2. All Segmentation Groundtruths" / part / folder / f"{name}_{code}.tif")
    return files


def scr(root: Path) -> list[Path]:
    films = [f"JPCLN{number:03}" for number in range(1, 155)] + [f"JPCNN{number:03}" for number in range(1, 94)]
    files = [root / "All247images" / f"{film}.IMG" for film in films]
    for film in films:
        fold = "fold1" if int(film[-3:]) % 2 else "fold2"
        files += [root / "scratch" / fold / "masks" / target / f"{film}.gif" for target in SCR_TARGETS]
    return files


def siim(root: Path) -> list[Path]:
    """Films with a pneumothorax (the stamps behind their numbers are made up) and one without; writes train-rle.csv."""
    rows, files = ["ImageId, EncodedPixels"], []
    for index, number in enumerate([*sorted(split_words("siim_pneumothorax")), "99999"]):
        film = f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875{index % 999:03}.{index}"
        rows.append(f"{film}, {'-1' if number == '99999' else '1024 512 512 512'}")
        if index % 7 == 0 and number != "99999":
            rows.append(f"{film}, 4096 256")
        files.append(root / "dicom-images-train" / f"study.{index // 50}" / "series" / f"{film}.dcm")
    (root / "train-rle.csv").write_text("\n".join(rows) + "\n")
    return files


def hannover(root: Path) -> list[Path]:
    from tasks.hannover import PATIENTS

    films = [film for films in PATIENTS.values() for film in films]
    return [root / folder / f"{film}.png" for film in [*films, "00000000"] for folder in ("png", "lung_masks")][:-1]


OFFICIAL: dict[str, Callable[[Path], list[Path]]] = {
    "chase": chase,
    "hrf": hrf,
    "rite": rite,
    "drive": drive,
    "stare": stare,
    "drishti_cup": drishti,
    "drishti_od": drishti,
    "idrid_od": idrid,
    "idrid_he": idrid,
    "scr_heart": scr,
    "scr_lung": scr,
    "scr_clavicle": scr,
    "siim_pneumothorax": siim,
    "hannover_lung": hannover,
}


def task_files(spec: TaskSpec, root: Path) -> list[Path]:
    """Every file of a task's dataset below `root`; index tables are written there, nothing else.

    For a task without an entry in OFFICIAL the files its own `load` lists; for one that lists what it finds, as a fresh
    scaffold does, images/ and masks/ of its declared size, which are made.
    """
    root.mkdir(parents=True, exist_ok=True)
    if spec.name in OFFICIAL:
        return OFFICIAL[spec.name](root)
    try:
        return [path for sample in every_sample(spec, root) for path in sample.files]
    except MissingData:
        names = [f"case_{index:03}.png" for index in range(spec.train + spec.test)]
        plain = [root / folder / name for name in names for folder in ("images", "masks")]
        touch(plain)
    try:
        assert {path for sample in every_sample(spec, root) for path in sample.files} == set(plain)
    except (MissingData, AssertionError):
        pytest.fail(f"what {spec.name} reads cannot be told from an empty folder: write its tree in {__file__}")
    return plain


# ------------------------------------------------------------------------------------------------------------- corpora

KAGGLE = [f"{word[:-1]}_{eye}" for word in split_words("kaggle_dr_good")[:3] for eye in ("left", "right")]


def kaggle_dr(root: Path) -> list[Path]:
    rows = [f"{name},{index % 5}" for index, name in enumerate(KAGGLE)]
    (root / "trainLabels.csv").write_text("\n".join(["image,level", *rows]) + "\n")
    return [root / "train" / f"{name}.jpeg" for name in KAGGLE]


def kaggle_dr_good(root: Path) -> list[Path]:
    eyes = {"l": ("left",), "r": ("right",), "b": ("left", "right")}
    names = [f"{word[:-1]}_{eye}" for word in split_words("kaggle_dr_good") for eye in eyes[word[-1]]]
    return [root / "train" / f"{name}.jpeg" for name in [*names, "1_left"]]


def idrid_grading(root: Path) -> list[Path]:
    base, files = root / "B. Disease Grading", []
    (base / "2. Groundtruths").mkdir(parents=True)
    for part, kind, count in (("a. Training Set", "Training", 413), ("b. Testing Set", "Testing", 103)):
        names = [f"IDRiD_{number:03}" for number in range(1, count + 1)]
        files += [base / "1. Original Images" / part / f"{name}.jpg" for name in names]
        rows = [f"{name},{index % 5},{index % 3},,," for index, name in enumerate(names)]
        table = base / "2. Groundtruths" / f"{part[:2]} IDRiD_Disease Grading_{kind} Labels.csv"
        table.write_text("\n".join(["Image name,Retinopathy grade,Risk of macular edema ,,,", *rows]) + "\n")
    return files


def chestxray8(root: Path) -> list[Path]:
    films = (("images_001", "00000001_000"), ("images_001", "00000001_001"), ("images_012", "00030805_000"))
    return [root / folder / "images" / f"{film}.png" for folder, film in films]


def hannover_films(root: Path) -> list[Path]:
    return [path for path in hannover(root) if path.parent.name == "png"]


CORPORA: dict[str, Callable[[Path], list[Path]]] = {
    "kaggle_dr": kaggle_dr,
    "kaggle_dr_good": kaggle_dr_good,
    "idrid_grading": idrid_grading,
    "chestxray8": chestxray8,
    "hannover": hannover_films,
}


def corpus_tree(spec: CorpusSpec, root: Path) -> list[Path]:
    """Every image of a corpus (a few where it is large) below `root`; its tables are written there."""
    if spec.name not in CORPORA:
        pytest.fail(f"the corpus {spec.name} has no tree in the official layout: write one in {__file__}")
    root.mkdir(parents=True, exist_ok=True)
    return CORPORA[spec.name](root)


# --------------------------------------------------------------------------------------------------------------- files


def touch(files: list[Path]) -> None:
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(spec: TaskSpec, root: Path) -> dict[str, list[Sample]]:
    read = load(spec)
    return {split: read(root, split) for split in SPLITS}


def every_sample(spec: TaskSpec, root: Path) -> Iterator[Sample]:
    for part in listed(spec, root).values():
        yield from part
