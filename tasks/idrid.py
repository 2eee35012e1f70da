"""IDRiD: optic disc and hard exudates in diabetic eyes, centred near the macula.

Source: Porwal et al. 2018, part A. `idrid_he` is hard exudates (file code EX), not haemorrhages (file code HE). Split:
the dataset's own, in the order of Chen et al. Part B (corpus `idrid_grading`) holds some of the same photographs.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, folder_of, list_samples
from bench.registry import dataset, task

TRAIN = (18, 36, *(number for number in range(1, 55) if number not in (18, 36)))
TEST = tuple(range(55, 82))
CAMERA = {
    "fov": 50.0, "height": 0.83, "centre": (0.05, 0.5), "jitter": 3.0, "notch": 1.0, "red": (0.95, 1.15),
    "green": (0.88, 1.06), "blue": (0.25, 0.7), "exposure": (0.85, 1.05), "haze": (0.0, 0.2), "blur": 0.0025,
    "exudates": (3.0, 9.0), "haemorrhages": (0.0, 10.0), "microaneurysms": (5.0, 30.0), "cotton_wool": (0.0, 1.5),
}  # fmt: skip


@dataset(
    "idrid",
    title="IDRiD",
    channels=3,
    licence="CC BY 4.0",
    citation="Porwal et al., Data 3(3):25, 2018",
    source="https://doi.org/10.21227/H25W98",
    revision="A. Segmentation",
    folders=("idrid", "IDRiD", "IDRID"),
    layout="A. Segmentation/1. Original Images and 2. All Segmentation Groundtruths",
    train=54,
    test=27,
    crop="fov",
    augment="fundus",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus"},
)
def photographs(root: Path, split: str, *masks: str) -> list[Sample]:
    """1. Original Images/PART/IDRiD_01.jpg with 2. All Segmentation Groundtruths/PART/TARGET/IDRiD_01_CODE.tif."""
    base = folder_of(root, "A.%20Segmentation", "A. Segmentation", "A. Segmentation")
    part, numbers = {"train": ("a. Training Set", TRAIN), "test": ("b. Testing Set", TEST)}[split]
    names = [f"IDRiD_{number:02}" for number in numbers]
    truths = [f"2. All Segmentation Groundtruths/{part}/{mask}" for mask in masks]
    return list_samples(base, names, f"1. Original Images/{part}/*.jpg", *truths)


@task(
    "idrid_od",
    dataset="idrid",
    title="ID(OD)",
    groups=("fundus_all",),
    section="Optic disc and cup",
    layout=(
        "A. Segmentation/1. Original Images/a. Training Set/IDRiD_01.jpg and 2. All Segmentation Groundtruths/"
        "a. Training Set/5. Optic Disc/IDRiD_01_OD.tif (01 to 54), b. Testing Set likewise (55 to 81)"
    ),
    known_leaks=("idrid_grading",),
    phantom={"target": "disc", "dataset": "idrid", "camera": CAMERA},
)
def load_disc(root: Path, split: str) -> list[Sample]:
    return photographs(root, split, "5. Optic Disc/*_OD.tif")


@task(
    "idrid_he",
    dataset="idrid",
    title="ID(HE)",
    groups=("fundus_all",),
    section="Lesions",
    layout=(
        "A. Segmentation/1. Original Images/a. Training Set/IDRiD_01.jpg and 2. All Segmentation Groundtruths/"
        "a. Training Set/3. Hard Exudates/IDRiD_01_EX.tif (01 to 54), b. Testing Set likewise (55 to 81)"
    ),
    known_leaks=("idrid_grading",),
    phantom={"target": "exudates", "dataset": "idrid", "camera": CAMERA},
)
def load_exudates(root: Path, split: str) -> list[Sample]:
    return photographs(root, split, "3. Hard Exudates/*_EX.tif")
